"""transformers: a pipeline."""

from llcuda import pipeline

pipe = pipeline("text-generation", model="demo")
print(pipe("Once upon a time", max_new_tokens=32)[0]["generated_text"])
