"""The public name of `llcuda.samplers`, the steps of an explicit sampler chain."""

from llcuda.samplers import *  # noqa: F403
