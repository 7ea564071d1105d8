"""The former name of `llcuda.evaluate`, until the next release."""

import warnings

from llcuda.evaluate import *  # noqa: F403

warnings.warn(
    "llcuda.quality is now llcuda.evaluate; the old name goes in the next release",
    DeprecationWarning,
    stacklevel=2,
)
