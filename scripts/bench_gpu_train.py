"""Training in scripts/bench_gpu.py: what the hand-written layers compute is right, then how fast they are on a card.

Speed is measured on random weights of Llama-3.2-3B's shape, which need no download; correctness on SmolLM2-135M where
it lies in the data directory, else on a small random Llama. A step is forward, backward, clipping and AdamW over packed
documents, through train/decoder.py and train/head.py as in every run, without TRL's loop around it (bench_gpu_peers.py
has that). Operations are counted by train/operations.py: 4N + 6P + 3A, never 6N.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scripts.bench_gpu_models import LLAMA_3B, PACK_TOKENS, RANK, SMALL, adapt, make_base, make_packs, make_shape
from scripts.bench_gpu_peers import PEER_STEPS
from scripts.bench_gpu_steps import Figure, Setting, Step, Unavailable, Wrong, compare, synchronize, time_calls
from train import attention as blocks
from train.attention import Attention
from train.decoder import Decoder, find_obstacle
from train.flat_attention import FUNCTIONS, LibraryAttention
from train.flat_batch import FlatBatch, flatten_packs
from train.head import score_hidden
from train.kernels import CPU_KERNELS, Kernels, choose_kernels, find_attention_gap, find_passes_gap
from train.operations import count_token_operations, find_used_share
from train.passes import IN_PLACE, compile_passes

logger = logging.getLogger(__name__)

FASTEST_GOAL, LEAST_GOAL = 31_000, 26_000
PACKED_GAP = 1e-2
MEMORY_GOAL_GB = 4.0


def make_kernels(setting: Setting) -> Kernels:
    """Return what a run would choose on this device."""
    values = setting.pick(LLAMA_3B, SMALL)
    shape = Attention(values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"])
    return choose_kernels("auto", shape, setting.device, setting.dtype)


def flatten(inputs: dict[str, Tensor], kernels: Kernels) -> FlatBatch:
    """Find the places of packed documents, as train/head.py does."""
    return flatten_packs(inputs["input_ids"], inputs["position_ids"], inputs["labels"], share=kernels.shares_prefix)


def compute_loss(model: Any, decoder: Decoder, inputs: dict[str, Tensor]) -> Tensor:
    """Return the mean loss of learned tokens, through the layers and the head of every run."""
    batch = flatten(inputs, decoder.kernels)
    hidden = decoder.run(inputs["input_ids"], batch)
    weight = model.get_base_model().get_output_embeddings().weight
    log_probs: Tensor = score_hidden(hidden, weight, batch.labels, decoder)[0]
    return -log_probs.mean()


def prove_gradients(setting: Setting) -> list[Figure]:
    """Compare loss and gradients with those of transformers and autograd in float32, document by document."""
    small = Setting(setting.device, is_small=True, data=setting.data, folder=setting.folder)
    model = load_reference(setting) or adapt(make_base(small))
    base = model.get_base_model()
    if obstacle := find_obstacle(base, is_card=setting.device.type == "cuda"):
        raise Wrong(obstacle)
    inputs, lengths = make_packs(small, 2, setting.pick(512, 96))
    exact = copy_in_float32(model)
    total = torch.zeros((), device=setting.device)
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    for start, size in zip(starts, lengths, strict=True):
        ids = inputs["input_ids"][:, start : start + size]
        logits = exact(input_ids=ids).logits[0, :-1].float()
        total = total + nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    reference = total / (sum(lengths) - len(lengths))
    reference.backward()
    expected = join_gradients(exact)
    kernels = make_kernels_for(base, setting)
    loss = compute_loss(model, Decoder(base, kernels), inputs)
    loss.backward()
    limit = 5e-2 if setting.dtype is torch.bfloat16 else 1e-4
    return [
        compare("loss, packed against apart", loss.detach(), reference.detach(), limit / 5),
        compare("gradients, packed against apart", join_gradients(model), expected, 2 * limit),
    ]


def load_reference(setting: Setting) -> Any:
    """Return SmolLM2-135M with an adapter, or None where it is not in the data directory or the size is small."""
    from transformers import AutoModelForCausalLM

    folder = setting.data.model("smollm2-135m-instruct")
    if setting.is_small or not (folder / "config.json").is_file():
        return None
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=setting.dtype, local_files_only=True)
    base.to(setting.device).requires_grad_(False)
    return adapt(base)


def copy_in_float32(model: Any) -> Any:
    """Return a copy of a PEFT model that computes in float32, with gradients of its own."""
    import copy

    exact = copy.deepcopy(model).float()
    exact.zero_grad(set_to_none=True)
    return exact


def join_gradients(model: Any) -> Tensor:
    """Return all gradients of the adapter as one vector."""
    return torch.cat([p.grad.float().flatten() for _, p in sorted(model.named_parameters()) if p.grad is not None])


def make_kernels_for(base: Any, setting: Setting) -> Kernels:
    """Return what a run would choose for a model on this device."""
    config = base.config
    shape = Attention(config.num_attention_heads, config.num_key_value_heads, base.model.layers[0].self_attn.head_dim)
    return choose_kernels("auto", shape, setting.device, setting.dtype)


def prove_packing(setting: Setting) -> list[Figure]:
    """Compare the logits of packed documents with those of each alone, for every attention that runs here."""
    small = Setting(setting.device, is_small=True, data=setting.data, folder=setting.folder)
    model = adapt(make_base(small))
    base = model.get_base_model()
    inputs, lengths = make_packs(small, 1, 160)
    head = base.get_output_embeddings().weight
    shape = Attention(SMALL["num_attention_heads"], SMALL["num_key_value_heads"], SMALL["head_dim"])
    figures, reasons = [], []
    for name, kernel in [
        ("blocks", CPU_KERNELS.attention),
        *((n, LibraryAttention(n, f)) for n, f in FUNCTIONS.items()),
    ]:
        try:
            if name != "blocks":
                find_attention_gap(kernel, shape, setting.device, setting.dtype)
        except Exception as error:  # noqa: BLE001  (a kernel that is not here may raise anything)
            reasons.append(f"{name} ({type(error).__name__})")
            continue
        decoder = Decoder(base, Kernels(kernel, IN_PLACE, (name, "in place"), shares_prefix=False))
        packed = decoder.run(inputs["input_ids"], flatten(inputs, decoder.kernels)) @ head.T
        alone = [run_alone(decoder, inputs, start, size) @ head.T for start, size in list_documents(lengths)]
        figures.append(compare(f"packed logits, {name}", packed, torch.cat(alone), PACKED_GAP))
    if not figures:
        raise Unavailable(f"no attention runs here: {', '.join(reasons)}")
    return figures


def list_documents(lengths: list[int]) -> list[tuple[int, int]]:
    """Return first token and tokens of each document, the longest first, as batches are laid out."""
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    return sorted(zip(starts, lengths, strict=True), key=lambda pair: -pair[1])


def run_alone(decoder: Decoder, inputs: dict[str, Tensor], start: int, size: int) -> Tensor:
    """Return the hidden states of one document's learned positions, computed without the others."""
    part = {name: values[:, start : start + size] for name, values in inputs.items()}
    return decoder.run(part["input_ids"], flatten(part, decoder.kernels))


