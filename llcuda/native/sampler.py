"""A sampler: parameters or a chain of steps, applied to a context's logits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import numpy as np
import numpy.typing as npt

from llcuda import samplers as steps
from llcuda.errors import ArgumentError, ConcurrencyError, SamplingError
from llcuda.keywords import SamplingKeywords, given_params
from llcuda.native import callbacks, chain, library
from llcuda.params import SamplingParams

if TYPE_CHECKING:
    from llcuda.native.context import Context
    from llcuda.native.model import Model


class Sampler:
    """Chooses tokens from logits. Same seed, same backend, same text.

    parameters: the fields of SamplingParams, or `params=` with one, or `chain=` with steps
        (`llcuda.steps`). model: bind to this model's vocabulary now, so that a bad grammar or
        token is an error here; otherwise at the first `sample`.

    Belongs to one text at a time, as it remembers the tokens that it chose; one thread at a time
    (ConcurrencyError).
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
            raise ArgumentError(f"give one of chain=, params= and keywords, not {given}")
        self.params = (
            None if chain is not None else given_params(SamplingParams, params, parameters)
        )
        self._given_chain = None if chain is None else _check_chain(chain)
        self._seed = self.params.seed if self.params else None
        self._bound: Any = None
        self._handle: library.Handle | None = None
        self._lock = threading.Lock()
        if model is not None:
            self._bind(model)

    @property
    def seed(self) -> int:
        """The seed in use; drawn at random when none was given."""
        if self._seed is None:
            self._seed = self._seed_of_chain()
        return self._seed

    def _seed_of_chain(self) -> int:
        for step in self._given_chain or ():
            if getattr(step, "seed", None) is not None:
                return int(step.seed)  # type: ignore[attr-defined]
        return chain.draw_seed()

    @property
    def chain(self) -> list[steps.Step]:
        """The steps, in order."""
        if self._given_chain is not None:
            return list(self._given_chain)
        assert self.params is not None
        return chain.steps_of(self.params, self.seed)

    def _bind(self, model: Model) -> None:
        if self._bound is not None:
            raise ArgumentError("this sampler belongs to another model; make a new one")
        self._ffi, self._lib = library.load()
        owner = model._handle.owner
        builder = chain.Builder(model._vocab, model.vocab_size, self.seed)
        pointer = builder.build(self.chain)
        draw = builder.draw(self.chain)
        self._attach(model, pointer, owner, builder.handles, draw)

    def _attach(
        self, model: Model, pointer: Any, owner: library.Owner, handles: list[Any], draw: Any
    ) -> None:
        self._model = model
        self._bound = model._vocab
        self._step_handles = handles
        self._handle = library.Handle("sampler", pointer, self._lib.llama_sampler_free, owner)
        self._token = self._ffi.new("int32_t *")
        self._draw = draw  # what a device does instead of the chain
        steps_ = self.chain
        superset, extras = chain.superset_of(steps_)
        self._extras = self._ffi.new("int32_t[]", extras)
        self._sampling = self._ffi.new(
            "struct llcuda_sampling *",
            {
                "chain": pointer,
                "draw": draw or self._ffi.NULL,
                "superset": superset,
                "n_extras": len(extras),
                "extras": self._extras,
                "forced": -1,
                "ranked": isinstance(steps_[0], steps.TopK | steps.Greedy),
                "local": any(isinstance(step, steps.Python) for step in steps_),
            },
        )

    def sample(self, context: Context, i: int = -1) -> int:
        """Choose a token from the logits at `i` of the last decode, and accept it.

        i: index of the token in the last `decode` call; negative counts the computed rows from
            the last one.
        Raises NoOutputError, SamplingError (no candidate left), and what a Python step raises.
        """
        if context.model._vocab is not self._bound:
            self._bind(context.model)
        owner, _alive = context._handle.owner, self._handle.owner  # type: ignore[union-attr]
        if not self._lock.acquire(False):
            self._busy()
        try:
            status = self._lib.llcuda_sample(owner.pointer, self._sampling, i, self._token)
            token: int = self._token[0]
        except (TypeError, OverflowError):
            raise ArgumentError(f"index {i!r}: expected a whole number") from None
        finally:
            self._lock.release()
        if status:
            self._fail(status, lambda: f"logits of token {i}; {context._outputs_text()}")
        return token

    def sample_logits(self, logits: npt.ArrayLike, model: Model | None = None) -> int:
        """Choose a token from logits of one's own, shape (vocab_size,), and accept it."""
        if self._bound is None and model is None:
            raise ArgumentError("this sampler has no model yet: give model=")
        if model is not None and model._vocab is not self._bound:
            self._bind(model)
        try:
            row = np.ascontiguousarray(logits, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"logits must be numbers: {error}") from None
        if row.shape != (self._model.vocab_size,):
            raise ArgumentError(
                f"logits of shape {row.shape}: expected ({self._model.vocab_size},)"
            )
        owner = self._handle.owner  # type: ignore[union-attr]
        data = self._ffi.from_buffer("float[]", row)
        with self._alone():
            status = self._lib.llcuda_sample_logits(owner.pointer, data, len(row), self._token)
            token = int(self._token[0])
        if status:
            self._fail(status, lambda: "logits of one's own")
        return token

    def accept(self, token: int, model: Model | None = None) -> None:
        """Tell the chain of a token that it did not choose (a prompt's, a forced one).

        Raises SamplingError when the grammar does not allow it.
        """
        if self._bound is None:
            if model is None:
                raise ArgumentError("this sampler has no model yet: give model=")
            self._bind(model)
        elif model is not None and model._vocab is not self._bound:
            self._bind(model)
        self._model.check_token(token)
        owner = self._handle.owner  # type: ignore[union-attr]
        with self._alone():
            status = self._lib.llcuda_sampler_accept(owner.pointer, token)
            if self._draw and not status:
                self._lib.llcuda_draw_accept(self._draw, token)
        if status:
            self._fail(status, lambda: f"token {token} is not accepted")

    def reset(self) -> None:
        """Forget the accepted tokens and start the seed anew."""
        if self._handle is not None:
            owner = self._handle.owner
            with self._alone():
                status = self._lib.llcuda_sampler_reset(owner.pointer)
                if self._draw:
                    self._lib.llcuda_draw_reset(self._draw)
            if status:
                self._fail(status, lambda: "reset")

    def close(self) -> None:
        """Free the chain, which holds the model; again does nothing. Its settings can be read."""
        if self._handle is not None:
            self._handle.close()

    def clone(self) -> Sampler:
        """Return a copy in the same state: it goes on as this one would."""
        copy = Sampler.__new__(Sampler)
        copy.params, copy._given_chain, copy._seed = self.params, self._given_chain, self.seed
        copy._bound = copy._handle = None
        copy._lock = threading.Lock()
        if self._handle is not None:
            copy._ffi, copy._lib = self._ffi, self._lib
            owner = self._handle.owner
            with self._alone():
                pointer = self._lib.llcuda_sampler_clone(owner.pointer)
                draw = self._draw and chain.own_draw(self._lib.llcuda_draw_clone(self._draw))
            callbacks.reraise()
            if pointer == self._ffi.NULL:
                library.fail(SamplingError, "this chain cannot be cloned")
            assert owner.parent is not None
            copy._attach(self._model, pointer, owner.parent, self._step_handles, draw)
        return copy

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads, and a step of this chain, out of the chain."""
        if not self._lock.acquire(False):
            self._busy()
        try:
            yield
        finally:
            self._lock.release()

    def _busy(self) -> NoReturn:
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
        raise ArgumentError(f"chain={given!r}: expected a list of steps", parameter="chain")
    checked = list(given)
    for step in checked:
        if type(step) not in chain.STEPS:
            raise ArgumentError(f"chain: {step!r} is no step of llcuda.steps", parameter="chain")
    if not checked or not checked[-1].chooses:
        raise ArgumentError(
            "chain: the last step must choose (Greedy, Distribution, Mirostat, MirostatV2, "
            "AdaptiveP, or a Python step)",
            parameter="chain",
        )
    return checked
