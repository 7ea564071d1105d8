"""Quantization of model files: plan, importance matrix, conversion, checks."""
