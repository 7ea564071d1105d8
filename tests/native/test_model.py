from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llcuda import Adapter, Context, Model, ModelParams
from llcuda.errors import (
    ArgumentError,
    ClosedError,
    ContextError,
    LoadCancelledError,
    ModelError,
    ModelNotFoundError,
)
from tests.support import models


def test_facts_of_a_model(model: Model) -> None:
    """What the file says is what the properties say."""
    assert (models.VOCABULARY, models.BOS, models.EOS) == (model.vocab_size, model.bos, model.eos)
    assert (models.TRAIN_CTX, models.EMBEDDING) == (model.train_ctx_size, model.embedding_size)
    assert (models.LAYERS, True) == (model.layer_count, model.adds_bos)
    parameters = sum(tensor.size for tensor in models.llama()[1].values())
    assert (parameters, 4 * parameters) == (model.parameter_count, model.size)
    assert (True, False, False, False, 0) == (
        model.has_decoder, model.has_encoder, model.is_recurrent, model.is_hybrid,
        model.sliding_window,
    )  # fmt: skip
    assert models.CHAT_TEMPLATE == model.chat_template
    assert "llama" in model.description
    assert model.load_seconds > 0
    assert "llama.gguf" in repr(model)


def test_facts_of_other_kinds(gemma: Model, mamba: Model, bert: Model) -> None:
    """Recurrent, sliding-window and encoder models say so."""
    assert (16, True, False) == (
        gemma.sliding_window,
        mamba.is_recurrent,
        bert.has_encoder and False,
    )


def test_metadata_is_read_only_text(model: Model) -> None:
    """Every key of the file, arrays shortened."""
    assert "tiny llama" == model.metadata["general.name"]
    assert str(models.LAYERS) == model.metadata["llama.block_count"]
    with pytest.raises(TypeError):
        model.metadata["general.name"] = "mine"  # type: ignore[index]


def test_kinds_of_tokens(model: Model) -> None:
    """Ends of generation and control tokens."""
    assert (True, False) == (model.is_eog(models.EOS), model.is_eog(5))
    assert (True, False) == (model.is_control(models.BOS), model.is_control(5))
    for token in (-1, models.VOCABULARY, 2**40, 1.5, "a", None):
        for read in (model.is_eog, model.is_control, model.piece, model.piece_bytes):
            with pytest.raises(ArgumentError):
                read(token)  # type: ignore[arg-type]


def test_progress_counts_from_0_to_1(model_files: dict[str, Path]) -> None:
    """In order, and to the end."""
    heard: list[float] = []
    Model(model_files["llama"], progress=heard.append).close()
    assert sorted(heard) == heard
    assert (True, 1.0) == (0 <= heard[0] < 1, heard[-1])


def test_progress_cancels_with_false(model_files: dict[str, Path]) -> None:
    """False ends the loading; None and True do not."""
    with pytest.raises(LoadCancelledError):
        Model(model_files["llama"], progress=lambda fraction: False)
    Model(model_files["llama"], progress=lambda fraction: True).close()


def test_what_progress_raises_reaches_the_caller(model_files: dict[str, Path]) -> None:
    """The same object; the next load is not touched by it."""
    error = KeyError("mine")

    def progress(fraction: float) -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        Model(model_files["llama"], progress=progress)
    assert error is caught.value
    Model(model_files["llama"]).close()


def test_progress_may_load_another_model(model_files: dict[str, Path]) -> None:
    """Loading inside a load."""

    def progress(fraction: float) -> None:
        Model(model_files["bert"]).close()
        with pytest.raises(ModelError):
            Model(model_files["lora"])

    Model(model_files["llama"], progress=progress).close()


