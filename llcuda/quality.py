"""The former name of `llcuda.evaluate`."""

from llcuda.evaluate import *  # noqa: F403
