"""The client of `transformers serve` and TGI, against `llcuda serve demo --port 8000`."""

from huggingface_hub import InferenceClient

client = InferenceClient(base_url="http://localhost:8000")
messages = [{"role": "user", "content": "Who are you?"}]
output = client.chat.completions.create(model="tgi", messages=messages, max_tokens=32)
print(output.choices[0].message.content)
for chunk in client.chat_completion(messages, model="demo", max_tokens=32, stream=True):
    print(chunk.choices[0].delta.content or "", end="")
