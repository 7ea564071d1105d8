"""Embedding vectors and rerank scores."""
