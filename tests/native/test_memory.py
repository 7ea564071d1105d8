from __future__ import annotations

import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llcuda import Context, Model
from llcuda.errors import (
    ArgumentError,
    BatchError,
    ContextError,
    FileWriteError,
    StateError,
    UnsupportedError,
)
from llcuda.native.memory import HEADER, checksum

Make = Callable[..., Context]
TOLERANCE = {"rtol": 0, "atol": 5e-3}  # as in test_decode.py
PROMPT = list(range(40, 60))


def logits_after(context: Context, token: int = 7, seq: int = 0) -> np.ndarray:
    """Decode a token and return its logits."""
    context.decode([token], seq)
    return context.logits().copy()


@pytest.fixture
def expected(model: Model, make_context: Make) -> np.ndarray:
    """The logits of a token after PROMPT in a fresh context."""
    context = make_context(model)
    context.decode(PROMPT)
    return logits_after(context)


class TestCells:
    """Operations on the cells of a plain transformer."""

    def test_a_rollback_equals_fresh(
        self, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """Tokens that were rolled back leave no trace."""
        context = make_context(model)
        context.decode([*PROMPT, 1, 2, 3])
        context.memory.rollback(3)
        assert range(len(PROMPT)) == context.memory.range()
        np.testing.assert_allclose(logits_after(context), expected, **TOLERANCE)

    @pytest.mark.parametrize("unified_kv", [True, False])
    def test_a_fork_equals_fresh(
        self, unified_kv: bool, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """Both branches go on from the same text, and do not see each other."""
        context = make_context(model, sequences=2, unified_kv=unified_kv)
        context.decode(PROMPT)
        context.memory.copy(0, 1)
        context.decode([1, 2, 3], seq=0)
        np.testing.assert_allclose(logits_after(context, seq=1), expected, **TOLERANCE)
        assert (len(PROMPT) + 3, len(PROMPT) + 1) == (context.n_past(0), context.n_past(1))

    def test_part_of_a_text_is_copied_with_unified_kv(
        self, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """A common prefix is shared, the rest is not."""
        context = make_context(model, sequences=2)
        context.decode([*PROMPT, 1, 2, 3])
        context.memory.copy(0, 1, 0, len(PROMPT))
        assert range(len(PROMPT)) == context.memory.range(1)
        np.testing.assert_allclose(logits_after(context, seq=1), expected, **TOLERANCE)

    def test_part_of_a_text_is_not_copied_with_split_kv(
        self, model: Model, make_context: Make
    ) -> None:
        """llama.cpp would end the process."""
        context = make_context(model, sequences=2, unified_kv=False)
        context.decode(PROMPT)
        for begin, end in ((0, 5), (3, None), (3, 5)):
            with pytest.raises(UnsupportedError):
                context.memory.copy(0, 1, begin, end)
        assert range(0) == context.memory.range(1)

    def test_a_copy_replaces_what_the_target_held(self, model: Model, make_context: Make) -> None:
        """Two texts never mix."""
        context = make_context(model, sequences=2)
        context.decode([1, 2, 3, 4, 5], seq=1)
        context.decode([6, 7])
        context.memory.copy(0, 1)
        assert range(2) == context.memory.range(1)

    def test_keep_forgets_the_others(self, model: Model, make_context: Make) -> None:
        """One sequence stays."""
        context = make_context(model, sequences=3)
        for seq in range(3):
            context.decode([1, 2], seq)
        context.memory.keep(1)
        assert [0, 2, 0] == [context.n_past(seq) for seq in range(3)]

    def test_a_shift_makes_room_at_the_front(self, model: Model, make_context: Make) -> None:
        """After removing the first tokens the rest moves to the front; decoding goes on."""
        context = make_context(model)
        context.decode(PROMPT)
        context.memory.remove(0, 0, 5)
        context.memory.shift(-5, 0, 5)
        assert range(len(PROMPT) - 5) == context.memory.range()
        assert np.isfinite(logits_after(context)).all()

    @pytest.mark.parametrize("change", ["shift", "divide"])
    def test_a_shift_leaves_a_fork_where_it_is(
        self, change: str, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """Shared cells have one position: the sequence whose positions change gets its own."""
        context, alone = make_context(model, sequences=3), make_context(model)
        for each in (context, alone):
            each.decode(PROMPT)
            if each is context:
                each.memory.copy(0, 1)
                each.memory.copy(1, 2)
            if change == "shift":
                each.memory.remove(0, 5, 10)
                each.memory.shift(-5, 0, 10)
            else:
                each.memory.divide(2, 0, 10)
        assert range(len(PROMPT)) == context.memory.range(1) == context.memory.range(2)
        for seq in (1, 2):
            np.testing.assert_allclose(logits_after(context, seq=seq), expected, **TOLERANCE)
        assert alone.memory.range() == context.memory.range()
        np.testing.assert_allclose(logits_after(context), logits_after(alone), **TOLERANCE)

    def test_a_shift_without_room_for_a_copy_is_refused(
        self, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """Nothing changes; a sequence that has its cells alone shifts."""
        context = make_context(model, sequences=2, ctx_size=128)
        context.decode([*PROMPT, *range(120)])
        context.memory.copy(0, 1)
        with pytest.raises(UnsupportedError):
            context.memory.shift(1)
        context.memory.rollback(120, 1)
        np.testing.assert_allclose(logits_after(context, seq=1), expected, **TOLERANCE)
        context.memory.remove(1)
        context.memory.shift(1)
        assert range(1, 141) == context.memory.range()

    def test_a_shifted_key_is_rotated(self, model: Model, make_context: Make) -> None:
        """Rotary positions are relative: shifting all by one changes next to nothing."""
        plain, shifted = make_context(model), make_context(model)
        for context in (plain, shifted):
            context.decode(PROMPT)
        shifted.memory.shift(1)
        assert range(1, len(PROMPT) + 1) == shifted.memory.range()
        # keys are rotated twice in half precision
        np.testing.assert_allclose(logits_after(shifted), logits_after(plain), rtol=0, atol=0.05)

    def test_a_shift_below_zero_or_beyond_is_refused(self, context: Context) -> None:
        """llama.cpp would drop the cells without a word."""
        context.decode(PROMPT)
        for delta in (-1, -(2**31), 2**31 - 1):
            with pytest.raises(BatchError):
                context.memory.shift(delta)
        assert range(len(PROMPT)) == context.memory.range()

    def test_clear_forgets_everything(self, context: Context) -> None:
        """And the context works on."""
        context.decode(PROMPT)
        context.memory.clear()
        assert range(0) == context.memory.range()
        context.decode(PROMPT)

    @pytest.mark.parametrize(
        ("name", "arguments"),
        [
            ("range", (1,)), ("range", (-1,)), ("range", (2**40,)), ("range", ("a",)),
            ("remove", (9,)), ("remove", (-1,)), ("remove", (0, -1)), ("remove", (0, 0, 2**31)),
            ("remove", (None,)), ("rollback", (-1,)), ("rollback", (1,)), ("rollback", (1.5,)),
            ("copy", (0, 1)), ("copy", (5, 0)), ("copy", ("a", 0)), ("keep", (1,)),
            ("keep", (-1,)), ("shift", (1, 9)), ("shift", (2**40,)), ("shift", (1.5,)),
            ("divide", (0,)), ("divide", (-2,)), ("divide", (2, 4)), ("save", (7,)),
            ("save", (-1,)), ("save", ("a",)), ("save", (None, True)),
        ],
    )  # fmt: skip
    def test_arguments_out_of_range(
        self, name: str, arguments: tuple[Any, ...], context: Context
    ) -> None:
        """Unknown sequences, negative positions, what is no number."""
        with pytest.raises(ArgumentError):
            getattr(context.memory, name)(*arguments)


class TestSlidingWindow:
    """A model whose layers look back 16 tokens."""

    def test_a_full_cache_rolls_back(self, gemma: Model, make_context: Make) -> None:
        """With swa_full every cell stays, so everything works as with a plain model."""
        other, context = make_context(gemma), make_context(gemma)
        other.decode(list(range(30)))
        context.decode([*range(30), 1, 2, 3])
        context.memory.rollback(3)
        np.testing.assert_allclose(logits_after(context), logits_after(other), **TOLERANCE)

    def test_a_small_cache_cannot_go_back_beyond_its_window(
        self, gemma: Model, make_context: Make
    ) -> None:
        """The forgotten cells are gone; the message says that the memory cannot."""
        context = make_context(gemma, swa_full=False, ctx_size=1024, ubatch_size=16, batch_size=16)
        context.decode([token % 250 for token in range(800)])
        assert context.memory.range().start > 500
        with pytest.raises(UnsupportedError):
            context.memory.rollback(700)
        context.memory.rollback(5)
        assert 795 == context.n_past()

    def test_a_state_of_one_sequence_holds_the_window(
        self, gemma: Model, make_context: Make
    ) -> None:
        """It goes on as the original; it goes back only with cells that it has."""
        context, loaded = make_context(gemma), make_context(gemma)
        context.decode(list(range(60)))
        loaded.memory.load(context.memory.save(0), 0)
        for count in (2, 5, 30, 59):
            with pytest.raises(UnsupportedError):
                loaded.memory.rollback(count)
        assert range(44, 60) == loaded.memory.range()
        np.testing.assert_allclose(logits_after(loaded), logits_after(context), **TOLERANCE)
        whole = make_context(gemma)
        whole.memory.load(context.memory.save())
        for same in (context, whole):
            same.memory.rollback(30)
        np.testing.assert_allclose(logits_after(whole), logits_after(context), **TOLERANCE)

    def test_a_shift_keeps_what_the_window_hides(self, gemma: Model, make_context: Make) -> None:
        """With swa_full the beginning is not given to other tokens: the text can go back to it."""
        context, fresh = make_context(gemma), make_context(gemma)
        context.decode(list(range(60)))
        context.memory.remove(0, 5, 25)
        context.memory.shift(-20, 0, 25)
        context.decode(list(range(20)))
        assert range(60) == context.memory.range()
        context.memory.remove(0, 5)
        fresh.decode(list(range(5)))
        for each in (context, fresh):
            each.decode(list(range(50, 80)))
        np.testing.assert_allclose(logits_after(context), logits_after(fresh), **TOLERANCE)

    def test_shared_cells_do_not_shift(self, gemma: Model, make_context: Make) -> None:
        """The state that would make a copy of them lacks what the window hides."""
        context = make_context(gemma, sequences=2)
        context.decode(list(range(60)))
        context.memory.copy(0, 1)
        with pytest.raises(UnsupportedError):
            context.memory.shift(1)
        context.memory.remove(1)
        context.memory.shift(1)
        assert range(1, 61) == context.memory.range()

    def test_a_partial_state_is_a_cheap_checkpoint(self, gemma: Model, make_context: Make) -> None:
        """It holds the window's cells only, and restores them after a rollback."""
        context = make_context(gemma, swa_full=False, ubatch_size=16, batch_size=16)
        context.decode(list(range(100)))
        partial = context.memory.save(0, partial=True)
        assert len(partial) < len(context.memory.save(0))
        expected = logits_after(context)
        context.decode(list(range(30)))
        context.memory.load(partial, 0)
        context.memory.remove(0, 100)
        np.testing.assert_allclose(logits_after(context), expected, **TOLERANCE)


class TestRecurrent:
    """A model with one state for each sequence."""

    def test_a_rollback_is_refused(self, mamba: Model, make_context: Make) -> None:
        """Part of a state cannot be removed; the state stays."""
        context = make_context(mamba)
        context.decode(PROMPT)
        with pytest.raises(UnsupportedError):
            context.memory.rollback(3)
        context.decode([1])
        assert len(PROMPT) + 1 == context.n_past()

    def test_a_state_and_a_fork_go_on_as_the_original(
        self, mamba: Model, make_context: Make
    ) -> None:
        """Whole sequences are copied and saved."""
        context = make_context(mamba, sequences=3)
        context.decode(PROMPT)
        context.memory.copy(0, 1)
        context.memory.load(context.memory.save(0), 2)
        expected = logits_after(context, seq=0)
        for seq in (1, 2):
            np.testing.assert_allclose(logits_after(context, seq=seq), expected, **TOLERANCE)


class TestState:
    """States as bytes and files."""

    def test_a_whole_context_comes_back(
        self, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """In another context of the same size."""
        saved = make_context(model, sequences=2)
        saved.decode(PROMPT)
        saved.decode([1, 2], seq=1)
        context = make_context(model, sequences=2)
        context.decode([5] * 30)
        context.load_state(saved.save_state())
        assert (range(len(PROMPT)), range(2)) == (context.memory.range(0), context.memory.range(1))
        np.testing.assert_allclose(logits_after(context), expected, **TOLERANCE)

    @pytest.mark.parametrize("target", [0, 1, 2])
    def test_a_sequence_comes_back_in_any_sequence(
        self, target: int, model: Model, make_context: Make, expected: np.ndarray
    ) -> None:
        """Of a context of another size, too."""
        saved = make_context(model)
        saved.decode(PROMPT)
        context = make_context(model, sequences=3, ctx_size=512)
        context.decode([9] * 10, seq=target)
        context.load_state(saved.save_state(seq=0), seq=target)
        np.testing.assert_allclose(logits_after(context, seq=target), expected, **TOLERANCE)

    def test_a_file_holds_what_save_state_returned(
        self, context: Context, tmp_path: Path, expected: np.ndarray
    ) -> None:
        """save_state(path) and load_state(path)."""
        context.decode(PROMPT)
        path = tmp_path / "state"
        assert context.save_state(path) == path.read_bytes()
        context.memory.clear()
        context.load_state(path)
        np.testing.assert_allclose(logits_after(context), expected, **TOLERANCE)
        with pytest.raises(OSError, match="no-such-file"):
            context.load_state(tmp_path / "no-such-file")

    def test_a_full_disk_leaves_the_file_of_before(self, context: Context, tmp_path: Path) -> None:
        """save_state(path) replaces a good state by a whole one, or not at all."""
        context.decode(PROMPT)
        path = tmp_path / "state"
        before = context.save_state(path)
        context.decode([1, 2, 3])
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
        try:
            with pytest.raises(FileWriteError, match=r"cannot write .*state: File too large"):
                context.save_state(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert ([path], before) == (list(tmp_path.iterdir()), path.read_bytes())

    @pytest.mark.parametrize("state", [b"", b"x", b"LLCUDAST", b"\0" * 100, bytearray(40)])
    def test_no_state(self, state: bytes, context: Context) -> None:
        """Bytes that save() did not return."""
        with pytest.raises(StateError):
            context.load_state(state)

    def test_any_flipped_byte_is_seen(self, context: Context) -> None:
        """The header is compared, the payload has a checksum."""
        context.decode([1, 2, 3])
        state = bytearray(context.save_state(seq=0))
        for position in [*range(HEADER.size), *range(HEADER.size, len(state), 97)]:
            state[position] ^= 0x10
            with pytest.raises(StateError):
                context.load_state(state, seq=0)
            state[position] ^= 0x10
        context.load_state(state, seq=0)

    def test_a_truncated_state_is_seen(self, context: Context) -> None:
        """Wherever it ends."""
        context.decode([1, 2, 3])
        state = context.save_state()
        for size in range(0, len(state), 101):
            with pytest.raises(StateError):
                context.load_state(state[:size])

    def test_a_state_of_another_kind(self, model: Model, gemma: Model, make_context: Make) -> None:
        """Of another model, KV type or size; a sequence's where a context's is wanted."""
        context = make_context(model)
        context.decode(PROMPT)
        whole, single = context.save_state(), context.save_state(seq=0)
        for other in (
            make_context(gemma),
            make_context(model, type_k="f32"),
            make_context(model, ctx_size=512),
        ):
            with pytest.raises(StateError):
                other.load_state(whole)
        with pytest.raises(StateError):
            make_context(gemma).load_state(single, seq=0)
        with pytest.raises(StateError):
            context.load_state(single)
        with pytest.raises(StateError):
            context.load_state(whole, seq=0)
        with pytest.raises(ArgumentError):
            context.load_state(single, seq=5)

    @pytest.mark.parametrize("kind", ["llama", "gemma3", "mamba"])
    @pytest.mark.parametrize("seq", [None, 0])
    def test_a_forged_payload_never_ends_the_process(
        self, kind: str, seq: int | None, model_files: dict[str, Path], make_context: Make
    ) -> None:
        """With a valid checksum: it loads or is a StateError, and the context can be cleared."""
        random = np.random.default_rng(3)
        with Model(model_files[kind]) as model:
            context = make_context(model, sequences=2)
            context.decode(PROMPT)
            state = context.save_state(seq=seq)
            header = list(HEADER.unpack_from(state))
            for _ in range(60):
                payload = bytearray(state[HEADER.size :])
                for _ in range(random.integers(1, 4)):
                    at = int(random.integers(0, min(len(payload), 300)))
                    size = min(int(random.choice([1, 4, 8])), len(payload) - at)
                    value = int(random.choice([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**62]))
                    payload[at : at + size] = struct.pack("<Q", value)[:size]
                if random.random() < 0.3:
                    del payload[int(random.integers(0, len(payload))) :]
                header[5], header[6] = checksum(tuple(header[:5]), payload), len(payload)
                try:
                    context.load_state(HEADER.pack(*header) + payload, seq=seq)
                    context.decode([1])
                except (StateError, BatchError, UnsupportedError, RuntimeError):
                    pass
                context.memory.clear()
            context.load_state(state, seq=seq)


def test_an_encoder_has_no_memory(bert: Model, make_context: Make) -> None:
    """Every operation says so."""
    context = make_context(bert, embeddings=True)
    for operation in (
        context.memory.range, context.memory.clear, context.save_state, context.n_past,
        context.memory.remove,
    ):  # fmt: skip
        with pytest.raises(UnsupportedError):
            operation()


def test_cells_beyond_the_memory_of_the_machine(model: Model) -> None:
    """Refused before anything is allocated, with both numbers."""
    for parameters in ({"ctx_size": 2**31 - 1}, {"ctx_size": 2**23, "sequences": 255}):
        with pytest.raises(ContextError, match=r"GiB, and .* GiB are free"):
            Context(model, threads=1, **parameters)
