"""Training in scripts/bench_gpu.py: what the hand-written layers compute is right, then how fast they are on a card.

Speed is measured on random weights of Llama-3.2-3B's shape, which need no download; correctness on SmolLM2-135M where
it lies in the data directory, else on a small random Llama. A step is forward, backward, clipping and AdamW over packed
documents, through train/decoder.py and train/head.py as in every run, without TRL's loop around it (bench_gpu_peers.py
has that). Operations are counted by train/operations.py: 4N + 6P + 3A, never 6N.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scripts.bench_gpu_models import LLAMA_3B, PACK_TOKENS, RANK, SMALL, adapt, make_base, make_packs, make_shape
from scripts.bench_gpu_peers import PEER_STEPS
from scripts.bench_gpu_steps import (
    Figure,
    LeftOut,
    Setting,
    Step,
    Wrong,
    compare,
    describe_missing,
    find_context_fault,
    synchronize,
    time_calls,
)
from scripts.bench_gpu_waits import FREE_STEPS, WARM_UP, forbid_waits, name_waits
from train.attention import Attention
from train.decoder import Decoder, find_obstacle
from train.flat_attention import FUNCTIONS, LibraryAttention
from train.flat_batch import LAYOUT, FlatBatch, flatten_packs, lay_out
from train.head import score_hidden
from train.kernels import (
    CPU_KERNELS,
    LARGEST_GAP,
    Kernels,
    Widths,
    choose_kernels,
    find_attention_gap,
    find_passes_gap,
)
from train.operations import count_token_operations, find_used_share
from train.passes import IN_PLACE, compile_passes

CPU = torch.device("cpu")
SPEED_GOAL = "31,000 on an H100, floor 26,000"
PACKED_GAP = 1e-2
HEADS_3B: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 128}
"""Heads as wide as Llama-3.2-3B's, in a small model: kernels differ by the size of a head."""
MEMORY_GOAL_GB = 4.0


def make_widths(values: dict[str, Any]) -> Widths:
    """Return what kernels are made for, of a shape of bench_gpu_models."""
    shape = Attention(values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"])
    return Widths(shape, values["hidden_size"], values["intermediate_size"], values["vocab_size"])


def make_kernels(setting: Setting, widths: Widths | None = None) -> Kernels:
    """Return what a run would choose on this device, for a model of the setting's size or of other widths."""
    found = widths or make_widths(setting.pick(LLAMA_3B, SMALL))
    return choose_kernels("auto", found, setting.device, setting.dtype)


def flatten(inputs: dict[str, Tensor], kernels: Kernels) -> FlatBatch:
    """Find the places of packed documents, as train/head.py does."""
    return flatten_packs(inputs["input_ids"], inputs["position_ids"], inputs["labels"], share=kernels.shares_prefix)


def compute_loss(model: Any, decoder: Decoder, input_ids: Tensor, batch: FlatBatch) -> Tensor:
    """Return the mean loss of learned tokens, through the layers and the head of every run."""
    hidden = decoder.run(input_ids, batch)
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
    kernels = make_kernels(setting, Widths.of_model(base))
    loss = compute_loss(model, Decoder(base, kernels), inputs["input_ids"], flatten(inputs, kernels))
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


def list_attentions() -> list[tuple[str, Any]]:
    """Return every attention that there is, by name: blocks, and what libraries may bring."""
    return [("blocks", CPU_KERNELS.attention), *((name, LibraryAttention(name, f)) for name, f in FUNCTIONS.items())]


def leave_out(name: str, error: Exception, device: torch.device) -> LeftOut:
    """Note why something does not run here; a card that is of no use any more is another matter."""
    if find_context_fault(device):
        raise error
    lines = str(error).strip().splitlines()
    missing = describe_missing(error) if isinstance(error, ImportError) else None
    return LeftOut(name, missing or f"{type(error).__name__}: {lines[0][:120] if lines else ''}")


def prove_packing(setting: Setting) -> list[Figure | LeftOut]:
    """Compare the logits of packed documents with those of each alone, for every attention that runs here."""
    small = Setting(setting.device, is_small=True, data=setting.data, folder=setting.folder)
    model = adapt(make_base(small, shape=SMALL | setting.pick(HEADS_3B, {})))
    base = model.get_base_model()
    inputs, lengths = make_packs(small, 1, setting.pick(PACK_TOKENS, 160))
    head, widths = base.get_output_embeddings().weight, Widths.of_model(base)
    used = make_kernels(setting, widths).names[0]
    found: list[Figure | LeftOut] = []
    for name, kernel in list_attentions():
        title = f"packed logits, {name}"
        try:
            find_attention_gap(kernel, widths.attention, setting.device, setting.dtype)
            decoder = Decoder(base, Kernels(kernel, IN_PLACE, (name, "in place"), shares_prefix=False))
            packed = decoder.run(inputs["input_ids"], flatten(inputs, decoder.kernels)) @ head.T
            alone = [run_alone(decoder, inputs, start, size) @ head.T for start, size in list_documents(lengths)]
            found.append(compare(title, packed, torch.cat(alone), PACKED_GAP))
        except Exception as error:
            if name == used:
                raise
            found.append(leave_out(title, error, setting.device))
    return found


def list_documents(lengths: list[int]) -> list[tuple[int, int]]:
    """Return first token and tokens of each document, the longest first, as batches are laid out."""
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1].tolist()
    return sorted(zip(starts, lengths, strict=True), key=lambda pair: -pair[1])


