"""The process in which `llcuda.structured.trial` compiles a format for the first time.

It runs as a file, by itself, so that it imports nothing but llguidance. The job is one JSON object
on stdin. The answer is on stdout: why llguidance refuses the format, or nothing. A format that
passes a limit ends the process by a signal.
"""

import json
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Run one job."""
    job = json.load(sys.stdin)
    sys.path.append(job["packages"])
    import llguidance

    tokenizer = llguidance.LLTokenizer("byte")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    size += job["stack_bytes"] + job["memory_bytes"]
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, job["cpu_seconds"])  # SIGPROF ends the process
    threading.stack_size(job["stack_bytes"])
    thread = threading.Thread(target=_try_out, args=(llguidance, tokenizer, job))
    thread.start()
    thread.join()


def _try_out(llguidance: Any, tokenizer: Any, job: dict[str, Any]) -> None:
    """Compile, and follow one text for a while."""
    limits = llguidance.LLParserLimits(**job["limits"])
    matcher = llguidance.LLMatcher(tokenizer, job["source"], log_level=0, limits=limits)
    choice = random.Random(0)
    for _ in range(job["steps"]):
        if matcher.is_error() or matcher.is_stopped():
            break
        started = time.thread_time()
        mask = matcher.compute_bitmask()
        forced = matcher.compute_ff_tokens()
        if len(forced) > job["max_forced"]:
            print(job["endless"])
            return
        if time.thread_time() - started > job["mask_seconds"]:
            print("the tokens that may come next take too long to compute")
            return
        bits = int.from_bytes(mask, "little")
        allowed = [byte for byte in range(256) if bits >> byte & 1]
        if not allowed:
            break
        for byte in forced or [choice.choice(allowed)]:
            matcher.consume_token(byte)
    if matcher.is_error():
        print(matcher.get_error()[:20_000])


if __name__ == "__main__":
    main()
