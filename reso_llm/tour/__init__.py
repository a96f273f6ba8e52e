"""The tour of a trained model: `tour.py` lists the stations, the other files measure and draw."""
