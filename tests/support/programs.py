"""Programs in processes of their own."""

from __future__ import annotations

import subprocess
import sys

# Python 3.12 and newer warn of a fork beside threads, which is what such a program is about.
FORKS = "ignore:This process:DeprecationWarning"
# What makes a program think that it is the kernel of a notebook.
NOTEBOOK = """
import sys, types

shell = types.SimpleNamespace(config={"IPKernelApp": {}})
sys.modules["ipykernel"] = types.ModuleType("ipykernel")
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
"""


def run(
    program: str,
    *arguments: object,
    given: str | None = None,
    timeout: float = 300,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program with the arguments as text, `given` as its input, in an environment."""
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", FORKS, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        input=given,
        env=environment,
    )
