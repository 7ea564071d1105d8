"""Prompts with a gap: the text on both sides, for models that were trained to fill one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llcuda.native.model import Model

# The names of the tokens before the text in front of the gap, before the text behind it, and before
# the answer.
_GAP_NAMES = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # noqa: RUF001
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
)
_REPOSITORY_NAMES = ("<|repo_name|>", "<|fim_repo|>", "<fim-repo>", "<REPO>", "<reponame>")
_FILE_NAMES = ("<|file_sep|>",)
_NAMED_GAP = ("fim_pre", "fim_suf", "fim_mid")  # in the metadata of newer files
_PREFIX_SHARE = 0.75  # of the room, where neither side fits whole


class InfillTokens(NamedTuple):
    """The tokens of a model for prompts with a gap.

    Attributes:
        prefix: Before the text in front of the gap.
        suffix: Before the text behind it.
        middle: Before the answer.
        repository: Before the name of a repository; None without one.
        file: Before the name of a file; None without one.
    """

    prefix: int
    suffix: int
    middle: int
    repository: int | None
    file: int | None

    @classmethod
    def of(cls, model: Model) -> InfillTokens | None:
        """Return those of a model; None for a model that fills no gaps.

        Args:
            model: The model.
        """
        named = [model.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in _NAMED_GAP]
        gap = [int(token) for token in named if token is not None]
        for names in _GAP_NAMES if len(gap) < len(_NAMED_GAP) else ():
            tokens = [_token(model, name) for name in names]
            gap = [token for token in tokens if token is not None]
            if len(gap) == len(names):
                break
        if len(gap) < len(_NAMED_GAP):
            return None
        prefix, suffix, middle = gap
        repository = _first(model, "fim_rep", _REPOSITORY_NAMES)
        return cls(prefix, suffix, middle, repository, _first(model, "fim_sep", _FILE_NAMES))


def _token(model: Model, name: str) -> int | None:
    """Return the token that is written like this."""
    tokens = model.tokenize(name, add_special=False, parse_special=True)
    return tokens[0] if len(tokens) == 1 else None


def _first(model: Model, key: str, names: Sequence[str]) -> int | None:
    named = model.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if named is not None:
        return int(named)
    found = [token for name in names if (token := _token(model, name)) is not None]
    return found[0] if found else None


class InfillPrompt(NamedTuple):
    """A prompt with a gap, and how much was left out of it.

    Attributes:
        tokens: The tokens of the prompt.
        dropped_prefix: Tokens that are left out at the beginning of the prefix.
        dropped_suffix: Tokens that are left out at the end of the suffix.
        dropped_files: Tokens that are left out at the beginning of the other files.
    """

    tokens: list[int]
    dropped_prefix: int = 0
    dropped_suffix: int = 0
    dropped_files: int = 0


def infill_prompt(
    model: Model,
    marks: InfillTokens,
    prefix: str | Sequence[int],
    suffix: str | Sequence[int],
    *,
    files: Sequence[tuple[str, str]] = (),
    limit: int | None = None,
    suffix_first: bool = False,
) -> InfillPrompt:
    """Return a prompt with a gap.

    Control tokens that are written in the texts are text.

    Args:
        model: The model.
        marks: Its tokens for gaps.
        prefix: The text in front of the gap, or its tokens.
        suffix: The text behind it, or its tokens.
        files: Names and texts of other files, the most important ones last.
        limit: The largest number of tokens: the beginning of the prefix, the end of the suffix and
            the first files are left out beyond it. None leaves nothing out.
        suffix_first: Whether the suffix stands before the prefix, as some models want it.
    """
    before = list(prefix) if not isinstance(prefix, str) else model.tokenize(prefix, False)
    behind = list(suffix) if not isinstance(suffix, str) else _inner_tokens(model, suffix)
    first = [model.bos] if model.adds_bos and model.bos is not None else []
    context = _file_tokens(model, marks, files) if files else []
    given = len(before), len(behind), len(context)
    if limit is not None:
        room = max(0, limit - len(first) - 3)
        wanted = int(room * _PREFIX_SHARE)
        taken = min(len(before), max(wanted, room - len(behind)))
        before = before[len(before) - taken :]
        behind = behind[: room - taken]
        room -= taken + len(behind)
        context = context[max(0, len(context) - room) :]
    parts = [[marks.prefix, *before], [marks.suffix, *behind]]
    if suffix_first:
        parts.reverse()
    tokens = [*first, *context, *parts[0], *parts[1], marks.middle]
    kept = len(before), len(behind), len(context)
    return InfillPrompt(tokens, *(had - has for had, has in zip(given, kept, strict=True)))


def _file_tokens(model: Model, marks: InfillTokens, files: Sequence[tuple[str, str]]) -> list[int]:
    """Return the tokens of other files: Qwen2.5-Coder's repository format, arXiv:2409.12186."""
    tokens: list[int] = []
    if marks.repository is not None and marks.file is not None:
        tokens += [marks.repository, *model.tokenize("repository\n", False)]
    for name, text in files:
        if marks.file is None:
            tokens += model.tokenize(f"\n\n--- {name} ---\n\n{text}", False)
        else:
            tokens += [marks.file, *model.tokenize(f"{name}\n{text}", False)]
    if marks.file is not None:
        tokens += [marks.file, *model.tokenize("filename\n", False)]
    return tokens


def _inner_tokens(model: Model, text: str) -> list[int]:
    """Return the tokens of a text that does not begin a text, so that it has no space first."""
    letter = model.tokenize("☺", False)
    tokens = model.tokenize(f"☺{text}", False)
    if tokens[: len(letter)] == letter:
        return tokens[len(letter) :]
    return model.tokenize(text, False)
