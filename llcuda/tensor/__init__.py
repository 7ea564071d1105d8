"""The implementation behind `llcuda.core`: tensors on the CPU and on GPUs."""
