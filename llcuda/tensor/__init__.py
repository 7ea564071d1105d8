"""The implementation of `llcuda.core`: tensors on the CPU and on GPUs, computed by ggml."""
