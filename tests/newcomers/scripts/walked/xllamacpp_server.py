"""xllamacpp: llama.cpp's server in the process, dicts in and out."""

import llcuda as xlc

params = xlc.CommonParams()
params.model.path = "demo"
params.n_parallel = 2
server = xlc.Server(params)
result = server.handle_chat_completions(
    {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 32}
)
print(result["choices"][0]["message"]["content"])
