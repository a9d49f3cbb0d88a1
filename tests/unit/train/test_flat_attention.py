"""Each library's attention that runs here keeps documents apart: values, gradients and logits as of each alone."""

import importlib.util
from typing import Any

import pytest
import torch

from tests.unit.train.test_decoder import compute_plainly, make_inputs, make_model, pack, take_gradients
from tests.unit.train.test_flat_batch import pad
from train import attention as blocks
from train.attention import Attention
from train.decoder import Decoder
from train.flat_attention import FUNCTIONS, Borders, LibraryAttention
from train.flat_batch import FlatBatch, flatten_batch
from train.head import score_trained_tokens
from train.kernels import Kernels, find_attention_gap
from train.passes import PLAIN
from train.tokens import IGNORED

SHAPE = Attention(heads=4, key_value_heads=2, head_size=16)
CPU = torch.device("cpu")
NEEDS = {"flash4": "flash_attn", "flash2": "flash_attn"}


def skip_where_missing(name: str) -> None:
    """Skip what only a card runs, saying so."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{name}: wanted the package {NEEDS[name]}, found none")
    if name in {"varlen", "flex", *NEEDS} and not torch.cuda.is_available():
        pytest.skip(f"{name}: wanted a CUDA card for its backward pass, found none; tests/gpu holds it to the same")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_attention_keeps_documents_apart_forward() -> None:
    """On a CPU it has no backward pass; what its mask lets through is shown all the same."""
    batch = make_batch([9, 33, 1, 20])
    heads = torch.randn(63, 8, 16, generator=torch.Generator().manual_seed(4))
    expected, _ = blocks.attend(heads, SHAPE, batch)
    q, k, v = heads.split([4, 2, 2], dim=1)
    found = FUNCTIONS["flex"](q, k, v, Borders.of_batch(batch))
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-5)


NAMES = pytest.mark.parametrize("name", list(FUNCTIONS))


@NAMES
def test_values_and_gradients_are_those_of_blocks(name: str) -> None:
    skip_where_missing(name)
    gap = find_attention_gap(LibraryAttention(name, FUNCTIONS[name]), SHAPE, CPU, torch.float32)
    assert gap < 1e-5


@NAMES
def test_packed_logits_are_those_of_each_row_alone(name: str) -> None:
    skip_where_missing(name)
    inputs, model = make_inputs(), make_model()
    decoder = make_decoder(model, name)
    score_trained_tokens(model.get_base_model(), decoder)
    packed = model(**pack(inputs), use_cache=False, fused_lm_head=True)
    head = model.get_base_model().get_output_embeddings().weight
    lengths = inputs["attention_mask"].sum(1).tolist()
    for row, length in enumerate(lengths):
        ids = inputs["input_ids"][row : row + 1, :length]
        expected = model(input_ids=ids).logits[0]
        batch = flatten_batch(ids, None, ids.clone(), share=False)
        found = decoder.run(ids, batch) @ head.T
        assert (found - expected[:-1]).norm() / expected.norm() < 1e-2
    torch.testing.assert_close(packed.loss, compute_plainly(model, inputs, torch.float32), rtol=1e-5, atol=1e-5)


@NAMES
def test_a_step_has_the_gradients_of_the_plain_way(name: str) -> None:
    skip_where_missing(name)
    inputs, model = make_inputs(), make_model()
    compute_plainly(model, inputs, torch.float32).backward()
    expected = take_gradients(model)
    score_trained_tokens(model.get_base_model(), make_decoder(model, name))
    model(**pack(inputs), use_cache=False, fused_lm_head=True).loss.backward()
    for parameter, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradient, expected[parameter], rtol=1e-4, atol=1e-5)


def make_decoder(model: Any, name: str) -> Decoder:
    """Return a decoder as a card has it: a library's attention, passes as formulas, no shared beginnings."""
    kernels = Kernels(LibraryAttention(name, FUNCTIONS[name]), PLAIN, (name, PLAIN.name), shares_prefix=False)
    return Decoder(model.get_base_model(), kernels)


def make_batch(lengths: list[int], *, share: bool = False) -> FlatBatch:
    ids, mask = pad([[1] * length for length in lengths], 0, left=False), pad([[1] * n for n in lengths], 0, left=False)
    return flatten_batch(ids, mask, torch.full_like(ids, IGNORED), share=share)


def test_borders_are_read_from_a_batch() -> None:
    borders = Borders.of_batch(make_batch([3, 7, 1]))
    assert (borders.starts.tolist(), borders.longest) == ([0, 7, 10, 11], 7)
    assert borders.documents.tolist() == [0] * 7 + [1] * 3 + [2]


def test_a_shared_beginning_is_refused() -> None:
    with pytest.raises(ValueError, match="shares no beginning"):
        Borders.of_batch(make_batch([6, 5, 5], share=True))


def test_a_kernel_that_looks_over_borders_is_seen() -> None:
    def attend_everything(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: Borders) -> torch.Tensor:
        one, two, three = (part.transpose(0, 1)[None] for part in (q, k, v))
        mixed = torch.nn.functional.scaled_dot_product_attention(one, two, three, is_causal=True, enable_gqa=True)
        return mixed[0].transpose(0, 1)

    assert find_attention_gap(LibraryAttention("wrong", attend_everything), SHAPE, CPU, torch.float32) > 0.1
    assert find_attention_gap(blocks, SHAPE, CPU, torch.float32) == 0
