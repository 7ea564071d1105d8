"""Perplexity, divergence and importance matrices, against numpy over Context's own logits."""

import contextlib
import importlib
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import (
    Context,
    ImportanceMatrix,
    Model,
    demo_model,
    divergence,
    evaluate,
    importance_matrix,
    perplexity,
)
from llcuda.errors import (
    ArgumentError,
    DecodeError,
    LlcudaError,
    LoadCancelledError,
    ModelError,
    ModelNotFoundError,
    UnsupportedError,
)
from llcuda.gguf_parser import GGUFReader
from llcuda.native.quantization.quantize import quantize
from tests.support import models

TEXT = "Once upon a time there was a little fox. The fox had a friend, and they were happy. " * 4
CHUNK = 32
DOWN = "blk.3.ffn_down.weight"
Rows = np.ndarray[Any, np.dtype[np.float64]]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose feed-forward layers are 4 experts, of which each token takes 2."""
    metadata, tensors = models.llama(seed=9)
    metadata |= {"llama.expert_count": 4, "llama.expert_used_count": 2}
    random = np.random.default_rng(9)
    for i in range(models.LAYERS):
        for part in ("gate", "up", "down"):
            weight = tensors.pop(f"blk.{i}.ffn_{part}.weight")
            four = random.normal(0, weight.std(), (4, *weight.shape)).astype(np.float32)
            tensors[f"blk.{i}.ffn_{part}_exps.weight"] = four
        router = random.normal(0, 1, (4, models.EMBEDDING)).astype(np.float32)
        tensors[f"blk.{i}.ffn_gate_inp.weight"] = router
    return models.write(tmp_path_factory.mktemp("experts") / "m.gguf", metadata, tensors)


def log_softmax(logits: Rows) -> Rows:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def scored(path: Path) -> tuple[Rows, Rows]:
    """Return log p of every token at the scored places, and of the tokens that follow there."""
    rows, scores = [], []
    with Model(path) as model, Context(model, ctx_size=CHUNK, threads=1) as context:
        for part in evaluate.split_chunks(model, TEXT, CHUNK):
            context.memory.clear()
            context.decode(part, logits="all")
            for i in range(CHUNK // 2, CHUNK - 1):
                rows.append(context.logits(i).astype(np.float64))
                scores.append(part[i + 1])
    logprobs = log_softmax(np.array(rows))
    return logprobs, logprobs[np.arange(len(scores)), scores]


@pytest.mark.parametrize("logits", [evaluate.MAX_LOGITS, 5 * models.VOCABULARY])
def test_perplexity(
    logits: int, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is exp of the mean of -log p in the chunks' second halves, in batches of any size."""
    monkeypatch.setattr(evaluate, "MAX_LOGITS", logits)
    result = perplexity(model_files["llama"], TEXT, chunk=CHUNK, threads=1)
    _, logprobs = scored(model_files["llama"])
    assert result.value == pytest.approx(np.exp(-logprobs.mean()), rel=1e-4)
    spread = logprobs.std(ddof=0) / np.sqrt(len(logprobs) - 1)
    assert result.error == pytest.approx(result.value * spread, rel=1e-3)
    assert (result.tokens, result.chunk) == (len(logprobs), CHUNK)
    assert result.chunks * (CHUNK // 2 - 1) == result.tokens


def test_divergence(model_files: dict[str, Path], tmp_path: Path) -> None:
    """It is sum p log(p / q) with p the reference's, and its distribution."""
    path = quantize(model_files["llama"], tmp_path / "q.gguf", "Q4_0")
    result = divergence(path, model_files["llama"], TEXT, chunk=CHUNK, threads=1)
    (q, ours), (p, theirs) = scored(path), scored(model_files["llama"])
    exact = (np.exp(p) * (p - q)).sum(axis=1)
    assert result.mean == pytest.approx(exact.mean(), rel=1e-3)
    assert result.error == pytest.approx(exact.std() / np.sqrt(len(exact) - 1), rel=1e-3)
    assert result.maximum == pytest.approx(exact.max(), rel=1e-3)
    assert result.percentiles["90"] == pytest.approx(np.percentile(exact, 90), rel=1e-3)
    assert result.same_best == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean())
    assert result.log_ratio == pytest.approx((theirs - ours).mean(), abs=1e-5)
    differences = np.exp(ours) - np.exp(theirs)
    assert result.delta_p == pytest.approx(np.sqrt((differences**2).mean()), rel=1e-3)
    assert result.perplexity.value == pytest.approx(np.exp(-ours.mean()), rel=1e-4)
    assert result.reference.value == pytest.approx(np.exp(-theirs.mean()), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(model: Model) -> None:
    """Then the divergence is 0 everywhere, with one Model for both too."""
    result = divergence(model, model, TEXT, chunk=CHUNK)
    assert (0, 0, 1, 0) == (result.mean, result.maximum, result.same_best, result.log_ratio)


def test_importance_matrix(model_files: dict[str, Path]) -> None:
    """What the first layer's queries are multiplied with is the norm of the embeddings."""
    matrix = importance_matrix(model_files["llama"], TEXT, chunk=CHUNK, chunks=2, dataset="a")
    _, tensors = models.llama()
    with Model(model_files["llama"]) as model:
        tokens = np.array(evaluate.split_chunks(model, TEXT, CHUNK, 2)).ravel()
    x = tensors["token_embd.weight"][tokens]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)
    expected = ((x * tensors["blk.0.attn_norm.weight"]) ** 2).sum(axis=0)
    for name in ("attn_q", "attn_k", "attn_v"):
        sums, counts = matrix.entries[f"blk.0.{name}.weight"]
        np.testing.assert_allclose(sums, expected[None], rtol=1e-4)
        assert counts.tolist() == [2 * CHUNK]
    weights = {n for n in tensors if n.startswith("blk.") and "norm" not in n}
    assert weights == set(matrix.entries)
    assert (matrix.datasets, matrix.chunks, matrix.chunk_size) == (("a",), 2, CHUNK)
    np.testing.assert_allclose(matrix.means("blk.0.attn_q.weight"), expected / 64, rtol=1e-4)
    assert matrix.means("no.such.weight") is None


