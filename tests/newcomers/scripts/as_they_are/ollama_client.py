"""ollama's package, with attributes, against `llcuda serve demo --port 11434 --pooling mean`."""

from ollama import ChatResponse, Client

client = Client(host="http://localhost:11434")
response: ChatResponse = client.chat(
    model="demo", messages=[{"role": "user", "content": "Who are you?"}]
)
print(response.message.content)
for part in client.generate(
    model="demo", prompt="Who are you?", options={"num_predict": 32}, stream=True
):
    print(part.response, end="", flush=True)
print(client.list().models[0].model, client.show("demo").details.family)
print(len(client.embed(model="demo", input=["Hello", "World"]).embeddings))
