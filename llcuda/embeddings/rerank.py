"""The tokens that a rerank model expects for a query and a document, cut to a limit.

A model's file has a template for them, or the model separates them by special tokens: BOS query
EOS SEP document EOS, of which each model uses some. Control tokens written in the query or in the
document are read as text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llcuda.errors import ArgumentError, ContextLengthError
from llcuda.native.model import Model
from llcuda.native.prompt_length import is_far_too_long

TEMPLATE = "tokenizer.chat_template.rerank"
_PLACEHOLDERS = re.compile(r"\{(query|document)\}")


class RerankPrompt:
    """The form of a rerank model's prompts.

    Args:
        model: The model.
        limit: Tokens of a prompt at most.
    """

    def __init__(self, model: Model, limit: int) -> None:
        self._model = model
        self._limit = limit
        # The tokens that the tokenizer puts before and after a text.
        added = model.tokenize("")
        has_prefix = len(added) > 1 or model.adds_bos
        self._prefix, self._suffix = (added[:1], added[1:]) if has_prefix else ([], added)
        end = model.sep if model.eos is None else model.eos
        separators = ((end, model.adds_eos), (model.sep, model.adds_sep))
        self._separator = [token for token, adds in separators if adds and token is not None]
        template = model.metadata.get(TEMPLATE)
        self._template_parts = [] if template is None else _split_template(model, template)

    def cut(self, tokens: list[int]) -> list[int]:
        """Return the first `limit` tokens, the last of them the suffix of a text, if it had one."""
        end = self._suffix
        if not end or tokens[-len(end) :] != end or self._limit <= len(end):
            return tokens[: self._limit]
        return tokens[: self._limit - len(end)] + end

    def tokenize(self, query: str, documents: Sequence[str], truncate: bool) -> list[list[int]]:
        """Return the tokens of a query with each document.

        Args:
            query: The query.
            documents: The documents.
            truncate: Whether to drop the end of a document that is too long.

        Raises:
            ArgumentError: A document is too long, or the model's file does not say how a query
                and a document are combined.
        """
        if not isinstance(query, str):
            raise ArgumentError(f"query must be str, not {type(query).__name__}", parameter="query")
        if isinstance(documents, str | bytes) or not hasattr(documents, "__iter__"):
            kind = type(documents).__name__
            raise ArgumentError(
                f"documents must be a list of texts, not {kind}", parameter="documents"
            )
        if not self._template_parts and not self._separator:
            raise ArgumentError(
                f"{self._model.path.name} has neither a template nor a separator token that "
                "combines a query and a document"
            )
        combine = self._by_template if self._template_parts else self._by_separator
        prompts = []
        for i, document in enumerate(documents):
            if not isinstance(document, str):
                kind = type(document).__name__
                raise ArgumentError(
                    f"documents[{i}] must be str, not {kind}", parameter=f"documents[{i}]"
                )
            try:
                if not truncate and is_far_too_long(self._model, document, self._limit):
                    raise self._too_long(f"more than {2 * self._limit}", f"at most {self._limit}")
                prompts.append(combine(query, document, truncate))
            except ArgumentError as error:
                raise error.within(f"documents[{i}]") from error
        return prompts

    def _by_separator(self, query: str, document: str, truncate: bool) -> list[int]:
        query_tokens = self._model.tokenize(query, add_special=False)
        beginning = [*self._prefix, *query_tokens, *self._separator]
        tokens = self._model.tokenize(document, add_special=False)
        room = self._limit - len(beginning) - len(self._suffix)
        self._check_room(len(tokens), room, truncate)
        return [*beginning, *tokens[:room], *self._suffix]

    def _by_template(self, query: str, document: str, truncate: bool) -> list[int]:
        tokens = self._fill_template(query, document)
        if len(tokens) <= self._limit:
            return tokens
        document_tokens = self._model.tokenize(document, add_special=False)
        room = len(document_tokens) + self._limit - len(tokens)
        self._check_room(len(document_tokens), room, truncate)
        while len(tokens) > self._limit:  # the text of a cut document may have more tokens
            cut_document = self._model.detokenize(document_tokens[: max(room, 0)])
            tokens = self._fill_template(query, cut_document)
            self._check_room(0, room if len(tokens) > self._limit else 0, truncate)
            room -= 1
        return tokens

    def _check_room(self, count: int, room: int, truncate: bool) -> None:
        """Raise ArgumentError if `count` tokens of a document do not fit and must not be cut."""
        if room < 0:
            raise ArgumentError(f"the query leaves no room: at most {self._limit} tokens fit")
        if count > room and not truncate:
            raise self._too_long(count, room)

    @staticmethod
    def _too_long(count: int | str, room: int | str) -> ArgumentError:
        return ContextLengthError(
            f"has {count} tokens, and {room} fit beside the query",
            remedy="truncate=True drops its end",
        )

    def _fill_template(self, query: str, document: str) -> list[int]:
        """Return the tokens of the template with both texts in it."""
        texts = {"query": query, "document": document}
        tokens: list[int] = []
        for part, is_control in self._template_parts:
            text = part
            if not is_control:
                text = _PLACEHOLDERS.sub(lambda match: texts[match[1]], part)
            tokens += self._model.tokenize(text, add_special=False, parse_special=is_control)
        return tokens


def _split_template(model: Model, template: str) -> list[tuple[str, bool]]:
    """Return the template's parts, and whether each is a control token.

    The text between two control tokens is one part, because it is tokenized as a whole: a query
    joins the words beside its placeholder.
    """
    tokens = model.tokenize(template, add_special=False, parse_special=True)
    names = {
        model.piece_bytes(token, special=True).decode()
        for token in tokens
        if model.is_control(token)
    }
    if not names:
        return [(template, False)]
    longest_first = sorted(names, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", template)
    return [(part, bool(i % 2)) for i, part in enumerate(parts) if part]
