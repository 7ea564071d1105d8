"""The demo model of llcuda: its corpus, its training and its export; nothing here is installed."""
