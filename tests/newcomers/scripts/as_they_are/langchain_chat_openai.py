"""LangChain: OpenAI's chat model, against `llcuda serve demo`."""

from langchain_openai import ChatOpenAI

llm = ChatOpenAI(model="demo", base_url="http://localhost:8080/v1", api_key="-", max_tokens=32)
messages = [("system", "Answer briefly."), ("human", "Who are you?")]
print(llm.invoke(messages).content)
for chunk in llm.stream(messages):
    print(chunk.content, end="", flush=True)
