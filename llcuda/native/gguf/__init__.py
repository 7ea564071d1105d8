"""GGUF files as C maps and checks them; `llcuda.gguf_parser` is the class that users read with."""