def test_a_progress_bar_is_drawn_on_stderr(
    model_files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Only when asked for, and never on stdout."""
    Model(model_files["llama"], progress=True).close()
    assert "" == capsys.readouterr().out


def test_overrides_change_metadata(model_files: dict[str, Path]) -> None:
    """Ints, floats, bools and texts, under the key's name; a wrong type is an error."""
    given = {
        "llama.context_length": 77,
        "tokenizer.ggml.add_bos_token": False,
        "llama.rope.freq_base": 5.0,
    }
    with Model(model_files["llama"], overrides=given) as model:
        assert (77, False) == (model.train_ctx_size, model.adds_bos)
        assert models.BOS not in model.tokenize("the")
    with pytest.raises(ArgumentError, match="context_length"):
        Model(model_files["llama"], overrides={"llama.context_length": "long"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.head_count", 0), ("llama.block_count", 10**9),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("llama.rope.dimension_count", 7),
    ],
)  # fmt: skip
def test_hostile_overrides(key: str, value: Any, model_files: dict[str, Path]) -> None:
    """As hostile files: an error when loading or when the first context is made."""
    with (
        pytest.raises((ModelError, ContextError)),
        Model(model_files["llama"], overrides={key: value}) as model,
    ):
        Context(model, threads=2, ctx_size=64)


@pytest.mark.parametrize(
    "parameters",
    [{"mmap": False}, {"mlock": True}, {"check_tensors": True}, {"gpu_layers": 0},
     {"gpu_layers": 10**6}, {"split_mode": "none"}, {"split_mode": "row"}, {"devices": []},
     {"tensor_split": [1.0]}, {"main_gpu": 5}],
    ids=str,
)  # fmt: skip
def test_ways_to_load(parameters: dict[str, Any], model_files: dict[str, Path]) -> None:
    """Each loads, or is an error of ours where this machine cannot."""
    try:
        with Model(model_files["llama"], **parameters) as model:
            assert [5] == model.tokenize(models.byte_letters()[5])[-1:] or model.vocab_size
    except ModelError as error:
        assert "main_gpu" in str(parameters) or "split_mode" in str(parameters), error


def test_parameters_that_do_not_fit(model_files: dict[str, Path]) -> None:
    """Unknown devices, too many shares, params= and keywords together."""
    path = model_files["llama"]
    for parameters in (
        {"devices": ["no-such-device"]},
        {"tensor_split": [1.0] * 1000},
        {"split_mode": "tensor", "devices": []},
        {"split_mode": "none", "main_gpu": 1, "devices": ["CPU"]},
        {"params": ModelParams(), "mmap": False},
    ):
        with pytest.raises(ArgumentError):
            Model(path, **parameters)


def test_no_file(tmp_path: Path) -> None:
    """Missing, a folder, without permission, a name that cannot be one."""
    with pytest.raises(ModelNotFoundError, match="no-such"):
        Model(tmp_path / "no-such.gguf")
    with pytest.raises(FileNotFoundError):
        Model(tmp_path / "no-such.gguf")
    with pytest.raises(ModelError):
        Model(tmp_path)
    with pytest.raises(ModelError):
        Model("a\0b")
    with pytest.raises(ModelError):
        Model("x" * 5000)
    with pytest.raises(ModelError):
        Model(os.devnull)
    for path in (None, 5, b"bytes.gguf", ["list"]):
        with pytest.raises((TypeError, ModelError)):
            Model(path)  # type: ignore[arg-type]


def test_a_name_that_is_no_ascii(model_files: dict[str, Path], tmp_path: Path) -> None:
    """Bytes that are no UTF-8 too."""
    for name in ("modèle 猫.gguf", os.fsdecode(b"\xff\xfe.gguf")):
        shutil.copy(model_files["llama"], tmp_path / name)
        with Model(tmp_path / name) as model:
            assert models.VOCABULARY == model.vocab_size


def test_a_vocabulary_alone_has_no_context(model_files: dict[str, Path]) -> None:
    """vocab_only=True tokenizes, and says why it does not decode."""
    with Model(model_files["llama"], vocab_only=True) as model:
        assert model.tokenize("the cat")
        with pytest.raises(ContextError, match="vocab_only"):
            Context(model)


def test_the_c_log_reaches_logging(
    model_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp's information at DEBUG; nothing of it at WARNING."""
    with caplog.at_level(logging.DEBUG, "llcuda"):
        Model(model_files["llama"]).close()
    assert any("llama_model_loader" in line for line in caplog.messages)
    assert {logging.DEBUG} >= {r.levelno for r in caplog.records if "loader" in r.message}
    caplog.clear()
    with caplog.at_level(logging.WARNING, "llcuda"):
        Model(model_files["llama"]).close()
    assert [] == caplog.messages


def test_nothing_is_printed(
    model_files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither when it works nor when it does not."""
    with Model(model_files["llama"]) as model, Context(model, threads=1) as context:
        context.decode([1, 2, 3])
        with pytest.raises(ArgumentError):
            context.decode([10**6])
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 50)
    with pytest.raises(ModelError):
        Model(tmp_path / "bad.gguf")
    assert ("", "") == capfd.readouterr()


def test_an_error_quotes_the_log_of_its_own_call(tmp_path: Path) -> None:
    """The reason is in the message."""
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + b"\0" * 16)
    with pytest.raises(ModelError, match="unknown model architecture"):
        Model(path)


TOLERANCE = {"rtol": 0, "atol": 5e-3}  # as in test_decode.py


class TestAdapters:
    """LoRA."""

    def test_an_adapter_changes_logits_as_merged_weights_do(
        self, model: Model, adapter: Adapter, make_context: Any, tmp_path: Path
    ) -> None:
        """Scale 1 equals W + alpha / rank * B A; scale 0 and no adapter equal the model alone."""
        import numpy as np

        metadata, tensors = models.llama()
        merged = models.merged(tensors, models.lora()[1])
        with Model(models.write(tmp_path / "merged.gguf", metadata, merged)) as other:
            reference, plain, context = (make_context(m) for m in (other, model, model))
            for each in (reference, plain):
                each.decode([1, 2, 3])
            for adapters, expected in (
                ({adapter: 1.0}, reference), ({adapter: 0.0}, plain), ({adapter: 1}, reference),
                ({}, plain),
            ):  # fmt: skip
                context.memory.clear()
                context.set_adapters(adapters)
                context.decode([1, 2, 3])
                np.testing.assert_allclose(context.logits(), expected.logits(), **TOLERANCE)
            assert not np.allclose(reference.logits(), plain.logits(), **TOLERANCE)

    def test_metadata(self, adapter: Adapter) -> None:
        """The adapter file's own."""
        assert "lora" == adapter.metadata["adapter.type"]

    def test_an_adapter_of_another_model_is_refused(
        self, adapter: Adapter, gemma: Model, make_context: Any, tmp_path: Path
    ) -> None:
        """When it is applied elsewhere, and when it is loaded for what it does not fit."""
        with pytest.raises(ArgumentError, match="another model"):
            make_context(gemma).set_adapters({adapter: 1.0})
        with pytest.raises(ModelError):
            Adapter(gemma, adapter.path)
        wrong = models.write(tmp_path / "wrong.gguf", *models.lora(embedding=32))
        with pytest.raises(ModelError):
            Adapter(Model(adapter.path.with_name("llama.gguf")), wrong)

    def test_no_adapter(self, model: Model, model_files: dict[str, Path], tmp_path: Path) -> None:
        """A model file, no file, damage."""
        for path in (model_files["llama"], tmp_path / "none.gguf"):
            with pytest.raises(ModelError):
                Adapter(model, path)
        content = model_files["lora"].read_bytes()
        for size in range(0, len(content), 500):
            (tmp_path / "cut.gguf").write_bytes(content[:size])
            with pytest.raises(ModelError):
                Adapter(model, tmp_path / "cut.gguf")

    @pytest.mark.parametrize("scale", ["x", None, [], float("nan"), float("inf"), 10**7])
    def test_no_scale(self, scale: Any, model: Model, adapter: Adapter, make_context: Any) -> None:
        """A scale is a finite number."""
        with pytest.raises(ArgumentError):
            make_context(model).set_adapters({adapter: scale})

    def test_no_mapping(self, model: Model, make_context: Any) -> None:
        """Adapters come as a mapping to scales."""
        for adapters in ([], None, {"a": 1.0}, 5):
            with pytest.raises(ArgumentError):
                make_context(model).set_adapters(adapters)


def test_use_after_close(model_files: dict[str, Path]) -> None:
    """Every method says that the model is closed; close() again does nothing."""
    model = Model(model_files["llama"])
    model.close()
    model.close()
    assert model.closed
    for use in (
        lambda: model.tokenize("a"), lambda: model.detokenize([1]), lambda: model.piece(1),
        lambda: model.is_eog(1), lambda: model.is_control(1), lambda: dict(model.metadata),
        lambda: model.chat_template, lambda: Context(model), lambda: Adapter(model, model.path),
    ):  # fmt: skip
        with pytest.raises((ClosedError, ModelError)):
            use()
    assert "closed" in repr(model)


def test_the_old_name_of_max_positions(model: Model) -> None:
    """It warns."""
    with pytest.warns(DeprecationWarning, match="max_positions"):
        assert model.max_positions == model.most_positions
