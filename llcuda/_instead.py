"""The line to write in place of a name that only other libraries have.

`hint` ends the message of an AttributeError. Each value is Python that runs as it stands, or after
"$ " a command of a shell; several are ways that differ. `engine`, `model`, `request`, `result`,
`chat` and `answer` are the objects that the reader has. Loaded when a name is missing; knows
nothing of the objects themselves.
"""

from __future__ import annotations

Lines = str | tuple[str, ...]

_LOAD = 'engine = llcuda.InferenceEngine("demo")'
_OPEN = _LOAD + "; "
_ASK = 'llcuda.chat("demo", "Hello").content'
_CONTINUE = 'llcuda.quick_infer("Hello", "demo")'
_BATCH = 'llcuda.InferenceEngine("demo", n_parallel=4).batch_infer(["One", "Two"])'
_ASYNC = _OPEN + 'await engine.chat("Hello"); await engine.ainfer("Hello")'
_STREAM = _OPEN + 'print(*engine.stream("Hello"), sep="")'
_TOKENS = 'llcuda.Model("demo").tokenize("Hello")'
_VECTORS = 'llcuda.embed("demo", ["Hello", "World"], pooling="mean")'
_SERVE = "$ llcuda serve demo"
_HUB = "import llcuda.hub; llcuda.hub."


def _imports(module: str, *names: str) -> dict[str, Lines]:
    return {name: f"from llcuda.{module} import {name}" for name in names}


_MODULE: dict[str, Lines] = {
    # vLLM, CTranslate2
    **dict.fromkeys(("LLM", "LLMEngine", "EngineArgs", "Generator"), _BATCH),
    **dict.fromkeys(("AsyncLLM", "AsyncLLMEngine", "AsyncEngineArgs"), _ASYNC),
    # llama-cpp-python
    **_imports("llama_cpp", "Llama", "LlamaCache", "LlamaDiskCache", "LlamaGrammar"),
    **_imports("llama_cpp", "LlamaPromptLookupDecoding", "LlamaRAMCache", "LlamaTokenizer"),
    **_imports("llama_cpp", "LogitsProcessorList", "StoppingCriteriaList"),
    # ollama
    "generate": (_ASK, _CONTINUE, _BATCH),
    "list": (_HUB + "installed_models()", "$ llcuda list"),
    "pull": (_HUB + 'pull("demo")', "$ llcuda pull demo"),
    "show": ("$ llcuda show demo", 'llcuda.Model("demo").metadata'),
    "ps": "$ llcuda ps",
    "copy": "$ llcuda cp demo NAME",
    "delete": "$ llcuda rm NAME",
    **dict.fromkeys(("Client", "AsyncClient", "OpenAI", "AsyncOpenAI"), (_LOAD, _SERVE)),
    **dict.fromkeys(("ChatResponse", "GenerateResponse"), "llcuda.ChatCompletion"),
    # transformers, sentence-transformers
    "pipeline": (_ASK, _CONTINUE, _BATCH),
    **dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), 'llcuda.InferenceEngine("demo")'),
    **dict.fromkeys(("AutoTokenizer", "Tokenizer"), _TOKENS),
    **dict.fromkeys(("TextStreamer", "TextIteratorStreamer"), _STREAM),
    "GenerationConfig": "llcuda.SamplingParams(temperature=0.8)",
    "SentenceTransformer": _VECTORS,
    # llm, gpt4all, mlx_lm
    **dict.fromkeys(("get_model", "get_async_model", "GPT4All"), (_ASK, _LOAD)),
    "get_embedding_model": _VECTORS,
    "get_models": _HUB + "installed_models()",
    "stream_generate": _STREAM,
    # xllamacpp
    "Server": (_SERVE, 'llcuda.InferenceEngine("demo", n_parallel=4)'),
    "CommonParams": 'llcuda.InferenceEngine("demo", ctx_size=512, n_parallel=4)',
    # llcuda's own, looked for in the wrong place
    **dict.fromkeys(("load", "load_model"), 'llcuda.InferenceEngine("demo")'),
    **dict.fromkeys(("infer", "complete", "completion", "run"), (_CONTINUE, _ASK)),
    "batch_infer": _BATCH,
    **dict.fromkeys(("stream", "stream_chat"), _STREAM),
    **dict.fromkeys(("tokenize", "encode"), _TOKENS),
    **_imports("core", "DType", "Device", "Tensor", "matmul"),
    **_imports("gguf_parser", "GGMLType", "GGUFReader", "inspect_gguf"),
    "GGUFWriter": "from llcuda.gguf_writer import write_gguf",
    **_imports("unsloth", "save_pretrained_llcuda"),
    **_imports("server", "create_app", "serve"),
    **{
        name: f"import llcuda.{name}"
        for name in (
            *("core", "gguf_editor", "gguf_parser", "gguf_writer", "hub", "llama_cpp", "nf4"),
            *("server", "structured", "unsloth"),
        )
    },
}

