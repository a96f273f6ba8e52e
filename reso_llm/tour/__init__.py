"""The guided tour of a trained model: stations, probes, figure."""
