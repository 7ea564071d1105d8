"""LangChain: a chat model and a text model on llama-cpp-python."""

import llcuda.llama_cpp

llcuda.llama_cpp.install()  # in place of `pip install llama-cpp-python`

from langchain_community.chat_models import ChatLlamaCpp
from langchain_community.llms import LlamaCpp

chat = ChatLlamaCpp(model_path="demo", n_ctx=512, max_tokens=32, verbose=False)
print(chat.invoke([("system", "Answer briefly."), ("human", "Who are you?")]).content)
llm = LlamaCpp(model_path="demo", n_ctx=512, max_tokens=16, verbose=False)
for text in llm.stream("Once upon a time"):
    print(text, end="")
