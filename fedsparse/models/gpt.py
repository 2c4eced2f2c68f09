"""Decoder-only transformers for text, of the shape of GPT-2 (Radford et al., 2019)."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

WEIGHT_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention over all heads at once: [b, t, d] to [b, t, d]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Each position sees itself and those before it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with 4 d hidden units and GELU: [b, t, d] to [b, t, d]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.project = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        x = x + self.attention(self.norm1(x))
        return x + self.project(functional.gelu(self.expand(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens int64 [b, t], t <= context, to logits [b, t, classes] of each next token.

    Learned positions; pre-norm blocks and a norm before the head. The head is the last linear layer and has weights of
    its own: tied to the embedding, it could not be pruned without it, and one tensor would be two in a file.
    """

    def __init__(self, classes: int, context: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(classes, dim)
        self.positions = nn.Embedding(context, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes, bias=False)
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Logits at every position."""
        if x.shape[1] > self.context:
            raise ValueError(f"a sample has {x.shape[1]} tokens, but the model's context is {self.context}")
        places = torch.arange(x.shape[1], device=x.device)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(places))))

    def _initialise(self) -> None:
        """GPT-2's: normal weights of std 0.02, those that end a residual branch divided by sqrt(their number)."""
        ends = {id(m) for name, m in self.named_modules() if name.endswith(("attention.out", "project"))}
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=WEIGHT_STD / sqrt(len(ends)) if id(module) in ends else WEIGHT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _build(classes: int, context: int, heads: int, head_dim: int, layers: int, width: float) -> nn.Module:
    # Whole heads, so that every width has the same head size.
    heads = max(1, round(heads * width))
    return GPT(classes, context, heads * head_dim, heads, layers)


def gpt(classes: int, context: int, width: float) -> nn.Module:
    """Small decoder-only transformer for text: 4 layers, 4 heads of 32.

    834,304 parameters at 128 tokens of vocabulary and a context of 64. Untied head.
    """
    return _build(classes, context, 4, 32, 4, width)


def gpt2_32m(classes: int, context: int, width: float) -> nn.Module:
    """GPT-2 of about 32 M parameters for text: 10 layers, 7 heads of 64.

    31,598,336 parameters at a vocabulary of 8,192 tokens and a context of 256, of them 24,084,480 in prunable weights.
    Untied head.
    """
    return _build(classes, context, 7, 64, 10, width)
