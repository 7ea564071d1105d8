"""OpenAI's client, against `llcuda serve demo`."""

from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="-")
messages = [{"role": "user", "content": "Who are you?"}]
answer = client.chat.completions.create(model="demo", messages=messages, max_tokens=32)
print(answer.choices[0].message.content)
for event in client.chat.completions.create(
    model="demo", messages=messages, max_tokens=32, stream=True
):
    print(event.choices[0].delta.content or "", end="")
