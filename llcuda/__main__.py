"""`python -m llcuda` and `llcuda`: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Import the command line and run it; Ctrl-C ends the import quietly too."""
    try:
        from llcuda.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as shells have it


if __name__ == "__main__":
    main()
