"""The measurements, synthetic models and reports of `llcuda bench`."""
