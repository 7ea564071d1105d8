"""llama-cpp-python: the examples at the top of its README."""

from llcuda.llama_cpp import Llama

llm = Llama(model_path="demo", n_ctx=512, verbose=False)
output = llm(
    "Q: Name the planets in the solar system. A: ", max_tokens=32, stop=["Q:", "\n"], echo=True
)
print(output["choices"][0]["text"])
for chunk in llm.create_chat_completion(
    messages=[{"role": "user", "content": "Who are you?"}], max_tokens=32, stream=True
):
    print(chunk["choices"][0]["delta"].get("content") or "", end="")
llm.close()
