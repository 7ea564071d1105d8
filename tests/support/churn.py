"""A program whose sequences join and leave by chance, for tests that compare two runs of it."""

# Sequences join, leave, share prefixes and are shifted by chance. Prints a digest of all logits,
# and how many calls reused a graph. Arguments: a model's file, where the logits stay, the KV cache,
# the layers on the GPU.
CHURN = """
import hashlib, random, sys
from llcuda import Context, Model
from llcuda.errors import NoOutputError, UnsupportedError

path, left, cache, layers = sys.argv[1:]
chance, digest, skipped = random.Random(7), hashlib.sha256(), 0
with Model(path, gpu_layers=int(layers)) as model, Context(
    model, sequences=6, ctx_size=512, unified_kv=cache == "unified", threads=1, batch_size=512,
    ubatch_size=32, outputs_max=64, device_logits=left == "left",
) as context:
    lengths = [0] * 6
    for step in range(500):
        running = [seq for seq in range(6) if lengths[seq]]
        free = [seq for seq in range(6) if not lengths[seq]]
        event = chance.random()
        if free and (event < 0.1 or not running):  # a prompt of 1 to 9 micro-batches
            tokens = [chance.randrange(256) for _ in range(chance.choice([3, 20, 270]))]
            seqs = free[:1] * len(tokens)
            outputs = [False] * (len(tokens) - 1) + [True]
        elif running and event < 0.17:
            context.memory.remove(chance.choice(running))
            lengths = [len(context.memory.range(seq)) for seq in range(6)]
            continue
        elif free and event < 0.2:
            source = chance.choice(running)
            context.memory.copy(source, free[0])
            lengths[free[0]] = lengths[source]
            continue
        elif event < 0.22 and "lfm2" not in path:  # llama.cpp cannot shift where all windows slide
            seq = running[0]
            try:
                context.memory.remove(seq, 0, 2)
                context.memory.shift(-2, seq, 2)
                lengths[seq] -= 2
            except UnsupportedError:
                skipped += 1
            continue
        else:
            several = 1 + 2 * (event > 0.97)  # tokens of each, as guesses are verified
            seqs = [seq for seq in running for _ in range(several)]
            tokens = [chance.randrange(256) for _ in seqs]
            outputs = [True] * len(seqs)
        if any(lengths[seq] + seqs.count(seq) > 500 for seq in seqs):
            context.memory.clear()
            lengths = [0] * 6
            continue
        context.decode_batch(tokens, seqs, logits=outputs)
        for seq in seqs:
            lengths[seq] += 1
        for row, output in enumerate(outputs):
            try:
                digest.update(context.logits(row).tobytes() if output else b"")
            except NoOutputError:  # an earlier micro-batch's row
                skipped += 1
    print(digest.hexdigest(), skipped, context.timings.graphs_reused)
"""
