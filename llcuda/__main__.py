"""`python -m llcuda`: the command line."""

from llcuda.cli import main

main()
