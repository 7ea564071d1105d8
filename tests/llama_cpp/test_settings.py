"""Llama's arguments: names, numbers, what has no effect; embeddings; facts; install."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llcuda.llama_cpp
from llcuda import Embedder, Model
from llcuda.errors import ArgumentError, GrammarError, ModelError, UnsupportedError
from llcuda.llama_cpp import Llama, LlamaGrammar, LlamaTokenizer, llama_grammar, llama_types
from llcuda.llama_cpp.settings import ENUMS, NAMES
from llcuda.native import library
from tests.support.documents import ROOT


def test_constants_are_those_of_llama_cpp() -> None:
    """Each number is the one that the library was compiled with."""
    _, lib = library.load()
    for prefix, names in ENUMS.items():
        for name in names:
            constant = f"{prefix}{name.upper()}"
            if hasattr(lib, constant):
                assert getattr(llcuda.llama_cpp, constant) == getattr(lib, constant), constant
    assert llcuda.llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED == -1
    assert llcuda.llama_cpp.GGML_TYPE_Q8_0 == 8
    pin = tomllib.loads((ROOT / "vendor" / "llama.cpp.toml").read_text())
    assert llcuda.llama_cpp.__version__ == pin["version"]


def test_names_of_dicts() -> None:
    """They make dicts; other names are not there, with a hint for those of C."""
    made = llama_types.ChatCompletionRequestUserMessage(role="user", content="Hello")
    assert made == {"role": "user", "content": "Hello"}
    assert llcuda.llama_cpp.CreateCompletionResponse == dict[str, Any]
    for name, says in (("llama_decode", "use llcuda.Model"), ("Lama", "no attribute 'Lama'")):
        with pytest.raises(AttributeError, match=says):
            getattr(llcuda.llama_cpp, name)


def test_arguments_reach_llcuda() -> None:
    """Each as llcuda has it."""
    given: dict[str, Any] = {
        "n_ctx": 96,
        "n_batch": 512,
        "n_ubatch": 32,
        "n_threads": 1,
        "n_threads_batch": 2,
        "split_mode": llcuda.llama_cpp.LLAMA_SPLIT_MODE_ROW,
        "rope_scaling_type": llcuda.llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
        "rope_freq_base": 5000.0,
        "yarn_ext_factor": 0.0,
        "flash_attn": True,
        "type_k": llcuda.llama_cpp.GGML_TYPE_Q8_0,
        "type_v": "q8_0",
        "swa_full": False,
        "kv_overrides": {"general.name": "other"},
        "use_mmap": False,
        "n_parallel": 2,
        "verbose": False,
    }
    with Llama("demo", **given) as llama:
        model, context = llama.model.params, llama.ctx.params
        assert (model.split_mode, model.mmap, model.gpu_layers) == ("row", False, 0)
        assert model.overrides == {"general.name": "other"}
        assert (context.ctx_size, context.batch_size, context.ubatch_size) == (96, 96, 32)
        assert (context.threads, context.threads_batch) == (1, 2)
        assert (context.type_k, context.type_v, context.flash_attention) == ("q8_0", "q8_0", True)
        assert (context.rope_scaling, context.rope_freq_base) == ("yarn", 5000.0)
        assert (context.yarn_ext_factor, context.yarn_beta_fast) == (0.0, None)
        assert not context.swa_full and context.sequences == 1
        assert (llama.n_threads, llama.n_threads_batch, llama.n_batch) == (1, 2, 96)


def test_facts() -> None:
    """What a loaded model says of itself; n_ctx=0 is what it was trained on."""
    with Llama("demo", n_ctx=0, n_threads=1, verbose=False) as llama, Model("demo") as model:
        assert llama.n_ctx() == model.train_ctx_size
        assert (llama.n_vocab(), llama.n_embd()) == (model.vocab_size, model.embedding_size)
        assert (llama.token_bos(), llama.token_eos()) == (model.bos, model.eos)
        assert llama.detokenize([llama.token_nl()]) == b"\n"
        assert llama.metadata == dict(model.metadata)
        assert "demo.gguf" in repr(llama) and llama.model_path == "demo"
        assert llama.longest_token_prefix([1, 2, 3], [1, 2, 4]) == 2


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    """vocab_only=True tokenizes; a completion says why there is none."""
    with Llama("demo", vocab_only=True, verbose=False) as llama:
        tokens = llama.tokenize(b"Once upon a time<|im_end|>", special=True)
        assert tokens[-1] == llama.token_eos()
        text = b"Once upon a time"
        assert llama.detokenize(tokens) == text
        assert llama.detokenize(tokens, special=True).endswith(text + b"<|im_end|>")
        assert llama.detokenize(tokens[1:], prev_tokens=tokens[:1]) == text
        own = LlamaTokenizer.from_ggml_file(llama.model.path)
        assert (
            own.encode(text.decode())
            == tokens[:-1]
            == LlamaTokenizer(llama).encode("" + text.decode())
        )
        assert own.decode(tokens) == text.decode()
        with pytest.raises(RuntimeError, match="without vocab_only"):
            llama("Once")


def test_the_vocabulary_as_c_has_it(llm: Llama) -> None:
    """The two functions that Outlines calls."""
    vocab = llcuda.llama_cpp.llama_model_get_vocab(llm.model)
    [token] = llm.tokenize(b" Tom", add_bos=False)
    for name, size, lstrip, piece in (
        (token, 8, 0, b" Tom"),
        (token, 8, 1, b"Tom"),
        (llm.token_eos(), 32, 0, b"<|im_end|>"),
    ):
        buffer = (ctypes.c_char * size)()
        count = llcuda.llama_cpp.llama_token_to_piece(vocab, name, buffer, size, lstrip, True)
        assert buffer[:count] == piece
    buffer = (ctypes.c_char * 2)()
    assert llcuda.llama_cpp.llama_token_to_piece(vocab, token, buffer, 2, 0, True) == -4


@pytest.mark.parametrize(
    ("given", "kind", "says"),
    [
        ({"model_path": "/no/such.gguf"}, ValueError, "model_path='/no/such.gguf': "),
        ({"model_path": "/no/such.gguf"}, FileNotFoundError, "model_path"),
        ({"model_path": __file__}, ModelError, "GGUF"),
        ({"n_ctx": -1}, ArgumentError, "n_ctx=-1: expected a whole number at least 0"),
        ({"n_batch": 0}, ArgumentError, "n_batch=0"),
        ({"n_gpu_layers": -2}, ArgumentError, "n_gpu_layers=-2"),
        ({"n_threads": 0}, ArgumentError, "n_threads=0"),
        ({"split_mode": 7}, ArgumentError, "split_mode=7: expected a whole number from 0 to 3"),
        ({"split_mode": "rows"}, ArgumentError, "split_mode='rows': expected one of none, layer"),
        ({"type_k": 999}, ArgumentError, r"type_k=999: expected one of 0 \(f32\), 1 \(f16\)"),
        ({"type_v": 8, "flash_attn": False}, ArgumentError, "type_v='q8_0': needs flash attention"),
        ({"use_mmap": 1}, ArgumentError, "use_mmap=1: expected True or False"),
        ({"kv_overrides": 5}, ArgumentError, "kv_overrides=5: expected a mapping"),
        ({"lora_path": "/no/such.gguf"}, ModelError, "/no/such.gguf"),
        ({"lora_scale": "much"}, ArgumentError, "lora_scale='much'"),
        ({"seed": "x"}, ArgumentError, "seed='x': expected a whole number; -1 = at random"),
        ({"logits_all": 1}, ArgumentError, "logits_all=1: expected True or False"),
        ({"tokenizer": object()}, ArgumentError, "tokenizer=.*convert the checkpoint"),
        ({"draft_model": 5}, ArgumentError, "draft_model=5: expected a LlamaDraftModel"),
        ({"last_n_tokens_size": -5}, ArgumentError, "last_n_tokens_size=-5"),
        ({"cuda_graphs": "maybe"}, ArgumentError, "cuda_graphs='maybe'"),
        ({"embedding": True, "pooling_type": 4}, ArgumentError, "pooling"),
    ],
)
def test_wrong_arguments(given: dict[str, Any], kind: type[Exception], says: str) -> None:
    """Each is an error of the constructor, in the words of the caller."""
    with pytest.raises(kind, match=says):
        Llama(**{"model_path": "demo", "verbose": False, **given})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("callback_manager", r"Llama\(\) does not know it$"),
        ("n_cxt", r"did you mean n_ctx\?$"),
        ("num_ctx", "this class calls it n_ctx$"),
        ("ctx_size", "this class calls it n_ctx$"),
        ("gpu_layers", "this class calls it n_gpu_layers$"),
        ("temperature", r"a keyword of create_completion\(\)$"),
    ],
)
def test_an_unknown_keyword_is_warned_of(name: str, says: str) -> None:
    """llama-cpp-python ignores it, and LangChain gives some; the model is loaded."""
    with pytest.warns(UserWarning, match=f"^{name}=5: it has no effect; {says}"):
        llama = Llama("demo", verbose=False, n_ctx=64, **{name: 5})
    assert llama.n_ctx() == 64
    assert name not in llama.__getstate__()
    llama.close()


@pytest.mark.parametrize(
    "given",
    [
        {"numa": True},
        {"lora_base": "a.gguf"},
        {"no_perf": True},
        {"n_parts": 3},
        {"device": "cuda"},
    ],
    ids=repr,
)
def test_arguments_without_effect(given: dict[str, Any]) -> None:
    """They are warned of; those of older versions that ask for the usual are not."""
    [(name, value)] = given.items()
    with pytest.warns(UserWarning, match=f"{name}={value!r}: it has no effect"):
        Llama("demo", vocab_only=True, verbose=False, **given).close()
    Llama("demo", vocab_only=True, verbose=False, n_parts=-1, f16_kv=True, device=None).close()


def test_every_name_is_an_argument() -> None:
    """What errors are translated to is what Llama and its methods take."""
    taken = {*Llama.__init__.__annotations__, *Llama.create_completion.__annotations__}
    assert set(NAMES.values()) <= taken


def test_an_adapter(model_files: dict[str, Path]) -> None:
    """It changes the text of the engine and of the context alike."""
    texts, adapter = [], model_files["lora"]
    for scale in (None, 0.0, 4.0):
        given = {} if scale is None else {"lora_path": adapter, "lora_scale": scale}
        with Llama(model_files["llama"], n_ctx=64, n_threads=1, verbose=False, **given) as llama:
            asked: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
            text = llama("Once", **asked)["choices"][0]["text"]
            same = llama("Once", **asked, stopping_criteria=lambda ids, scores: False)
            assert text == same["choices"][0]["text"]
            texts.append(text)
    assert texts[0] == texts[1] != texts[2]


# --- embeddings ---


def test_embeddings(model_files: dict[str, Path]) -> None:
    """The vectors are an Embedder's; a text alone gives one vector."""
    path, texts = model_files["bert"], ["Hello World", "Another text"]
    with Llama(path, n_ctx=64, n_threads=1, embedding=True, verbose=False) as llama:
        vectors, count = llama.embed(texts, return_count=True)
        assert llama.embed(texts[0]) == pytest.approx(vectors[0], abs=1e-4)
        assert np.linalg.norm(llama.embed(texts, normalize=True), axis=1) == pytest.approx([1, 1])
        answer = llama.create_embedding(texts, model="mine")
        assert answer["usage"] == {"prompt_tokens": count, "total_tokens": count}
        assert [item["index"] for item in answer["data"]] == [0, 1]
        assert answer["data"][1]["embedding"] == pytest.approx(vectors[1], abs=1e-4)
        assert len(llama.embed("word " * 500)) == llama.n_embd()
        with pytest.raises(ArgumentError, match="tokens"):
            llama.embed("word " * 500, truncate=False)
        pooling = llama.pooling_type()
    with Model(path) as model, Embedder(model, ctx_size=64, threads=1) as embedder:
        expected = embedder.embed(texts, normalize=False)
        np.testing.assert_allclose(vectors, expected, atol=1e-4)
        assert pooling == ENUMS["LLAMA_POOLING_TYPE_"].index(embedder.pooling)


