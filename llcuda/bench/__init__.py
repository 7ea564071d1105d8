"""`llcuda bench`: what is measured, how, and how it is reported."""
