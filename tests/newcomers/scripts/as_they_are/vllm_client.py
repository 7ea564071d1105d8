"""vLLM: OpenAI's client, against `llcuda serve demo --port 8000 --api-key token-abc123`."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="token-abc123")
model = client.models.list().data[0].id
completion = client.completions.create(model=model, prompt="Once upon a time", max_tokens=16)
print(completion.choices[0].text)
completion = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "Is water wet?"}],
    extra_body={"structured_outputs": {"choice": ["yes", "no"]}, "top_k": 20},
)
print(completion.choices[0].message.content)
