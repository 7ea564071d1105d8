"""`python -m llcuda`: the command line."""

from llcuda.cli.main import main

main()
