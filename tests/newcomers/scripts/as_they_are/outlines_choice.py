"""Outlines: an answer out of a few, and one of a type."""

from typing import Literal

import llcuda.llama_cpp

llcuda.llama_cpp.install()  # in place of `pip install llama-cpp-python`

import outlines
from llama_cpp import Llama

model = outlines.from_llamacpp(Llama("demo", n_ctx=512, verbose=False))
print(model("Is water wet?", Literal["yes", "no"], max_tokens=8))
print(model("How many legs has a spider?", int, max_tokens=4))
