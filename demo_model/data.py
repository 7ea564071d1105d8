"""From documents to rows of tokens: the tokenizer, packing, and a stream of rows made in parallel.

A row holds whole documents one after another, each begun by `<|bos|>`, and padding at its end. The
stream never repeats a document and is the same for the same arguments.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo_model.corpus import document

PAD, BOS, IM_START, IM_END = range(4)
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>")
SHARD_DOCUMENTS = 2000
OPEN_ROWS = 16

Rows = NDArray[np.uint16]


def train_tokenizer(vocab_size: int, documents: Sequence[str]) -> Tokenizer:
    """A byte-level BPE with the GPT-2 pattern; the special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def pack(documents: Sequence[Sequence[int]], length: int) -> Rows:
    """Rows of `length` tokens; documents that are too long for a row are left out."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = []
    for tokens in documents:
        if len(tokens) + 1 > length:
            continue
        row = next((row for row in open_rows if len(row) + len(tokens) + 1 <= length), None)
        if row is None:
            row = []
            open_rows.append(row)
            if len(open_rows) > OPEN_ROWS:
                rows.append(open_rows.pop(0))
        row += [BOS, *tokens]
    rows += open_rows
    packed = np.full((len(rows), length), PAD, dtype=np.uint16)
    for packed_row, row in zip(packed, rows, strict=True):
        packed_row[: len(row)] = row
    return packed


_tokenizer: Tokenizer
_length: int


def _start_worker(tokenizer_path: str, length: int) -> None:
    global _tokenizer, _length
    _tokenizer = Tokenizer.from_file(tokenizer_path)
    _length = length


def _make_shard(first: int) -> Rows:
    texts = [document(seed) for seed in range(first, first + SHARD_DOCUMENTS)]
    rows = pack([_tokenizer.encode(text).ids for text in texts], _length)
    np.random.default_rng(first).shuffle(rows)
    return rows


def stream_rows(tokenizer_path: Path, length: int, workers: int, first: int = 0) -> Iterator[Rows]:
    """Shards of rows without end, from documents `first`, `first + 1`..."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, _start_worker, (str(tokenizer_path), length)) as pool:
        pending = [pool.apply_async(_make_shard, (first + i * SHARD_DOCUMENTS,))
                   for i in range(4 * workers)]  # fmt: skip
        submitted = len(pending)
        while True:
            yield pending.pop(0).get()
            start = first + submitted * SHARD_DOCUMENTS
            pending.append(pool.apply_async(_make_shard, (start,)))
            submitted += 1


def stream_batches(shards: Iterator[Rows], batch_size: int) -> Iterator[Rows]:
    """Batches of `batch_size` rows from shards of any size."""
    held = next(shards)
    while True:
        while len(held) < batch_size:
            held = np.concatenate([held, next(shards)])
        yield held[:batch_size]
        held = held[batch_size:]