def run_alone(decoder: Decoder, inputs: dict[str, Tensor], start: int, size: int) -> Tensor:
    """Return the hidden states of one document's learned positions, computed without the others."""
    part = {name: values[:, start : start + size] for name, values in inputs.items()}
    return decoder.run(part["input_ids"], flatten(part, decoder.kernels))


def time_attention(setting: Setting) -> list[Figure | LeftOut]:
    """Time every attention that runs here, forward and backward, on packed documents of mixed lengths."""
    shape = make_widths(setting.pick(LLAMA_3B, SMALL)).attention
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
    found: list[Figure | LeftOut] = []

    def run(kernel: Any) -> Tensor:
        _, kept = kernel.attend(heads, shape, batch)
        gradient: Tensor = kernel.attend_backward(d_mixed, heads, kept, shape, batch)
        return gradient

    for name, kernel in list_attentions():
        try:
            gap = find_attention_gap(kernel, shape, setting.device, setting.dtype)
            seconds = time_calls(partial(run, kernel), setting.device, setting.pick(10, 2))
        except Exception as error:  # noqa: BLE001  (see prove_packing)
            found.append(leave_out(f"attention, {name}", error, setting.device))
            continue
        found.append(Figure(f"attention, {name}, {gap:.4f} off", seconds * 1000, "ms forward and backward"))
    return found


def time_passes(setting: Setting) -> list[Figure | LeftOut]:
    """Time the passes between the products as torch's operations and compiled, at the width of the model."""
    widths, tokens = make_widths(setting.pick(LLAMA_3B, SMALL)), setting.pick(8192, 96)
    make: Any = {"device": setting.device, "dtype": setting.dtype}
    x, weight = torch.randn(tokens, widths.hidden, **make), torch.randn(widths.hidden, **make)
    both, d_normed = torch.randn(tokens, 2 * widths.inner, **make), torch.randn(tokens, widths.hidden, **make)
    product = torch.randn(tokens, widths.inner, **make)
    found: list[Figure | LeftOut] = []
    for passes in [IN_PLACE, *([compile_passes()] if setting.device.type == "cuda" else [])]:
        try:
            gap = find_passes_gap(passes, widths, setting.device, setting.dtype)
            if not gap <= LARGEST_GAP:
                raise Wrong(f"{passes.name}: {gap:g} off")
        except Exception as error:
            if passes is IN_PLACE:
                raise
            found.append(leave_out(f"passes, {passes.name}", error, setting.device))
            continue
        with torch.no_grad():
            _, inverse = passes.normalize(x, weight, 1e-5)
        runs: dict[str, Callable[[], Any]] = {
            "norm": partial(passes.normalize, x, weight, 1e-5),
            "norm backward": partial(passes.normalize_backward, d_normed, x, inverse, weight, x),
            "gate": partial(passes.activate, both),
            "gate backward": partial(passes.activate_backward, product, both),
        }
        with torch.no_grad():
            for name, run in runs.items():
                seconds = time_calls(run, setting.device, setting.pick(20, 2), at_once=setting.pick(10, 1))
                found.append(Figure(f"{name}, {passes.name}", seconds * 1e6, "µs"))
    return found


