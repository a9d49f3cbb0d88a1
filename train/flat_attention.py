"""Attention over flat documents by libraries' kernels: flash-attn, torch's varlen and flex attention, SDPA.

Each one is a function of queries, keys, values and the documents' borders, differentiable by autograd; a token sees the
tokens before it in its own document and no other. Which of them run, and run right, is for kernels.py to find out.
A beginning that rows share is not for them: batches come without (share_prefix=false).

Source: FlashAttention-2, arXiv 2307.08691; flex attention, arXiv 2412.05496.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from train.attention import Attention
from train.flat_batch import FlatBatch


@dataclass(frozen=True)
class Borders:
    """Where documents begin in a flat array of N tokens.

    Attributes:
        lengths: Tokens of each of the B documents.
        starts: (B + 1,) int32: first token of each, and N.
    """

    lengths: tuple[int, ...]
    starts: Tensor

    @classmethod
    def of_batch(cls, batch: FlatBatch) -> "Borders":
        """Read them from a batch that shares no beginning.

        Raises:
            ValueError: It shares one.
        """
        if batch.shared:
            raise ValueError(f"wanted a batch that shares no beginning, found {batch.shared} shared tokens")
        return cls(batch.widths, batch.starts)

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)

    @functools.cached_property
    def documents(self) -> Tensor:
        """(N,) int64: the document of each token."""
        numbers = torch.arange(len(self.lengths), device=self.starts.device)
        return numbers.repeat_interleave(
            self.starts.diff(), output_size=sum(self.lengths)
        )  # known: nothing is waited for

    @functools.cached_property
    def block_mask(self) -> Any:
        """Which blocks flex attention computes: made once, read by every layer."""
        from torch.nn.attention.flex_attention import create_block_mask

        documents, total = self.documents, len(self.documents)

        def is_seen(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & (documents[query] == documents[key])

        return create_block_mask(is_seen, None, None, total, total, device=documents.device.type)


AttendFunction = Callable[[Tensor, Tensor, Tensor, Borders], Tensor]
"""(N, H, D) queries, (N, KV, D) keys and values, borders → (N, H, D)."""


class LibraryAttention:
    """A kernel of a library, as the hand-written layers call it."""

    def __init__(self, name: str, function: AttendFunction) -> None:
        """Remember which.

        Args:
            name: For people.
            function: What computes, differentiable by autograd.
        """
        self.name, self.function = name, function
        self._borders: tuple[FlatBatch, Borders] | None = None

    def attend(self, heads: Tensor, attention: Attention, batch: FlatBatch) -> tuple[Tensor, list[Tensor]]:
        """Mix the values of all tokens that each token sees.

        Args:
            heads: (N, H + 2 KV, D): queries, keys and values, queries and keys rotated.
            attention: The shape.
            batch: Which tokens see which; shares no beginning.

        Returns:
            (N, H * D), and what `attend_backward` wants back: the kernel's inputs and its output with its graph.
        """
        sizes = [attention.heads, attention.key_value_heads, attention.key_value_heads]
        q, k, v = (part.detach().requires_grad_() for part in heads.split(sizes, dim=1))
        with torch.enable_grad():
            mixed = self.function(q, k, v, self._find_borders(batch))
        return mixed.detach().flatten(1), [q, k, v, mixed]

    def attend_backward(
        self,
        d_mixed: Tensor,
        heads: Tensor,
        kept: list[Tensor],
        attention: Attention,  # noqa: ARG002  (the blocks of attention.py want it)
        batch: FlatBatch,  # noqa: ARG002
    ) -> Tensor:
        """Return the gradient of the heads, (N, H + 2 KV, D), given that of what `attend` returned."""
        *parts, mixed = kept
        return torch.cat(torch.autograd.grad(mixed, parts, d_mixed.view(mixed.shape)), dim=1).to(heads.dtype)

    def _find_borders(self, batch: FlatBatch) -> Borders:
        """Return a batch's borders; all layers of one pass ask for the same."""
        if self._borders is None or self._borders[0] is not batch:
            self._borders = batch, Borders.of_batch(batch)
        return self._borders[1]


def attend_one_by_one(q: Tensor, k: Tensor, v: Tensor, borders: Borders) -> Tensor:
    """Attend document by document with torch's own choice of kernel: right everywhere, slow with many short ones."""
    mixed = []
    for document in zip(*(part.transpose(0, 1).split(borders.lengths, dim=1) for part in (q, k, v)), strict=True):
        one, two, three = (part.unsqueeze(0) for part in document)  # (1, H, T, D)
        mixed.append(functional.scaled_dot_product_attention(one, two, three, is_causal=True, enable_gqa=True)[0])
    return torch.cat(mixed, dim=1).transpose(0, 1)


def attend_varlen(q: Tensor, k: Tensor, v: Tensor, borders: Borders) -> Tensor:
    """Attend by torch's variable-length flash attention (CUDA, 16 bits)."""
    from torch.nn.attention import varlen

    attend: Callable[..., Tensor] = varlen.varlen_attn  # type: ignore[assignment]  # more comes only if asked for
    known = inspect.signature(attend).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "enable_gqa" in known:
        options["enable_gqa"] = True
    elif k.shape[1] != q.shape[1]:  # torch before 2.12
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    longest = borders.longest
    return attend(q, k, v, borders.starts, borders.starts, longest, longest, **options)


def attend_flash4(q: Tensor, k: Tensor, v: Tensor, borders: Borders) -> Tensor:
    """Attend by flash-attn 4 (package `flash-attn-4`, CUDA of capability 9 and 10)."""
    from flash_attn.cute import flash_attn_varlen_func

    found = flash_attn_varlen_func(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        cu_seqlens_q=borders.starts,
        cu_seqlens_k=borders.starts,
        max_seqlen_q=borders.longest,
        max_seqlen_k=borders.longest,
        causal=True,
    )
    mixed: Tensor = found[0] if isinstance(found, tuple) else found  # some versions return the log-sum too
    return mixed


def attend_flash2(q: Tensor, k: Tensor, v: Tensor, borders: Borders) -> Tensor:
    """Attend by flash-attn 2 (package `flash-attn`, CUDA)."""
    from flash_attn import flash_attn_varlen_func

    longest = borders.longest
    mixed: Tensor = flash_attn_varlen_func(q, k, v, borders.starts, borders.starts, longest, longest, causal=True)
    return mixed


def attend_flex(q: Tensor, k: Tensor, v: Tensor, borders: Borders) -> Tensor:
    """Attend by torch's flex attention over the blocks that the borders leave; compiled on a card."""
    one, two, three = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))  # (1, H, N, D)
    mixed: Tensor = _get_flex(q.device.type)(one, two, three, block_mask=borders.block_mask, enable_gqa=True)
    return mixed[0].transpose(0, 1)


@functools.cache
def _get_flex(device_type: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention


FUNCTIONS: dict[str, AttendFunction] = {
    "flash4": attend_flash4,
    "flash2": attend_flash2,
    "varlen": attend_varlen,
    "flex": attend_flex,
    "sdpa": attend_one_by_one,
}
"""By name, in the order in which a card tries them."""
