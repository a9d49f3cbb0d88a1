"""Which kernels the hand-written layers run with on this machine: found by trying, once, when a run starts.

A library that imports may still fail on a card: another architecture, no compiler, another version. So each candidate
computes a small packed batch forward and backward, and the first whose numbers are those of plain blocks in float32 is
taken; the others' reasons are logged. On a CPU there is nothing to try: blocks and passes in place are the quickest.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from train import attention as blocks
from train.attention import Attention
from train.flat_attention import FUNCTIONS, LibraryAttention
from train.flat_batch import FlatBatch, flatten_packs
from train.layers import AttentionKernel
from train.passes import IN_PLACE, PLAIN, Passes, compile_passes
from train.tokens import IGNORED

logger = logging.getLogger(__name__)

BLOCKS = "blocks"
COMPILED = "compiled"
AUTO = "auto"
ATTENTIONS = (AUTO, *FUNCTIONS, BLOCKS)
"""What `hardware.flat_attention` can be."""
LARGEST_GAP = 0.02
"""Relative distance from float32 that a kernel may have in bfloat16; two bytes' worth of rounding is a tenth of it."""
TRIAL_LENGTHS = (65, 130, 1, 60)
"""Documents of the trial's pack: none of them fills a block, one is a single token."""
TRIAL_TOKENS = (33, 65)
"""Tokens that the passes are tried with: with the second number, torch compiles for any."""


@dataclass(frozen=True, slots=True)
class Widths:
    """What of a model's shape the kernels are made for.

    Attributes:
        attention: Heads and their size.
        hidden: Of the residual.
        inner: Of the gate, and of what it opens.
        vocabulary: Of the head.
        epsilon: Of the norms.
    """

    attention: Attention
    hidden: int
    inner: int
    vocabulary: int
    epsilon: float = 1e-5

    @classmethod
    def of_model(cls, base: Any) -> "Widths":
        """Read them from a LlamaForCausalLM."""
        config = base.config
        shape = Attention(
            config.num_attention_heads, config.num_key_value_heads, base.model.layers[0].self_attn.head_dim
        )
        return cls(shape, config.hidden_size, config.intermediate_size, config.vocab_size, config.rms_norm_eps)


@dataclass(frozen=True, slots=True)
class Kernels:
    """What the layers and the loss run with.

    Attributes:
        attention: Who attends.
        passes: Who computes what lies between the products.
        names: Of both, for people.
        shares_prefix: Whether a beginning that rows share may be computed once.
    """

    attention: AttentionKernel
    passes: Passes
    names: tuple[str, str]
    shares_prefix: bool

    def describe(self) -> str:
        """Return one line for people."""
        return f"kernels: attention by {self.names[0]}, passes {self.names[1]}"


CPU_KERNELS = Kernels(cast("AttentionKernel", blocks), IN_PLACE, (BLOCKS, IN_PLACE.name), shares_prefix=True)


def choose_kernels(wanted: str, widths: Widths, device: torch.device, dtype: torch.dtype) -> Kernels:
    """Return what runs right on a device.

    Args:
        wanted: An attention's name, or `auto`: the first of ATTENTIONS that works.
        widths: Of the model: what is compiled for others would be compiled again, for widths that vary.
        device: Where it will run.
        dtype: Of its products.
    """
    if device.type == "cpu" and wanted in {AUTO, BLOCKS}:
        return CPU_KERNELS
    names = list(FUNCTIONS) if wanted == AUTO else [wanted] if wanted != BLOCKS else []
    name, attention = BLOCKS, cast("AttentionKernel", blocks)
    for candidate in names:
        kernel = LibraryAttention(candidate, FUNCTIONS[candidate])
        if try_kernel(candidate, partial(find_attention_gap, kernel, widths.attention, device, dtype)):
            name, attention = candidate, kernel
            break
    passes = IN_PLACE
    if device.type == "cuda":
        compiled = compile_passes()
        if try_kernel(COMPILED, partial(find_passes_gap, compiled, widths, device, dtype)):
            passes = compiled
    return Kernels(attention, passes, (name, passes.name), shares_prefix=name == BLOCKS)


