"""The process in which `llcuda.structured.trial` compiles a format for the first time.

It runs as a file, by itself, so that it imports nothing but llguidance. The job is one JSON object
on stdin. The answer is the same on stdout: `error` says why llguidance refuses the format, or is
null. A format that passes a bound ends the process without an answer.
"""

import json
import os
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
    if (statm := Path("/proc/self/statm")).is_file():  # Linux; macOS does not keep RLIMIT_AS
        size = int(statm.read_text().split()[0]) * resource.getpagesize()
        size += job["stack_bytes"] + job["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, job["cpu_seconds"])  # SIGPROF ends the process
    threading.stack_size(job["stack_bytes"])
    answers: list[str | None] = []
    run = lambda: answers.append(_error(llguidance, tokenizer, job))  # noqa: E731
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if not answers:  # an exception, as that of too little memory
        os.abort()
    print(json.dumps({"error": answers[0]}))


def _error(llguidance: Any, tokenizer: Any, job: dict[str, Any]) -> str | None:
    """Compile, follow one text for a while, and return the error, None without one."""
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
            return str(job["endless"])
        if time.thread_time() - started > job["mask_seconds"]:
            return "the tokens that may come next take too long to compute"
        bits = int.from_bytes(mask, "little")
        allowed = [byte for byte in range(256) if bits >> byte & 1]
        if not allowed:
            break
        for byte in forced or [choice.choice(allowed)]:
            matcher.consume_token(byte)
    return str(matcher.get_error())[:20_000] if matcher.is_error() else None


if __name__ == "__main__":
    main()
