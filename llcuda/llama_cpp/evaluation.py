"""Evaluation: the one text of a `Llama` that its caller evaluates token by token.

It has a context of its own. The array of tokens is what counts: the caller may shorten it or write
into it, and the context computes what differs before the next step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence

import numpy as np
import numpy.typing as npt

from llcuda.errors import ArgumentError, ConcurrencyError, NoOutputError, UnsupportedError
from llcuda.llama_cpp.llama_cache import LlamaState
from llcuda.llama_cpp.llama_speculative import LlamaDraftModel
from llcuda.native.context import Context
from llcuda.native.prompt_length import too_long
from llcuda.native.sampler import Sampler
from llcuda.params import check_number, wrong_argument, wrong_value

Tokens = npt.NDArray[np.intc]
Scores = npt.NDArray[np.single]
Stopping = Callable[[Tokens, Scores], bool]


class Evaluation:
    """Evaluates one text on a context, which is created at the first token.

    Args:
        open_context: Creates the context.
        n_ctx: Tokens of the text at most.
        n_batch: Tokens of one decode at most.
        vocab_size: Tokens of the vocabulary.
        logits_all: Whether the logits of every token are kept.

    Attributes:
        lock: Held while a token is computed.
        input_ids: The tokens, in an array of n_ctx numbers.
        n_tokens: How many of them are the text.
        scores: The logits by token, shape (n_ctx, vocab_size); without logits_all no rows.
        row: The row of the last decode, counted from its end, that the last token was sampled from.
        used: Whether the caller has evaluated tokens or loaded a state.
    """

    def __init__(
        self,
        open_context: Callable[[], Context],
        n_ctx: int,
        n_batch: int,
        vocab_size: int,
        logits_all: bool,
    ) -> None:
        self.lock = threading.RLock()
        self.input_ids: Tokens = np.zeros(n_ctx, dtype=np.intc)
        self.n_tokens = 0
        # Memory is taken for the rows that are written.
        rows = n_ctx if logits_all else 0
        self.scores: Scores = np.zeros((rows, vocab_size), dtype=np.single)
        self.row = -1
        self.used = False
        self._open_context = open_context
        self._context: Context | None = None
        self._n_batch = n_batch
        self._logits_all = logits_all
        self._computed: Tokens = np.zeros(n_ctx, dtype=np.intc)  # the tokens in the context
        self._n_computed = 0
        self._has_logits = False  # of the last token in the context
        self._turn = 0  # of the generator that may go on
        self._generating = False

    @property
    def context(self) -> Context:
        """The context."""
        with self.lock:
            if self._context is None:
                self._context = self._open_context()
            return self._context

    def close(self) -> None:
        """Free the context."""
        if self._context is not None:
            self._context.close()

    def text(self, length: int | None = None) -> Tokens:
        """Return the tokens of the text, or of its beginning."""
        return self.input_ids[: self.n_tokens if length is None else length]

    def note(self, tokens: Sequence[int]) -> None:
        """Take over a text that the engine has computed, unless a generator is at work."""
        with self.lock:
            if not self._generating:
                self.n_tokens = min(len(tokens), len(self.input_ids))
                self.input_ids[: self.n_tokens] = tokens[: self.n_tokens]

    def evaluate(self, tokens: Sequence[int], *, every_row: bool = False) -> None:
        """Append tokens to the text and compute them.

        Args:
            tokens: The tokens.
            every_row: Whether each of them, at most n_batch, is to have logits.

        Raises:
            ContextLengthError: The text has no room for them.
            LlcudaError: As `Context.decode`.
        """
        with self.lock:
            tokens = self.context.model.token_list(tokens, "tokens")
            self._check_length()
            if self.n_tokens + len(tokens) > len(self.input_ids):
                raise too_long(self.n_tokens + len(tokens), len(self.input_ids))
            every_row = every_row or self._logits_all
            self._synchronize()
            for begin in range(0, len(tokens), self._n_batch):
                part = tokens[begin : begin + self._n_batch]
                is_last = begin + len(part) == len(tokens)
                rows = "all" if every_row else "last" if is_last else "none"
                self.context.decode(part, logits=rows)
                end = self.n_tokens + len(part)
                self.input_ids[self.n_tokens : end] = part
                self._computed[self.n_tokens : end] = part
                if self._logits_all:
                    for i in range(len(part)):
                        self.scores[self.n_tokens + i] = self.context.logits(i)
                self.n_tokens = self._n_computed = end
                self._has_logits = is_last

    def _check_length(self) -> None:
        if not 0 <= self.n_tokens <= len(self.input_ids):
            rule = f"expected 0 to n_ctx={len(self.input_ids)}"
            raise wrong_value("n_tokens", self.n_tokens, rule)

    def _synchronize(self) -> None:
        """Let the context hold the text, whatever was done to the array."""
        count = min(self.n_tokens, self._n_computed)
        differing = np.flatnonzero(self.input_ids[:count] != self._computed[:count])
        keep = int(differing[0]) if len(differing) else count
        if keep == self._n_computed == self.n_tokens:
            return
        context = self.context
        if keep < self._n_computed:
            try:
                context.memory.remove(0, keep)
            except UnsupportedError:  # a recurrent state
                context.memory.clear(False)
                keep = 0
            self._n_computed = keep
        self._has_logits = False
        if keep < self.n_tokens:
            rest = self.input_ids[keep : self.n_tokens].tolist()
            context.decode(rest, logits="none")
            self._computed[keep : self.n_tokens] = rest
            self._n_computed = self.n_tokens

    def sample(self, sampler: Sampler, idx: int | None = None) -> int:
        """Choose the token that follows one of the text.

        Args:
            sampler: Chooses it.
            idx: The place of the token that it follows, whose logits were computed last; None = the
                last one.

        Raises:
            ArgumentError: Nothing was evaluated.
            LlcudaError: As `Sampler.sample`.
        """
        with self.lock:
            self._check_length()
            if not self.n_tokens:
                problem = "nothing was evaluated yet"
                raise ArgumentError(problem, remedy="call eval(tokens) first")
            self._synchronize()
            if not self._has_logits:
                self.n_tokens -= 1
                self.evaluate([int(self.input_ids[self.n_tokens])])
            if idx is not None:
                check_number("idx", idx, "int", 0, self.n_tokens - 1)
            self.row = -1 if idx is None else int(idx) - self.n_tokens
            try:
                return sampler.sample(self.context, self.row)
            except NoOutputError:
                rule = "the last decode computed no logits for this token"
                remedy = "leave it out for the last token, or give Llama logits_all=True"
                raise wrong_value("idx", idx, rule, remedy) from None

    def logits(self, row: int = -1) -> Scores:
        """Return the logits of a row of the last decode; an empty text has zeros."""
        if not self._has_logits:
            return np.zeros(self.scores.shape[1], dtype=np.single)
        return self.context.logits(row)

    def generate(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        reset: bool = True,
        stopping: Stopping | None = None,
        draft: LlamaDraftModel | None = None,
    ) -> Generator[int, Sequence[int] | None, None]:
        """Yield the tokens that follow a prompt, without an end.

        A generator ends with ConcurrencyError when a later one has taken over the text. Tokens that
        are sent to it follow the one that it has yielded.

        Args:
            prompt: The tokens of the prompt.
            sampler: Chooses the tokens.
            reset: Whether the prompt is the whole text, of which what is computed already is kept;
                False appends it.
            stopping: Ends the generator before the token that was sampled; see
                `StoppingCriteriaList`.
            draft: Proposes tokens that are verified in one step.
        """
        with self.lock:
            self._turn += 1
            turn, self._generating = self._turn, True
            tokens = self.context.model.token_list(prompt, "tokens")
            if reset:
                if not tokens:
                    raise wrong_argument("tokens", "the prompt is empty", "give at least one token")
                tokens = self._without_computed(tokens)
        try:
            place = self.n_tokens + len(tokens) - 1
            drafted = False
            while True:
                with self.lock:
                    self._check_turn(turn)
                    self.evaluate(tokens, every_row=drafted)
                while place < self.n_tokens:
                    with self.lock:
                        self._check_turn(turn)
                        token = self.sample(sampler, place)
                        place += 1
                        stops = stopping and stopping(self.text(place), self.logits(self.row))
                    if stops:
                        return
                    sent = yield token
                    self._check_turn(turn)
                    tokens = [token, *(sent or ())]
                    if place < self.n_tokens and (sent or token != self.input_ids[place]):
                        self.n_tokens = place
                        break
                place = self.n_tokens + len(tokens) - 1
                drafted = False
                if draft is not None:
                    room = min(self._n_batch, len(self.input_ids) - self.n_tokens) - len(tokens)
                    text = np.append(self.text(), tokens).astype(np.intc)
                    proposal = np.asarray(draft(text)).astype(int).tolist()[: max(0, room)]
                    tokens, drafted = [*tokens, *proposal], bool(proposal)
        finally:
            if turn == self._turn:
                self._generating = False

    def _without_computed(self, tokens: list[int]) -> list[int]:
        """Shorten the text to what a prompt has in common with it; return the rest of the prompt.

        The last token of the prompt is computed again unless its logits are there.
        """
        count = min(len(tokens), self.n_tokens)
        differing = np.flatnonzero(self.input_ids[:count] != np.asarray(tokens[:count], np.intc))
        keep = int(differing[0]) if len(differing) else count
        is_same = keep == len(tokens) == self.n_tokens == self._n_computed
        if is_same and self._has_logits:
            return []
        self.n_tokens = keep - (keep == len(tokens))
        return tokens[self.n_tokens :]

    def _check_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise ConcurrencyError(
                "a later call generates another text on this Llama: finish a generator first, or "
                "create another Llama"
            )

    def save(self, seed: int) -> LlamaState:
        """Return the text and the state of the context.

        Args:
            seed: The seed to keep with it.
        """
        with self.lock:
            self._check_length()
            self._synchronize()
            state = self.context.save_state()
            rows = self.n_tokens if self._logits_all else 0
            scores, input_ids = self.scores[:rows].copy(), self.input_ids.copy()
            return LlamaState(input_ids, scores, self.n_tokens, state, len(state), seed)

    def load(self, state: LlamaState) -> None:
        """Take over what `save` returned.

        Args:
            state: The state, of a `Llama` with the same model and settings.

        Raises:
            StateError: The state does not fit.
        """
        if not isinstance(state, LlamaState):
            raise wrong_value("state", state, "expected what save_state() returned")
        with self.lock:
            self.context.load_state(state.llama_state)
            self._turn += 1
            self._generating = False
            self.n_tokens = self._n_computed = state.n_tokens
            self.input_ids[:] = state.input_ids
            self._computed[:] = state.input_ids
            self._has_logits = False
            self.scores[: len(state.scores)] = state.scores


def logits_to_logprobs(logits: npt.ArrayLike, axis: int = -1) -> Scores:
    """Return log-probabilities of logits: float32 of the same shape.

    Args:
        logits: The logits.
        axis: The axis of the vocabulary.
    """
    values = np.asarray(logits, dtype=np.single)
    highest = np.max(values, axis=axis, keepdims=True)
    shifted = values - np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        logprobs: Scores = shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return logprobs
