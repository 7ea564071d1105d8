"""ollama's package, with attributes in place of keys."""

from llcuda import ChatResponse, chat, generate

response: ChatResponse = chat(model="demo", messages=[{"role": "user", "content": "Who are you?"}])
print(response.message.content)
print(generate(model="demo", prompt="Who are you?")["response"])