def time_attention(setting: Setting) -> list[Figure]:
    """Time every attention that runs here, forward and backward, on packed documents of mixed lengths."""
    values = setting.pick(LLAMA_3B, SMALL)
    shape = Attention(values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"])
    inputs, _ = make_packs(setting, setting.pick(4, 1), setting.pick(PACK_TOKENS, 160))
    batch = flatten_packs(inputs["input_ids"], inputs["position_ids"], inputs["labels"], share=False)
    heads = torch.randn(
        len(batch.take),
        shape.heads + 2 * shape.key_value_heads,
        shape.head_size,
        device=setting.device,
        dtype=setting.dtype,
    )
    d_mixed = torch.randn(len(heads), shape.heads * shape.head_size, device=setting.device, dtype=setting.dtype)
    figures, reasons = [], []
    kernels: list[tuple[str, Any]] = [("blocks", blocks), *((n, LibraryAttention(n, f)) for n, f in FUNCTIONS.items())]

    def run(kernel: Any) -> Tensor:
        _, kept = kernel.attend(heads, shape, batch)
        found: Tensor = kernel.attend_backward(d_mixed, heads, kept, shape, batch)
        return found

    for name, kernel in kernels:
        try:
            gap = find_attention_gap(kernel, shape, setting.device, setting.dtype)
            seconds = time_calls(partial(run, kernel), setting.device, setting.pick(10, 2))
        except Exception as error:  # noqa: BLE001  (see prove_packing)
            reasons.append(f"{name}: {type(error).__name__}")
            continue
        figures.append(Figure(f"attention, {name}, {gap:.4f} off", seconds * 1000, "ms forward and backward"))
    logger.info("attention: not here: %s", ", ".join(reasons))
    return figures


def time_passes(setting: Setting) -> list[Figure]:
    """Time the passes between the products as torch's operations and compiled, at the width of the model."""
    values = setting.pick(LLAMA_3B, SMALL)
    tokens, hidden, inner = setting.pick(8192, 64), values["hidden_size"], values["intermediate_size"]
    make: Any = {"device": setting.device, "dtype": setting.dtype}
    x, weight, both = (
        torch.randn(tokens, hidden, **make),
        torch.randn(hidden, **make),
        torch.randn(tokens, 2 * inner, **make),
    )
    product, d_normed = torch.randn(tokens, inner, **make), torch.randn(tokens, hidden, **make)
    figures = []
    for passes in [IN_PLACE, *([compile_passes()] if setting.device.type == "cuda" else [])]:
        gap = find_passes_gap(passes, setting.device, setting.dtype)
        if not gap <= 0.02:
            raise Wrong(f"{passes.name}: {gap:g} off")
        _, inverse = passes.normalize(x, weight, 1e-5)
        runs: dict[str, Callable[[], Any]] = {
            "norm": partial(passes.normalize, x, weight, 1e-5),
            "norm backward": partial(passes.normalize_backward, d_normed, x, inverse, weight, x),
            "gate": partial(passes.activate, both),
            "gate backward": partial(passes.activate_backward, product, both),
        }
        for name, run in runs.items():
            seconds = time_calls(run, setting.device, setting.pick(20, 2))
            figures.append(Figure(f"{name}, {passes.name}", seconds * 1e6, "µs"))
    return figures


def time_step(setting: Setting, *, is_packed: bool, keeps: bool, is_recomputed: bool, packs: int) -> list[Figure]:
    """Time whole training steps on packs and read the most memory that they took.

    Args:
        setting: Where and at which size.
        is_packed: Whether the base comes as NF4 codes.
        keeps: Whether their values are kept.
        is_recomputed: Whether layers are recomputed.
        packs: Of a micro-batch.
    """
    from train.model import keep_dequantized

    device = setting.device
    kernels = make_kernels(setting)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    base = make_base(setting, is_packed=is_packed)
    if keeps:
        keep_dequantized(base)
    model = adapt(base)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # loading is not what is measured: a run reads its codes from disk
    decoder = Decoder(model.get_base_model(), kernels, is_recomputed=is_recomputed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")
    inputs, lengths = make_packs(setting, packs, setting.pick(PACK_TOKENS, 96))
    losses = []

    def step() -> None:
        loss = compute_loss(model, decoder, inputs)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    seconds = time_calls(step, device, setting.pick(8, 2))
    if not bool(torch.stack(losses).isfinite().all()):
        raise Wrong("the loss is no longer a number")
    tokens = sum(lengths)
    mean_length = sum(size * size for size in lengths) / tokens
    operations = count_token_operations(make_shape(setting.pick(LLAMA_3B, SMALL)), RANK, round(mean_length))
    figures = [
        Figure(f"non-padding tokens ({', '.join(kernels.names)})", tokens / seconds, "tokens/s"),
        Figure("operations at 4N + 6P + 3A", tokens / seconds * operations.total / 1e12, "TFLOP/s"),
        Figure("share of 800 TFLOP/s", find_used_share(tokens / seconds, operations, 800e12), ""),
    ]
    if device.type == "cuda":
        synchronize(device)
        figures.append(Figure("most memory", torch.cuda.max_memory_allocated() / 1e9, "GB"))
    return figures


def time_plain(setting: Setting) -> list[Figure]:
    """LoRA on bfloat16 weights, packed 2048: the goal of speed."""
    return _with_goal(time_step(setting, is_packed=False, keeps=False, is_recomputed=False, packs=setting.pick(4, 1)))


def time_kept(setting: Setting) -> list[Figure]:
    """The same on NF4 weights whose values are kept: at least 0.98 of the speed without."""
    return _with_goal(time_step(setting, is_packed=True, keeps=True, is_recomputed=False, packs=setting.pick(4, 1)))


def time_packed(setting: Setting) -> list[Figure]:
    """The same on true NF4: codes are dequantized for each product."""
    return time_step(setting, is_packed=True, keeps=False, is_recomputed=False, packs=setting.pick(4, 1))


def time_small_memory(setting: Setting) -> list[Figure]:
    """One pack at once, true NF4, layers recomputed: the goal of memory."""
    figures = time_step(setting, is_packed=True, keeps=False, is_recomputed=True, packs=1)
    return [
        Figure(f.name, f.value, f.unit, f"at most {MEMORY_GOAL_GB:g}" if f.name == "most memory" else f.goal)
        for f in figures
    ]


def _with_goal(figures: list[Figure]) -> list[Figure]:
    goal = f"{FASTEST_GOAL:,} on an H100, floor {LEAST_GOAL:,}"
    return [Figure(figures[0].name, figures[0].value, figures[0].unit, goal), *figures[1:]]


STEPS = (
    Step("loss and gradients", prove_gradients),
    Step("packed = unpacked", prove_packing),
    Step("attention", time_attention),
    Step("passes", time_passes),
    Step("step, bf16 LoRA", time_plain),
    Step("step, NF4 kept", time_kept, needs=("bitsandbytes",)),
    Step("step, true NF4", time_packed, needs=("bitsandbytes",)),
    Step("step, least memory", time_small_memory, needs=("bitsandbytes",)),
    *PEER_STEPS,
)