def load_batch(inputs: dict[str, Tensor], kernels: Kernels, device: torch.device) -> dict[str, Any]:
    """Return a micro-batch with its layout on a device, as the trainer's data loader does it ahead of a step.

    Args:
        inputs: Of `make_packs`, on the CPU.
        kernels: What the layers run with.
        device: Where it goes.
    """
    batch: dict[str, Any] = {**inputs, LAYOUT: lay_out(inputs, inputs["labels"], share=kernels.shares_prefix)}
    ready = {name: values.pin_memory() for name, values in batch.items()} if device.type == "cuda" else batch
    return {name: values.to(device, non_blocking=True) for name, values in ready.items()}


def time_adapters(setting: Setting) -> list[Figure]:
    """Time the products of gate and up with their adapter: added to the base's product, as now, and put before it."""
    widths, tokens = make_widths(setting.pick(LLAMA_3B, SMALL)), setting.pick(8192, 96)
    make: Any = {"device": setting.device, "dtype": setting.dtype}
    x, base = torch.randn(tokens, widths.hidden, **make), torch.randn(2 * widths.inner, widths.hidden, **make)
    narrow, up = torch.randn(tokens, 2 * RANK, **make), torch.randn(2 * widths.inner, 2 * RANK, **make)
    ways: dict[str, Callable[[], Tensor]] = {
        "product alone": lambda: x @ base.T,
        "adapter added to it": lambda: (x @ base.T).addmm_(narrow, up.T),
        "it added to the adapter's": lambda: (narrow @ up.T).addmm_(x, base.T),
    }
    exact = (x.double() @ base.double().T).addmm_(narrow.double(), up.double().T)
    figures = [compare(f"{name}: error", run(), exact, 1e-2) for name, run in list(ways.items())[1:]]
    del exact
    for name, run in ways.items():
        figures.append(Figure(name, time_calls(run, setting.device, setting.pick(20, 2)) * 1e6, "µs"))
    return figures


def make_step(model: Any, decoder: Decoder) -> Callable[[dict[str, Any]], Tensor]:
    """Return a function that trains on a micro-batch of `load_batch` and returns its loss, on its device."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)

    def step(batch: dict[str, Any]) -> Tensor:
        loss = compute_loss(model, decoder, batch["input_ids"], batch[LAYOUT])
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def prove_no_waits(setting: Setting, *, is_packed: bool = False) -> list[Figure]:
    """Train two layers for a few steps, and refuse whatever would make Python wait for the card."""
    kernels, shape = make_kernels(setting), setting.pick(LLAMA_3B | {"num_hidden_layers": 2}, SMALL)
    model = adapt(make_base(setting, is_packed=is_packed, shape=shape))
    step = make_step(model, Decoder(model.get_base_model(), kernels, is_recomputed=is_packed))
    inputs, _ = make_packs(replace(setting, device=CPU), 1, setting.pick(PACK_TOKENS, 96))
    batches = [load_batch(inputs, kernels, setting.device) for _ in range(WARM_UP + FREE_STEPS)]
    for batch in batches[:WARM_UP]:
        step(batch)
    with name_waits(), forbid_waits(setting.device):
        for batch in batches[WARM_UP:]:
            step(batch)
    return [Figure(f"steps that wait for nothing ({', '.join(kernels.names)})", FREE_STEPS, "steps")]


@dataclass(slots=True)
class PreparedStep:
    """A training step that can be taken again and again.

    Attributes:
        run: Takes it.
        lengths: Of the documents that it learns from.
        kernels: What it computes by.
        losses: Of each that was taken.
    """

    run: Callable[[], None]
    lengths: list[int]
    kernels: tuple[str, str]
    losses: list[Tensor]

    def check_losses(self) -> None:
        """See that what was learned from is a number still.

        Raises:
            Wrong: It is not.
        """
        if not bool(torch.stack(self.losses).isfinite().all()):
            raise Wrong("the loss is no longer a number")


def prepare_step(setting: Setting, *, is_packed: bool, keeps: bool, is_recomputed: bool, packs: int) -> PreparedStep:
    """Return a whole training step on packs; the most memory is counted from here on.

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
    step, losses = make_step(model, decoder), list[Tensor]()
    inputs, lengths = make_packs(replace(setting, device=CPU), packs, setting.pick(PACK_TOKENS, 96))

    def run() -> None:
        losses.append(step(load_batch(inputs, kernels, device)))

    return PreparedStep(run, lengths, kernels.names, losses)