_CHAT = 'engine.chat("Hello").result().content'
_DELTAS = 'for delta in engine.chat("Hello"): print(delta.content, end="")'
_EMBED = 'engine.embed("Hello", pooling="mean")'


def _engine_names(infer: str, stream: str, batch: str, wait: str) -> dict[str, Lines]:
    """Return the lines of an engine; the arguments are its ways to continue a prompt."""
    texts = ("complete", "completion", "create_completion", "generate_text", "predict")
    chats = ("ask", "chat_completion", "create_chat_completion", "handle_chat_completions", "query")
    talks = ("chat_session", "conversation", "start_chat")
    waits = ("achat", "acomplete", "agenerate", "ainvoke", "acreate_chat_completion")
    vectors = ("create_embedding", "embed_documents", "embed_query", "embeddings")
    return {
        "generate": (_CHAT, infer, batch),
        **dict.fromkeys(("invoke", "prompt"), (_CHAT, infer)),
        **dict.fromkeys((*texts, "handle_completions"), infer),
        **dict.fromkeys(chats, _CHAT),
        **dict.fromkeys(talks, 'engine.chat([{"role": "user", "content": "Hello"}])'),
        **dict.fromkeys(waits, ('await engine.chat("Hello")', wait)),
        **dict.fromkeys(("astream", "chat_stream", "stream_chat"), _DELTAS),
        **dict.fromkeys(("generate_stream", "stream_generate"), stream),
        **dict.fromkeys(("batch", "batch_generate", "generate_batch"), batch),
        **dict.fromkeys(vectors, _EMBED),
        "encode": ('engine.tokenize("Hello")', _EMBED),
        **dict.fromkeys(("get_tokenizer", "tokenizer"), 'engine.tokenize("Hello")'),
        "apply_chat_template": (
            'llcuda.ChatTemplate.of(engine.model).render([{"role": "user", "content": "Hello"}])'
        ),
        **dict.fromkeys(("quit", "shutdown", "stop", "unload"), "engine.close()"),
    }


_ENGINE_TEXT = 'engine.submit("Hello").result().text'
_ENGINE = _engine_names(
    infer=_ENGINE_TEXT,
    stream='for text in engine.submit("Hello"): print(text, end="")',
    batch='[request.result().text for request in map(engine.submit, ["One", "Two"])]',
    wait='await engine.submit("Hello")',
)
_INFERENCE_ENGINE = _engine_names(
    infer='engine.infer("Hello").text',
    stream='for text in engine.stream("Hello"): print(text, end="")',
    batch='engine.batch_infer(["One", "Two"])',
    wait='await engine.ainfer("Hello")',
)
_TEXTS = ("generated_text", "output_text", "response")
_LISTS = ("choices", "outputs")
_FIGURES = ("latency_ms", "tokens_generated", "tokens_per_sec")
_CANCELS = ("abort", "close", "stop")
_WAITS = ("get", "join", "wait")
_NEXT = """engine.chat([{"role": "user", "content": "Hello"}, chat.message, \
{"role": "user", "content": "Go on"}])"""
_OPEN_MODEL = "engine = llcuda.Engine(model); "