def test_embeddings_of_tokens() -> None:
    """A model whose file names no pooling gives a vector for each token."""
    with Llama("demo", n_ctx=32, n_batch=8, n_threads=1, embedding=True, verbose=False) as llama:
        tokens = llama.tokenize(b"Once upon a time there was a little girl")
        rows = llama.embed("Once upon a time there was a little girl", normalize=True)
        assert np.shape(rows) == (len(tokens), llama.n_embd())
        assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(tokens)), abs=1e-5)
        assert len(llama.embed(["word " * 100])[0]) == 32
        assert llama.pooling_type() == llcuda.llama_cpp.LLAMA_POOLING_TYPE_NONE
        assert llama("Once", max_tokens=2)["choices"][0]["text"]
        assert llama.embed([]) == []
        for given in (5, ["a", 5], b"a"):
            with pytest.raises(ArgumentError, match=r"input=.*: expected a text or a list"):
                llama.embed(given)


def test_embeddings_must_be_asked_for(llm: Llama) -> None:
    """The error is a RuntimeError, and says how."""
    with pytest.raises(RuntimeError, match="create it with embedding=True"):
        llm.embed("Hello")
    assert issubclass(UnsupportedError, RuntimeError)


# --- grammars ---


def test_grammars(tmp_path: Path) -> None:
    """From a text, a file and a schema; a wrong one is an error that says where."""
    (tmp_path / "a.gbnf").write_text('root ::= "a"')
    assert LlamaGrammar.from_file(tmp_path / "a.gbnf").grammar == 'root ::= "a"'
    assert LlamaGrammar.from_json_schema('{"type": "string"}').schema == {"type": "string"}
    assert LlamaGrammar.from_string(llama_grammar.JSON_GBNF).grammar == llama_grammar.JSON_GBNF
    (tmp_path / "empty.gbnf").touch()
    for call, kind, says in (
        (lambda: LlamaGrammar.from_string("root ::= ("), GrammarError, "parenthesis"),
        (lambda: LlamaGrammar.from_string('a ::= "a"'), GrammarError, "'root' is missing"),
        (lambda: LlamaGrammar.from_string('root ::= root "a"'), GrammarError, "recursive"),
        (lambda: LlamaGrammar.from_file(tmp_path / "b.gbnf"), FileNotFoundError, "file=.*no such"),
        (lambda: LlamaGrammar.from_file(tmp_path / "empty.gbnf"), ArgumentError, "it is empty"),
        (lambda: LlamaGrammar.from_json_schema("{"), ArgumentError, "it is not JSON"),
        (lambda: LlamaGrammar.from_json_schema("[]"), ArgumentError, "expected a JSON schema"),
    ):
        with pytest.raises(kind, match=says):
            call()


