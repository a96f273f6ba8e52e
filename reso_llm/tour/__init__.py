"""The tour of a trained model: `stations.py` lists its stations, the others measure and draw."""