def time_step(setting: Setting, **options: Any) -> list[Figure]:
    """Time whole training steps on packs and read the most memory that they took; the options are `prepare_step`'s."""
    device = setting.device
    prepared = prepare_step(setting, **options)
    seconds = time_calls(prepared.run, device, setting.pick(8, 2))
    prepared.check_losses()
    tokens = sum(prepared.lengths)
    mean_length = sum(size * size for size in prepared.lengths) / tokens
    operations = count_token_operations(make_shape(setting.pick(LLAMA_3B, SMALL)), RANK, round(mean_length))
    figures = [
        Figure(f"non-padding tokens ({', '.join(prepared.kernels)})", tokens / seconds, "tokens/s"),
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


def time_plain_doubled(setting: Setting) -> list[Figure]:
    """The same with as many tokens at once as hardware=h100 takes."""
    return _with_goal(time_step(setting, is_packed=False, keeps=False, is_recomputed=False, packs=setting.pick(8, 2)))


def time_kept(setting: Setting) -> list[Figure]:
    """The same on NF4 weights whose values are kept."""
    figures = time_step(setting, is_packed=True, keeps=True, is_recomputed=False, packs=setting.pick(4, 1))
    return _with_goal(figures, "0.98 of step, bf16 LoRA")


def time_packed(setting: Setting) -> list[Figure]:
    """The same on true NF4: codes are dequantized for each product."""
    return time_step(setting, is_packed=True, keeps=False, is_recomputed=False, packs=setting.pick(4, 1))


def time_small_memory(setting: Setting) -> list[Figure]:
    """One pack at once, true NF4, layers recomputed: the goal of memory."""
    figures = time_step(setting, is_packed=True, keeps=False, is_recomputed=True, packs=1)
    at_most = {"most memory": f"at most {MEMORY_GOAL_GB:g}"}
    figures = [replace(one, goal=at_most.get(one.name, one.goal)) for one in figures]
    return _with_goal(figures, "0.65 of step, bf16 LoRA")


def _with_goal(figures: list[Figure], goal: str = SPEED_GOAL) -> list[Figure]:
    """Say what the speed, which comes first, is held against."""
    return [replace(figures[0], goal=goal), *figures[1:]]


STEPS = (
    Step("loss and gradients", prove_gradients),
    Step("packed = unpacked", prove_packing),
    Step("no waits", prove_no_waits),
    Step("attention", time_attention),
    Step("passes", time_passes),
    Step("adapters", time_adapters),
    Step("step, bf16 LoRA", time_plain),
    Step("step, bf16 LoRA, 16,384 tokens", time_plain_doubled),
    Step("step, NF4 kept", time_kept, needs=("bitsandbytes",)),
    Step("step, true NF4", time_packed, needs=("bitsandbytes",)),
    Step("step, least memory", time_small_memory, needs=("bitsandbytes",)),
    Step("no waits, true NF4, recomputed", partial(prove_no_waits, is_packed=True), needs=("bitsandbytes",)),
    *PEER_STEPS,
)