def try_kernel(name: str, measure: Callable[[], float]) -> bool:
    """Tell whether a candidate runs and is right; log why not."""
    began = time.perf_counter()
    try:
        gap = measure()
    except Exception as error:  # noqa: BLE001  (a kernel that fails may raise anything; the next one is tried)
        lines = str(error).strip().splitlines()
        logger.info("kernels: %s does not run here (%s: %s)", name, type(error).__name__, lines[0] if lines else "")
        return False
    is_right = gap <= LARGEST_GAP  # false for NaN too
    verdict = "is right" if is_right else "is wrong and not used"
    logger.info("kernels: %s %s: %.4f off, %.1f s to try", name, verdict, gap, time.perf_counter() - began)
    return is_right


def find_attention_gap(kernel: Any, shape: Attention, device: torch.device, dtype: torch.dtype) -> float:
    """Return how far a kernel's values and gradients on packed documents are from those of blocks in float32."""
    batch = make_trial_batch(device)
    generator = torch.Generator().manual_seed(7)
    heads = torch.randn(len(batch.take), shape.heads + 2 * shape.key_value_heads, shape.head_size, generator=generator)
    d_mixed = torch.randn(len(heads), shape.heads * shape.head_size, generator=generator)
    heads, d_mixed = heads.to(device, dtype), d_mixed.to(device, dtype)
    exact, kept = blocks.attend(heads.float(), shape, batch)
    d_exact = blocks.attend_backward(d_mixed.float(), heads.float(), kept, shape, batch)
    found, kept = kernel.attend(heads, shape, batch)
    d_found = kernel.attend_backward(d_mixed, heads, kept, shape, batch)
    return max(measure_gap(found, exact), measure_gap(d_found, d_exact))


def make_trial_batch(device: torch.device) -> FlatBatch:
    """Return packed documents of different lengths; nothing is learned of them."""
    positions = torch.cat([torch.arange(length) for length in TRIAL_LENGTHS]).unsqueeze(0).to(device)
    return flatten_packs(torch.ones_like(positions), positions, torch.full_like(positions, IGNORED), share=False)


def find_passes_gap(passes: Passes, widths: Widths, device: torch.device, dtype: torch.dtype) -> float:
    """Return how far the passes' results are from the formulas in float32, the worst of all."""
    return max(
        measure_gap(found, exact)
        for tokens in TRIAL_TOKENS
        for found, exact in zip(
            run_passes(passes, widths, tokens, device, dtype),
            run_passes(PLAIN, widths, tokens, device, torch.float32),
            strict=True,
        )
    )


@torch.no_grad()  # as in the layers: what is compiled with gradients switched on would be compiled again
def run_passes(passes: Passes, widths: Widths, tokens: int, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Return what each pass makes of the same inputs, which bfloat16 holds exactly, laid out as in the layers."""
    generator = torch.Generator().manual_seed(8)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(torch.bfloat16).to(device, dtype)

    shape, half = widths.attention, widths.attention.head_size // 2
    x, dy, weight = draw(tokens, widths.hidden), draw(tokens, widths.hidden), draw(widths.hidden)
    both, product = draw(tokens, 2 * widths.inner), draw(tokens, widths.inner)
    heads = draw(tokens, shape.heads + 2 * shape.key_value_heads, shape.head_size)[:, : shape.rotated_heads]
    cos, sin = (draw(1, tokens, 2 * half)[0, :, None, :half] for _ in "ab")
    logits, labels = draw(tokens, widths.vocabulary), torch.arange(tokens, device=device)
    normed, inverse = passes.normalize(x, weight, widths.epsilon)
    found = [normed, inverse, passes.normalize_backward(dy.clone(), x, inverse.clone(), weight, dy)]
    found += [passes.rotate(heads, cos, sin), passes.activate(both), *passes.activate_backward(product.clone(), both)]
    log_probs, entropy, mean, is_top1, gradient = passes.score(logits, labels, True)
    return [*found, log_probs, entropy, mean, is_top1.float(), *([] if gradient is None else [gradient])]


def measure_gap(found: Tensor, exact: Tensor) -> float:
    """Return ‖found - exact‖ / ‖exact‖."""
    wanted = exact.double()
    return float((found.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))
