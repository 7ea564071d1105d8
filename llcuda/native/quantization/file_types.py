"""The types that a model file, and its tensors, can be quantized to."""

from __future__ import annotations

import difflib
from typing import Any

from llcuda.errors import shown
from llcuda.native.gguf.types import GGMLType
from llcuda.params import wrong_value

FILE_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_1", "Q4_K_M",
    "Q4_K_S", "IQ4_NL", "Q4_0", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S",
    "Q3_K_S", "Q2_K", "TQ2_0", "TQ1_0",
)  # fmt: skip
"""The types of a file that `quantize` writes without an importance matrix, the largest first."""

MATRIX_TYPES = (
    "IQ3_XS", "IQ3_XXS", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
"""The types of a file that need an importance matrix, the largest first."""

TENSOR_TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_1", "Q5_K", "Q5_0", "Q4_1", "Q4_K", "IQ4_NL", "Q4_0",
    "IQ4_XS", "MXFP4", "Q3_K", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0",
    "IQ1_M", "TQ1_0", "IQ1_S",
)  # fmt: skip
"""The types of single tensors, for `tensor_types` of `quantize`, the largest first."""

PLAIN = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)
# Without a matrix llama.cpp's code asserts for the first, and refuses the others.
ASSERTING = {GGMLType.IQ2_XXS, GGMLType.IQ2_XS, GGMLType.IQ1_S}
DEMANDING = {*ASSERTING, GGMLType.IQ3_XXS, GGMLType.IQ2_S, GGMLType.IQ1_M}
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")


def check_file_type(
    name: Any, types: tuple[str, ...] = FILE_TYPES, parameter: str = "file_type"
) -> str:
    """Return the name of a type in upper case.

    Args:
        name: The name, in any case.
        types: The names that are allowed.
        parameter: The name of the caller's parameter, for an error.

    Raises:
        ArgumentError: It is not one of them.
    """
    if not isinstance(name, str) or name.upper() not in types:
        near = difflib.get_close_matches(shown(name).upper(), types, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else None
        raise wrong_value(parameter, name, f"expected one of {', '.join(types)}", hint)
    return name.upper()


def needs_matrix(name: str, kind: GGMLType, file_type: str) -> bool:
    """Return whether a tensor of a type needs an importance matrix, by llama.cpp's rule.

    Args:
        name: The tensor.
        kind: Its type.
        file_type: The type of the whole file.
    """
    return kind in ASSERTING or (
        name not in (*EMBEDDINGS, "output.weight")
        and (kind in DEMANDING or (file_type, kind) == ("Q2_K_S", GGMLType.Q2_K))
    )
