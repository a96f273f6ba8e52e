"""The tour: `tour.py` lists its stations, `stations.py` measures them, `figures.py` draws them."""
