"""ollama's package: a dict of the answer, and its texts as they come."""

import llcuda as ollama

response = ollama.chat(
    model="demo",
    messages=[{"role": "user", "content": "Who are you?"}],
)
print(response["message"]["content"])