_NAMES: dict[str, dict[str, Lines]] = {
    "llcuda": _MODULE,
    "Engine": {
        **_ENGINE,
        **dict.fromkeys(("infer", "quick_infer"), _ENGINE["complete"]),
        "stream": _ENGINE["stream_generate"],
        **dict.fromkeys(("batch_chat", "batch_infer"), _ENGINE["batch"]),
        "ainfer": 'await engine.submit("Hello")',
        "decode": "engine.model.detokenize([5, 6])",
        "detokenize": "engine.model.detokenize([5, 6])",
        "get_metrics": "engine.metrics.snapshot()",
        "load_model": 'engine = llcuda.Engine("demo")',
        "n_ctx": "engine.ctx_size",
        "unload_model": "engine.close()",
    },
    "InferenceEngine": {
        **_INFERENCE_ENGINE,
        "decode": "engine.detokenize([5, 6])",
        "load": 'engine.load_model("demo", silent=True)',
        "start": 'engine.load_model("demo", silent=True)',
        **dict.fromkeys(("ctx_size", "n_ctx"), "engine.engine.ctx_size"),
    },
    "Model": {
        **dict.fromkeys(
            ("ask", "chat", "create_chat_completion", "invoke", "prompt"), _OPEN_MODEL + _CHAT
        ),
        **dict.fromkeys(
            ("complete", "create_completion", "generate", "infer"),
            (_OPEN_MODEL + _ENGINE_TEXT, _OPEN_MODEL + _CHAT),
        ),
        "stream": _OPEN_MODEL + 'print(*engine.submit("Hello"), sep="")',
        **dict.fromkeys(
            ("create_embedding", "embed", "embeddings"),
            'llcuda.Embedder(model, pooling="mean").embed(["Hello", "World"])',
        ),
        "encode": (
            'model.tokenize("Hello")',
            'llcuda.Embedder(model, pooling="mean").embed(["Hello", "World"])',
        ),
        "decode": "model.detokenize([5, 6])",
        "eval": "llcuda.Context(model).decode([5, 6])",
        "apply_chat_template": (
            'llcuda.ChatTemplate.of(model).render([{"role": "user", "content": "Hello"}])'
        ),
        "tokenizer": 'model.tokenize("Hello")',
        **dict.fromkeys(("bos_token_id", "token_bos"), "model.bos"),
        **dict.fromkeys(("eos_token_id", "token_eos"), "model.eos"),
        "n_ctx_train": "model.train_ctx_size",
        "n_embd": "model.embedding_size",
        "n_layer": "model.layer_count",
        "n_params": "model.parameter_count",
        "n_vocab": "model.vocab_size",
        "config": "model.metadata",
        "unload": "model.close()",
    },
    "Request": {
        **dict.fromkeys((*_TEXTS, *_LISTS, "content", "message"), "request.text"),
        **{name: f"request.result().{name}" for name in ("finish_reason", "stop_text", *_FIGURES)},
        "usage": ("request.prompt_tokens", "request.result().tokens_generated"),
        "token_ids": "request.tokens",
        "stream": 'for text in request: print(text, end="")',
        **dict.fromkeys(_CANCELS, "request.cancel()"),
        **dict.fromkeys(_WAITS, "request.result()"),
    },
    "Chat": {
        **dict.fromkeys((*_TEXTS, "text"), "chat.content"),
        **dict.fromkeys(_LISTS, ("chat.content", "chat.message")),
        **dict.fromkeys(("reasoning", "reasoning_content"), "chat.result().reasoning"),
        "finish_reason": "chat.result().finish_reason",
        **{name: f"chat.result().completion.{name}" for name in ("logprobs", "tokens", *_FIGURES)},
        "usage": ("chat.request.prompt_tokens", "chat.result().completion.tokens_generated"),
        **dict.fromkeys(("ask", "prompt", "send", "send_message"), _NEXT),
        "stream": 'for delta in chat: print(delta.content, end="")',
        **dict.fromkeys(_CANCELS, "chat.cancel()"),
        **dict.fromkeys(_WAITS, "chat.result()"),
    },
    "Completion": {
        **dict.fromkeys((*_TEXTS, *_LISTS, "message"), "result.text"),
        "token_ids": "result.tokens",
        "usage": ("result.prompt_tokens", "result.tokens_generated"),
    },
    "ChatCompletion": {
        **dict.fromkeys((*_TEXTS, "text"), "answer.content"),
        **dict.fromkeys(_LISTS, ("answer.content", "answer.message")),
        "reasoning_content": "answer.reasoning",
        "usage": ("answer.completion.prompt_tokens", "answer.completion.tokens_generated"),
        **{name: f"answer.completion.{name}" for name in ("logprobs", "tokens", *_FIGURES)},
    },
    "Message": {
        "content": "answer.content",
        "reasoning_content": "answer.reasoning",
        "role": 'answer.message["role"]',
        "tool_calls": "answer.tool_calls",
    },
}


def lines(owner: str, name: str) -> tuple[str, ...]:
    """Return the lines to write; none where a name is not known.

    Args:
        owner: "llcuda", or the name of a class.
        name: The missing name.
    """
    found = _NAMES.get(owner, {}).get(name, ())
    return (found,) if isinstance(found, str) else found


def hint(owner: str, name: str) -> str:
    """Return the end of an error's message, "" where a name is not known.

    Args:
        owner: As that of `lines`.
        name: As that of `lines`.
    """
    found = lines(owner, name)
    return f"; write {', or '.join(found)}" if found else ""
