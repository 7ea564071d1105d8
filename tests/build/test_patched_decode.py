"""What patched llama.cpp computes, against the same build with a patch's switch set.

A library that was built without patches passes: there both runs are the same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import run

# Decodes in every way and prints a digest of all logits, and the cells. Argument: a model's file.
DECODES = """
import hashlib, sys
from llcuda import Context, Model
from llcuda.errors import NoRoomError

with Model(sys.argv[1], gpu_layers=0) as model:
    for unified, sequences in ((False, 1), (False, 5), (False, 16), (True, 1), (True, 6)):
        digest = hashlib.sha256()
        with Context(
            model, sequences=sequences, ctx_size=640, unified_kv=unified, threads=1,
            batch_size=64, ubatch_size=16, outputs_max=64,
        ) as context:
            def decode(tokens, seqs):
                context.decode_batch(tokens, seqs, logits=[True] * len(tokens))
                for i in range(len(tokens)):
                    digest.update(context.logits(i).tobytes())
            for seq in range(sequences):  # one micro-batch, and four
                length = 7 + 9 * seq % 58
                decode([(3 * i + seq) % 256 for i in range(length)], [seq] * length)
            for step in range(40):  # one micro-batch each
                decode([(step + seq) % 256 for seq in range(sequences)], list(range(sequences)))
            some = list(range(0, sequences, 2))
            context.memory.remove(0, 20)
            for step in range(5):
                decode([(step * 5 + seq) % 256 for seq in some], some)
            full = 0  # the cells of a sliding window are taken again meanwhile
            try:
                while True:
                    context.decode([full % 256] * 11, 0)
                    full += 1
            except NoRoomError:
                pass
            cells = [context.memory.range(seq) for seq in range(sequences)]
        print(unified, sequences, full, cells, digest.hexdigest())
"""


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_single_ubatch_changes_no_logit_and_no_cell(
    kind: str, model_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    patched = run(DECODES, model_files[kind])
    monkeypatch.setenv("LLCUDA_NO_SINGLE_UBATCH", "1")
    unpatched = run(DECODES, model_files[kind])
    assert 5 == len(patched.stdout.splitlines()), patched.stderr
    assert unpatched.stdout == patched.stdout
