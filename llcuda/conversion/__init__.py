"""Conversion of Hugging Face checkpoints and LoRA adapters to GGUF files."""
