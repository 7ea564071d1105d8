"""The transformer in plain PyTorch: llama architecture, grouped-query attention, tied embeddings.

RoPE rotates neighbouring pairs (the interleaved form), which is what llama.cpp expects of the llama
architecture, so weights are exported as they are. Knows nothing of text, files or training.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of a model; rows are multiples of 256, so that every quantization fits."""

    vocab_size: int = 2560
    width: int = 256
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 512
    context: int = 1024
    rope_base: float = 10000.0
    norm_epsilon: float = 1e-5

    @property
    def head_width(self) -> int:
        """Elements of one attention head."""
        return self.width // self.heads


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on (batch, heads, length, head_width): elements 2i and 2i+1 form a pair."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Ordinary causal attention within each row."""
    return functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )


class Block(nn.Module):
    """One layer: attention and SwiGLU, each behind an RMSNorm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv_width = shape.kv_heads * shape.head_width
        self.attn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.attn_q = nn.Linear(shape.width, shape.width, bias=False)
        self.attn_k = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_v = nn.Linear(shape.width, kv_width, bias=False)
        self.attn_output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        self.ffn_gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attention) -> Tensor:
        """(batch, length, width) to the same shape."""
        batch, length, width = x.shape
        normed = self.attn_norm(x)

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, length, -1, self.shape.head_width).transpose(1, 2)

        query = rotate(heads(self.attn_q(normed)), cos, sin)
        key = rotate(heads(self.attn_k(normed)), cos, sin)
        value = heads(self.attn_v(normed))
        attended = attend(query.to(value.dtype), key.to(value.dtype), value)
        x = x + self.attn_output(attended.transpose(1, 2).reshape(batch, length, width))
        normed = self.ffn_norm(x)
        down: Tensor = self.ffn_down(functional.silu(self.ffn_gate(normed)) * self.ffn_up(normed))
        return x + down


class Transformer(nn.Module):
    """Tokens in, logits out; parameter names are those of GGUF (`blk.0.attn_q.weight`)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(shape.vocab_size, shape.width)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.RMSNorm(shape.width, shape.norm_epsilon)
        pairs = torch.arange(0, shape.head_width, 2) / shape.head_width
        angles = torch.outer(torch.arange(shape.context), shape.rope_base**-pairs)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                small = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * shape.layers) ** 0.5 if small else 0.02)

    def hidden(self, tokens: Tensor, attend: Attention = causal_attention) -> Tensor:
        """(batch, length) token ids to normalised states (batch, length, width)."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin, attend)
        normed: Tensor = self.output_norm(x)
        return normed

    def forward(self, tokens: Tensor, attend: Attention = causal_attention) -> Tensor:
        """(batch, length) token ids to logits (batch, length, vocabulary)."""
        return functional.linear(self.hidden(tokens, attend), self.token_embd.weight)
