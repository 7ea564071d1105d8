"""The former name of `llcuda.evaluate`, until the next release."""

from llcuda._lazy import warn_deprecated
from llcuda.evaluate import *  # noqa: F403

warn_deprecated("llcuda.quality", "llcuda.evaluate")