def test_json_by_gbnf(llm: Llama) -> None:
    """The grammar of JSON allows JSON alone."""
    grammar = LlamaGrammar.from_string(llama_grammar.JSON_GBNF)
    answer = llm("Answer:", grammar=grammar, temperature=0, max_tokens=5)
    assert answer["choices"][0]["text"].lstrip()[:1] in '{["-0123456789tfn'


# --- install ---


def test_install() -> None:
    """`import llama_cpp` gives these classes once, and says what is not there."""
    program = """
import sys
import llcuda.llama_cpp
llcuda.llama_cpp.install()
llcuda.llama_cpp.install()
import importlib.util
import llama_cpp
from llama_cpp import Llama, LlamaGrammar, LLAMA_SPLIT_MODE_ROW
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
import llama_cpp.llama_types as types
assert Llama is llcuda.llama_cpp.Llama and llama_cpp.llama.Llama is Llama
assert importlib.util.find_spec("llama_cpp") is not None
try:
    import llama_cpp.server
except ModuleNotFoundError as error:
    assert "llcuda serve" in str(error), error
else:
    raise AssertionError
sys.modules["llama_cpp"] = sys
try:
    llcuda.llama_cpp.install()
except RuntimeError as error:
    assert "is imported already" in str(error), error
else:
    raise AssertionError
print("done")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("done\n", "")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from llcuda.llama_cpp import llama_decode",
         "cannot import name 'llama_decode' from 'llcuda.llama_cpp'; use llcuda.Model, Context"),
        ("from llcuda.llama_cpp import nothing", "cannot import name 'nothing'"),
        ("from llcuda.llama_cpp.llama_chat_format import Llava15ChatHandler",
         "images and audio cannot be read yet: give the messages as text"),
        ("from llcuda.llama_cpp.llama_tokenizer import LlamaHFTokenizer",
         r"convert the checkpoint with llcuda.convert\(\)"),
    ],
)  # fmt: skip
def test_an_import_of_what_is_not_there(line: str, told: str) -> None:
    """The ImportError says what to do, as the AttributeError does."""
    with pytest.raises(ImportError, match=told):
        exec(line, {})


def test_a_projector_is_refused() -> None:
    """Ignoring it would leave out the images of a conversation."""
    with pytest.raises(ArgumentError, match=r"clip_model_path='x.*': images and audio cannot"):
        Llama("demo", clip_model_path="x.gguf", verbose=False)