def test_the_output_matrix_on_demand(model_files: dict[str, Path]) -> None:
    """output=True adds it."""
    matrix = importance_matrix(model_files["llama"], TEXT, chunk=CHUNK, chunks=1, output=True)
    assert matrix.entries["output.weight"][0].shape == (1, models.EMBEDDING)


def test_experts_have_sums_of_their_own(experts: Path, tmp_path: Path) -> None:
    """Each token counts for the two experts that it takes; quantizing takes such entries."""
    matrix = importance_matrix(experts, TEXT, chunk=CHUNK, chunks=2)
    for i in range(models.LAYERS):
        router, _ = matrix.entries[f"blk.{i}.ffn_gate_inp.weight"]
        for part, columns in (("gate", 64), ("up", 64), ("down", 96)):
            sums, counts = matrix.entries[f"blk.{i}.ffn_{part}_exps.weight"]
            assert sums.shape == (4, columns)
            assert counts.sum() == 2 * 2 * CHUNK
            if part != "down":
                np.testing.assert_allclose(sums.sum(axis=0), 2 * router[0], rtol=1e-4)
    with Model(quantize(experts, tmp_path / "q.gguf", "IQ4_NL", imatrix=matrix)) as model:
        assert perplexity(model, TEXT, chunk=CHUNK).value > 1


def test_a_matrix_moves_the_error(tmp_path: Path) -> None:
    """With it the errors of Q2_K are smaller where a column is used much."""
    f32 = quantize("demo", tmp_path / "f32.gguf", "F32", requantize=True)
    matrix = importance_matrix(f32, TEXT, chunk=CHUNK)
    errors = []
    for given in (None, matrix):
        path = quantize(f32, tmp_path / "q.gguf", "Q2_K", imatrix=given)
        with GGUFReader(f32) as before, GGUFReader(path) as after:
            change = before.numpy(DOWN) - after.numpy(DOWN)
        means = matrix.means(DOWN)
        errors.append((means * change**2).sum())
    assert errors[1] < 0.8 * errors[0]


# --- files ---


@pytest.fixture
def matrix() -> ImportanceMatrix:
    """A matrix with an ordinary entry and one of experts, of which one was never taken."""
    return ImportanceMatrix(
        {
            "blk.0.attn_q.weight": (np.arange(6, dtype="f4").reshape(1, 6), np.array([3], "f4")),
            "blk.0.ffn_up_exps.weight": (np.eye(3, 4, dtype="f4"), np.array([5, 0, 2], "f4")),
        },
        ("a.txt", "b.txt"),
        7,
        512,
    )


def check_equal(a: ImportanceMatrix, b: ImportanceMatrix) -> None:
    assert (a.datasets, a.chunks, a.chunk_size) == (b.datasets, b.chunks, b.chunk_size)
    assert list(a.entries) == list(b.entries)
    for name in a.entries:
        for left, right in zip(a.entries[name], b.entries[name], strict=True):
            np.testing.assert_array_equal(left, right)


