"""The command line `llcuda`."""
