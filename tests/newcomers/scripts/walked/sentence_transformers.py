"""sentence-transformers: vectors of texts, and how near they are."""

from llcuda import SentenceTransformer

model = SentenceTransformer("demo")
embeddings = model.encode(["The weather is lovely today.", "It's so sunny outside!"])
print(embeddings.shape, embeddings @ embeddings.T)