def test_files(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    """What was saved is read again; experts without tokens count as all alike."""
    path = matrix.save(tmp_path / "m.gguf")
    check_equal(matrix, ImportanceMatrix.load(path))
    means = matrix.means("blk.0.ffn_up_exps.weight")
    assert means is not None
    assert means.tolist() == pytest.approx([0.2, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0.5, 0])


def old_format(columns: int = 4) -> bytes:
    entry = struct.pack("<i", 8) + b"some.row" + struct.pack("<ii", 2, columns)
    entry += np.arange(4, dtype="f4").tobytes()
    return struct.pack("<i", 1) + entry + struct.pack("<ii", 9, 5) + b"a.txt"


def test_the_older_format(tmp_path: Path) -> None:
    """imatrix.dat has means times a number of calls."""
    path = tmp_path / "imatrix.dat"
    path.write_bytes(old_format())
    matrix = ImportanceMatrix.load(path)
    assert (matrix.datasets, matrix.chunks) == (("a.txt",), 9)
    means = matrix.means("some.row")
    assert means is not None
    assert means.tolist() == [0, 0.5, 1, 1.5]


def test_damaged_files(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    """A file cut anywhere, or changed in a byte, is read or an error of ours."""
    whole = matrix.save(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    random = np.random.default_rng(1)
    for data in (whole, old_format()):
        for end in range(0, len(data) - 40, 7):
            path.write_bytes(data[:end])
            with pytest.raises(ModelError):
                ImportanceMatrix.load(path)
        for _ in range(200):
            changed = bytearray(data)
            changed[random.integers(len(data))] = random.integers(256)
            path.write_bytes(changed)
            with contextlib.suppress(LlcudaError):
                ImportanceMatrix.load(path)


def negative(matrix: ImportanceMatrix) -> None:
    matrix.entries["blk.0.attn_q.weight"][0][0, 2] = -1


def not_a_number(matrix: ImportanceMatrix) -> None:
    matrix.entries["blk.0.attn_q.weight"][0][0, 2] = np.nan


def huge(matrix: ImportanceMatrix) -> None:
    matrix.entries["blk.0.attn_q.weight"][0][0, 2] = 1e35


def empty(matrix: ImportanceMatrix) -> None:
    matrix.entries.clear()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (negative, "attn_q.weight has values that are not sums of squares"),
        (not_a_number, "attn_q.weight has values that are not sums of squares"),
        (huge, "attn_q.weight has values that are not sums of squares"),
        (empty, "it has no entries"),
    ],
)
def test_absurd_values(
    change: Callable[[ImportanceMatrix], None], says: str, matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    """What cannot have been computed is refused when it is read."""
    change(matrix)
    path = matrix.save(tmp_path / "m.gguf")
    with pytest.raises(ModelError, match=says):
        ImportanceMatrix.load(path)


def test_targets_of_matrices(matrix: ImportanceMatrix, tmp_path: Path) -> None:
    """A folder is no target, a missing file no matrix, a model is none."""
    with pytest.raises(ArgumentError, match="is a folder; expected the name of a file"):
        matrix.save(tmp_path)
    with pytest.raises(ModelNotFoundError):
        ImportanceMatrix.load(tmp_path / "none.gguf")
    with pytest.raises(ModelError, match="not an importance matrix"):
        ImportanceMatrix.load(demo_model())


# --- bad input ---


@pytest.mark.parametrize("measure", [perplexity, importance_matrix])
@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"text": ""}, ArgumentError, "chunk=32: the text is shorter, 1 tokens long"),
        ({"text": "Once"}, ArgumentError, "tokens long; give a longer text"),
        ({"text": 5}, ArgumentError, "str or bytes"),
        ({"chunk": 3}, ArgumentError, "chunk=3: expected a whole number at least 4"),
        ({"chunks": 0}, ArgumentError, "chunks=0"),
        ({"model": "none.gguf"}, ModelNotFoundError, "none.gguf"),
        ({"threads": 0}, ArgumentError, "threads=0"),
        ({"chunksize": 5}, TypeError, "chunksize"),
        ({"progress": lambda share: False}, LoadCancelledError, "progress"),
    ],
)
def test_bad_input(
    measure: Callable[..., Any], asked: dict[str, Any], error: type[Exception], says: str,
    model: Model,
) -> None:  # fmt: skip
    """What cannot be measured is said."""
    given = {"model": model, "text": TEXT, "chunk": CHUNK, **asked}
    with pytest.raises(error, match=says):
        measure(given.pop("model"), given.pop("text"), **given)


def test_models_that_do_not_continue_texts(bert: Model) -> None:
    """An encoder has no perplexity."""
    with pytest.raises(UnsupportedError, match="does not generate text token by token"):
        perplexity(bert, TEXT, chunk=CHUNK)


