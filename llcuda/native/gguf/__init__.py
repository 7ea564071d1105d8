"""GGUF files through ggml's reader: header, metadata, tensor data, checks."""
