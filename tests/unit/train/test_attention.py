"""Attention in blocks over flat tokens gives the numbers of plain causal attention over padded rows."""

from typing import Any

import pytest
import torch

from tests.unit.train.test_flat_batch import pad
from train import attention
from train.attention import Attention, attend, attend_backward
from train.flat_batch import FlatBatch, flatten_batch
from train.tokens import IGNORED

SHAPE = Attention(heads=4, key_value_heads=2, head_size=8)


def make_batch(common: int, own: list[int], *, share: bool) -> FlatBatch:
    rows = [list(range(1, common + 1)) + [100 + row] * length for row, length in enumerate(own)]
    ids, mask = pad(rows, 0, left=False), pad([[1] * len(row) for row in rows], 0, left=False)
    return flatten_batch(ids, mask, torch.full_like(ids, IGNORED), share=share)


def attend_plainly(heads: torch.Tensor, batch: FlatBatch) -> torch.Tensor:
    """Return what torch's own attention gives each token, row by row."""
    mixed = torch.empty(len(heads), SHAPE.heads * SHAPE.head_size, dtype=heads.dtype)
    for row_number in range(batch.rows):
        own = (batch.places // batch.width == row_number).nonzero().squeeze(1) + batch.shared
        row = torch.cat([heads[: batch.shared], heads[own]]).transpose(0, 1)  # (H + 2 KV, T, D)
        q, k, v = row.split([SHAPE.heads, SHAPE.key_value_heads, SHAPE.key_value_heads])
        out = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, enable_gqa=True
        )
        flat = out[0].transpose(0, 1).flatten(1)
        mixed[: batch.shared], mixed[own] = flat[: batch.shared], flat[batch.shared :]
    return mixed


@pytest.mark.parametrize("block", [4, 128])
@pytest.mark.parametrize("kept", [0, 2**20], ids=["recomputed", "kept"])
@pytest.mark.parametrize(("common", "own"), [(0, [9]), (0, [3, 11, 1]), (10, [3, 11, 1]), (6, [5, 5])])
def test_it_equals_plain_attention(
    common: int, own: list[int], kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "BLOCK", block)
    monkeypatch.setattr(attention, "MAX_KEPT", kept)
    batch = make_batch(common, own, share=True)
    assert batch.shared == common
    generator = torch.Generator().manual_seed(5)
    heads = torch.randn(len(batch.take), 8, 8, generator=generator, dtype=torch.float64).requires_grad_()
    d_mixed = torch.randn(len(heads), 32, generator=generator, dtype=torch.float64)
    expected: Any = attend_plainly(heads, batch)
    expected.backward(d_mixed)
    mixed, weights = attend(heads.detach(), SHAPE, batch)
    assert bool(weights) is bool(kept)
    torch.testing.assert_close(mixed, expected)
    gradient = attend_backward(d_mixed, heads.detach(), weights, SHAPE, batch)
    torch.testing.assert_close(gradient, heads.grad, rtol=1e-5, atol=1e-5)