def test_vocabularies_that_differ(
    model: Model, demo: Model, model_files: dict[str, Path], tmp_path: Path
) -> None:
    """A reference with another vocabulary is refused, of another size or with other words."""
    with pytest.raises(ArgumentError, match="the vocabularies differ: the model has 288 tokens"):
        divergence(model, demo, TEXT, chunk=CHUNK)
    metadata, tensors = models.llama()
    metadata["tokenizer.ggml.tokens"][200] = "xyz"
    path = models.write(tmp_path / "other.gguf", metadata, tensors)
    with pytest.raises(ArgumentError, match="stand for other text"):
        divergence(path, model, TEXT, chunk=CHUNK)


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    """A model that computes NaN is an error, of every measure."""
    metadata, tensors = models.llama()
    tensors["output_norm.weight"][:] = np.nan
    path = models.write(tmp_path / "nan.gguf", metadata, tensors)
    for measure in (perplexity, lambda *a, **k: divergence(path, *a, **k)):
        with pytest.raises(DecodeError, match="not numbers"):
            measure(path, TEXT, chunk=CHUNK)  # type: ignore[operator]
    tensors["blk.0.attn_norm.weight"][:] = np.nan
    models.write(path, metadata, tensors)
    with pytest.raises(DecodeError, match=r"blk\.0\.attn_\w\.weight: .* not finite"):
        importance_matrix(path, TEXT, chunk=CHUNK)


def test_ctrl_c_ends_a_measurement(model: Model) -> None:
    """What a progress function raises, as Ctrl-C does, comes out; the model is usable after it."""

    def interrupt(share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perplexity(model, TEXT, chunk=CHUNK, progress=interrupt)
    assert perplexity(model, TEXT, chunk=CHUNK, chunks=1).chunks == 1


# --- the command line ---


def command(*arguments: object, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llcuda", *map(str, arguments)],
        input=text, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_commands(tmp_path: Path) -> None:
    """imatrix, quantize and perplexity take each other's files; --json is one document."""
    (tmp_path / "a.txt").write_text(TEXT * 2)
    done = command("imatrix", "demo", tmp_path / "a.txt", tmp_path / "i.gguf", "--chunk", 32)
    assert (done.returncode, done.stderr) == (0, "")
    assert "i.gguf: 56 tensors, 5 chunks of 32 tokens" in done.stdout
    given = ("--imatrix", tmp_path / "i.gguf", "--tensor-type", "ffn_(up|down)=Q8_0")
    quantizing = ("quantize", "demo", tmp_path / "q.gguf", "Q2_K", "--requantize", *given)
    plan = json.loads(command(*quantizing, "--dry-run", "--json").stdout)
    assert not (tmp_path / "q.gguf").exists()
    assert "ffn_up.weight" in command(*quantizing, "--dry-run").stdout
    done = command(*quantizing, "--json")
    assert plan["nbytes"] < json.loads(done.stdout)["nbytes"] < plan["nbytes"] + 500_000
    measuring = ("perplexity", tmp_path / "q.gguf", "--file", "-", "--chunk", "32")
    assert command(*measuring, text=TEXT).stdout.startswith("perplexity ")
    compared = command(*measuring, "--reference", "demo", text=TEXT)
    assert "same token on top" in compared.stdout
    document = json.loads(command(*measuring, "--reference", "demo", "--json", text=TEXT).stdout)
    assert 0 < document["mean"] < 1 < document["perplexity"]["value"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("quantize", "demo", "q.gguf", "IQ2_XXS"), "needs an importance matrix"),
        (("quantize", "demo", "q.gguf", "Q4_0", "--tensor-type", "Q4_0"), "expected NAME=TYPE"),
        (("quantize", "demo", "q.gguf", "Q9"), "expected one of"),
        (("perplexity", "demo", "-f", "none.txt"), "none.txt cannot be read"),
        (("perplexity", "demo", "-f", "-"), "give a longer text"),
        (("imatrix", "demo", "none.txt", "i.gguf"), "none.txt cannot be read"),
    ],
)
def test_commands_say_what_is_wrong(arguments: tuple[str, ...], says: str) -> None:
    """Wrong arguments are one message and exit status 2."""
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr.replace("\n", " ")


def test_the_former_module_name() -> None:
    """llcuda.quality still has the names, and says where they are now."""
    sys.modules.pop("llcuda.quality", None)
    with pytest.warns(DeprecationWarning, match=r"llcuda\.evaluate"):
        quality = importlib.import_module("llcuda.quality")
    assert quality.perplexity is perplexity
