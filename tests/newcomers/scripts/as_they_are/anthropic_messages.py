"""Anthropic's package, against `llcuda serve demo`."""

from anthropic import Anthropic

client = Anthropic(base_url="http://localhost:8080", api_key="-")
messages = [{"role": "user", "content": "Who are you?"}]
message = client.messages.create(model="demo", max_tokens=32, messages=messages)
print(message.content[0].text)
with client.messages.stream(model="demo", max_tokens=32, messages=messages) as stream:
    for text in stream.text_stream:
        print(text, end="", flush=True)
