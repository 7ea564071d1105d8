"""A sampler: parameters or a chain of steps, applied to a context's logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, Unpack

import numpy as np
import numpy.typing as npt

from llcuda import samplers as steps
from llcuda._pickling import stays_in_process
from llcuda.errors import ArgumentError, ConcurrencyError, SamplingError, shown
from llcuda.keywords import SamplingKeywords, given_params
from llcuda.native import callbacks, library
from llcuda.native.chain import (
    STEPS,
    ChainBuilder,
    Part,
    clone_chain,
    draw_seed,
    owned_draw,
    steps_of,
    superset_of,
)
from llcuda.native.context import Context
from llcuda.native.model import Model, check_model
from llcuda.params import SamplingParams, wrong_argument, wrong_value


@stays_in_process("its params or its chain, and its seed")
class Sampler:
    """Chooses tokens from logits; the same seed on the same backend gives the same text.

    A sampler remembers the tokens that it chose, so it belongs to one sequence, and to one thread
    at a time.

    Args:
        chain: The steps of `llcuda.steps` to apply, in order; the last one must choose.
        params: The parameters as one object, in place of `chain`.
        model: Bind to the vocabulary of this model now, so that a grammar or a token that does not
            fit is an error here; else the first `sample` binds.
        **parameters: The fields of `SamplingParams`, in place of `params` and `chain`.

    Attributes:
        params (SamplingParams | None): The parameters in use; None with `chain`.

    Raises:
        ArgumentError: A parameter is not allowed.
        GrammarError: The grammar does not parse.
        ConcurrencyError: From every method, while another thread is inside the sampler.
    """

    def __init__(
        self,
        *,
        chain: Sequence[steps.Step] | None = None,
        params: SamplingParams | None = None,
        model: Model | None = None,
        **parameters: Unpack[SamplingKeywords],
    ) -> None:
        given = [n for n, v in (("chain", chain), ("params", params)) if v is not None]
        if len(given) + bool(parameters) > 1:
            names = ", ".join([*given, *parameters])
            problem = f"{names}: expected one of chain=, params= and keywords"
            raise ArgumentError(
                problem, parameter=given[-1], remedy="put all settings into one of them"
            )
        self.params = (
            None if chain is not None else given_params(SamplingParams, params, parameters, Sampler)
        )
        self._given_chain = None if chain is None else _check_chain(chain)
        self._seed = self.params.seed if self.params else None
        self._vocab: Any = None
        # handle and sampling, once bound, are for the rest of llcuda.native.
        self.handle: library.Handle | None = None
        self.sampling: Any = None
        self._lock = threading.Lock()
        if model is not None:
            self.bind(model)

    @property
    def seed(self) -> int:
        """The seed in use; drawn at random if none was given."""
        if self._seed is None:
            self._seed = self._seed_of_chain()
        return self._seed

    def _seed_of_chain(self) -> int:
        for step in self._given_chain or ():
            if getattr(step, "seed", None) is not None:
                return int(step.seed)  # type: ignore[attr-defined]
        return draw_seed()

    @property
    def chain(self) -> list[steps.Step]:
        """The steps, in order."""
        if self._given_chain is not None:
            return list(self._given_chain)
        assert self.params is not None
        return steps_of(self.params, self.seed)

    def bind(self, model: Model) -> None:
        """Bind to the vocabulary of a model, unless already bound to it.

        Args:
            model: The model.

        Raises:
            ArgumentError: The sampler belongs to another model, or a token is outside the
                vocabulary.
            GrammarError: The grammar does not parse.
        """
        check_model(model)
        if self._vocab is model.vocab:
            return
        if self._vocab is not None:
            raise ArgumentError(
                "model: this sampler belongs to another model",
                parameter="model",
                remedy="create one for each model",
            )
        self._ffi, self._lib = library.load()
        owner = model.handle.owner
        builder = ChainBuilder(model.vocab, model.vocab_size, self.seed)
        pointer = builder.build(self.chain)
        draw = builder.device_draw(self.chain)
        self._attach(model, pointer, builder.parts, owner, builder.handles, draw)

    def _attach(
        self,
        model: Model,
        pointer: Any,
        parts: list[Part],
        owner: library.Owner,
        handles: list[Any],
        draw: Any,
    ) -> None:
        self._model = model
        self._parts = parts
        self._vocab = model.vocab
        self._step_handles = handles
        self.handle = library.Handle("sampler", pointer, self._lib.llama_sampler_free, owner)
        self._token = self._ffi.new("int32_t *")
        self._draw = draw  # what a device does in place of the chain
        chain = self.chain
        superset, extras = superset_of(chain)
        self._extras = self._ffi.new("int32_t[]", extras)
        self.sampling = self._ffi.new(
            "struct llcuda_sampling *",
            {
                "chain": pointer,
                "draw": draw or self._ffi.NULL,
                "superset": superset,
                "n_extras": len(extras),
                "extras": self._extras,
                "forced": -1,
                "ranked": isinstance(chain[0], steps.TopK | steps.Greedy),
                "local": any(isinstance(step, steps.Python) for step in chain),
            },
        )

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from logits of the last decode, and accept it.

        Args:
            context: The context.
            i: The index of the row, as in `Context.logits`.

        Returns:
            The token.

        Raises:
            NoOutputError: No logits were computed for the row.
            SamplingError: No candidate is left.
            Exception: What a Python step raised.
        """
        if not isinstance(context, Context):
            raise wrong_value("context", context, "expected a Context")
        if context.model.vocab is not self._vocab:
            self.bind(context.model)
        owner, _alive = context.handle.owner, self.handle.owner  # type: ignore[union-attr]
        if not self._lock.acquire(False):
            self._raise_busy()
        try:
            status = self._lib.llcuda_sample(owner.pointer, self.sampling, i, self._token)
            token: int = self._token[0]
        except (TypeError, OverflowError):
            raise wrong_value("i", i, "expected a whole number") from None
        finally:
            self._lock.release()
        if status:
            del owner, _alive  # or the error's traceback would keep the weights
            self._fail(status, lambda: f"logits of token {i}; {context.describe_outputs()}")
        return token

    def sample_logits(self, logits: npt.ArrayLike, model: Model | None = None) -> int:
        """Choose a token from given logits, and accept it.

        Args:
            logits: Numbers of shape (vocab_size,).
            model: The model, for a sampler that is not bound yet.

        Returns:
            The token.

        Raises:
            ArgumentError: The logits are not numbers of that shape, or `model` is missing.
            SamplingError: No candidate is left.
        """
        self._bind_to(model)
        try:
            row = np.ascontiguousarray(logits, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise wrong_argument("logits", f"expected numbers: {error}") from None
        if row.shape != (self._model.vocab_size,):
            raise wrong_argument(
                "logits", f"shape {row.shape}, expected ({self._model.vocab_size},)"
            )
        owner = self.handle.owner  # type: ignore[union-attr]
        data = self._ffi.from_buffer("float[]", row)
        with self._locked():
            status = self._lib.llcuda_sample_logits(owner.pointer, data, len(row), self._token)
            token = int(self._token[0])
        if status:
            self._fail(status, lambda: "given logits")
        return token

    def accept(self, token: int, model: Model | None = None) -> None:
        """Tell the chain of a token of the text that it did not choose.

        `accept_prompt` tells it of the tokens before the text.

        Args:
            token: The token.
            model: The model, for a sampler that is not bound yet.

        Raises:
            ArgumentError: The token is outside the vocabulary, or `model` is missing.
            SamplingError: The grammar does not allow the token.
        """
        self._bind_to(model)
        self._model.check_token(token)
        owner = self.handle.owner  # type: ignore[union-attr]
        with self._locked():
            status = self._lib.llcuda_sampler_accept(owner.pointer, token)
            if self._draw and not status:
                self._lib.llcuda_draw_accept(self._draw, token)
        if status:
            self._fail(status, lambda: f"token {token} is not accepted")

    def accept_prompt(self, tokens: Sequence[int], model: Model | None = None) -> None:
        """Tell the chain of the tokens before the text.

        The repetition penalty and DRY count them. The presence and frequency penalties count the
        text alone, which also follows its grammar alone. Call it before the first `sample`.

        Args:
            tokens: The tokens of the prompt.
            model: The model, for a sampler that is not bound yet.

        Raises:
            ArgumentError: A token is outside the vocabulary, or `model` is missing.
        """
        self._bind_to(model)
        window = max(part.prompt_window for part in self._parts)
        if not window:
            return
        last = self._model.token_list(tokens[-window:], "tokens")
        with self._locked():
            owner = self.handle.owner  # type: ignore[union-attr]
            for part in self._parts:
                for token in last[-part.prompt_window :] if part.prompt_window else ():
                    self._lib.llcuda_sampler_accept(part.pointer, token)
                    if self._draw:  # then no other part counts the prompt
                        self._lib.llcuda_draw_accept(self._draw, token)
            del owner

    def reset(self) -> None:
        """Forget the accepted tokens, also the prompt's, and restart the random numbers."""
        if self.handle is not None:
            owner = self.handle.owner
            with self._locked():
                status = self._lib.llcuda_sampler_reset(owner.pointer)
                if self._draw:
                    self._lib.llcuda_draw_reset(self._draw)
            if status:
                self._fail(status, lambda: "reset")

    def close(self) -> None:
        """Free the chain and let go of the model; the settings stay readable."""
        if self.handle is not None:
            self.handle.close()

    def clone(self) -> Sampler:
        """Return a copy in the same state, which would choose the same tokens.

        Raises:
            SamplingError: llama.cpp cannot clone the chain.
        """
        copy = Sampler.__new__(Sampler)
        copy.params, copy._given_chain, copy._seed = self.params, self._given_chain, self.seed
        copy._vocab = copy.handle = copy.sampling = None
        copy._lock = threading.Lock()
        if self.handle is not None:
            copy._ffi, copy._lib = self._ffi, self._lib
            owner = self.handle.owner
            with self._locked():
                draw = self._draw and owned_draw(self._lib.llcuda_draw_clone(self._draw))
                pointer, parts = clone_chain(self._parts)
            assert owner.parent is not None
            copy._attach(self._model, pointer, parts, owner.parent, self._step_handles, draw)
        return copy

    def _bind_to(self, model: Model | None) -> None:
        if model is not None:
            self.bind(model)
        elif self._vocab is None:
            raise wrong_argument("model", "this sampler has no model yet", "give model=")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other threads, and a Python step of this chain, out of the chain."""
        if not self._lock.acquire(False):
            self._raise_busy()
        try:
            yield
        finally:
            self._lock.release()

    def _raise_busy(self) -> NoReturn:
        raise ConcurrencyError("another thread, or a step of its own, is inside this sampler")

    def _fail(self, status: int, message: Any) -> None:
        if status == self._lib.LLCUDA_EXCEPTION:
            callbacks.reraise()
            library.fail(SamplingError, message())
        library.check(status, message)

    def __repr__(self) -> str:
        return f"<llcuda.Sampler seed={self.seed} {self.chain}>"


def _check_chain(given: Sequence[steps.Step]) -> list[steps.Step]:
    if not isinstance(given, Sequence):
        raise wrong_value("chain", given, "expected a list of steps")
    checked = list(given)
    for step in checked:
        if type(step) not in STEPS:
            raise wrong_argument("chain", f"{shown(step)} is not a step of llcuda.steps")
    if not checked or not checked[-1].chooses:
        raise wrong_argument(
            "chain",
            "the last step must choose (Greedy, Distribution, Mirostat, MirostatV2, "
            "AdaptiveP, or a Python step)",
        )
    return checked
