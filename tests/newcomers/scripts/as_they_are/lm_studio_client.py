"""LM Studio: OpenAI's client, against `llcuda serve demo --port 1234 --pooling mean`."""

from openai import OpenAI

client = OpenAI(base_url="http://localhost:1234/v1", api_key="lm-studio")
answer = client.chat.completions.create(
    model="demo",
    messages=[
        {"role": "system", "content": "Always answer in rhymes."},
        {"role": "user", "content": "Introduce yourself."},
    ],
    temperature=0.7,
    max_tokens=32,
)
print(answer.choices[0].message)
vectors = client.embeddings.create(model="demo", input=["Once upon a time"])
print(len(vectors.data[0].embedding))
