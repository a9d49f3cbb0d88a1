"""Whether a run fits the memory that the machine has, before anything loads, and what would make it fit.

The count is footprint.py's. Here it decides what `auto` leaves open, and where a run does not fit, the changes that
would make it fit are computed by the same count. Does not know what the machine has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from core.errors import ConfigError
from train.config import SERVED_RANKS, Choice, QuantKind, Strategy, TrainConfig
from train.footprint import (
    GIB,
    RUNTIME_BYTES,
    Demand,
    Shape,
    count_activations,
    count_activations_by_hand,
    count_adapter,
    count_base,
    count_loading,
    count_logits,
)

REMEDIES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by part, and the two choices that follow from them."""

    base: int
    adapter: int
    activations: int
    logits: int
    libraries: int
    keep_dequantized: bool
    gradient_checkpointing: bool

    @property
    def total(self) -> int:
        """Everything together."""
        return self.base + self.adapter + self.activations + self.logits + self.libraries

    def describe(self, available: int) -> str:
        """Return one line for people."""
        parts = ", ".join(
            f"{name} {size / GIB:.2f}"
            for name, size in [
                ("base", self.base),
                ("adapter and optimizer", self.adapter),
                ("activations", self.activations),
                ("logits", self.logits),
                ("libraries", self.libraries),
            ]
        )
        choices = [
            name
            for name, is_chosen in [
                ("base kept dequantized", self.keep_dequantized),
                ("activations recomputed", self.gradient_checkpointing),
            ]
            if is_chosen
        ]
        chosen = f"; {', '.join(choices)}" if choices else ""
        return f"memory: about {self.total / GIB:.1f} GiB of {available / GIB:.1f} GiB free ({parts} GiB{chosen})"


@dataclass(frozen=True, slots=True)
class Setting:
    """One change that needs less memory.

    Attributes:
        text: What to type.
        cost: What it takes away, for the order only: 1 is a hundredth of the speed; losing data or rank counts more.
        change: Makes the demand smaller.
    """

    text: str
    cost: float
    change: Callable[[Demand], Demand]


def plan_run(
    config: TrainConfig, shape: Shape, longest: int, value_bytes: int, device_type: str, available: int
) -> MemoryPlan:
    """Estimate a run from its configuration.

    Args:
        config: Of the run.
        shape: Of the base model.
        longest: Tokens of the longest row.
        value_bytes: Bytes of a value in the compute dtype.
        device_type: `cpu` or `cuda`.
        available: Free bytes of the device, for one process.

    Raises:
        ConfigError: It does not fit; names the changes that would make it fit.
    """
    return plan_memory(shape, Demand.of_config(config, longest, value_bytes, device_type), available)


def plan_memory(shape: Shape, demand: Demand, available: int) -> MemoryPlan:
    """Estimate what a run needs, choose what memory decides, and refuse what does not fit.

    Args:
        shape: Of the base model.
        demand: What the configuration asks for.
        available: Free bytes of the device, for one process.

    Raises:
        ConfigError: It does not fit; names the changes that would make it fit.
    """
    plan = choose_plan(shape, demand, available)
    if plan.total <= available:
        return plan
    remedies = find_remedies(shape, demand, available)
    helps = "".join(f"\n  {text}   (then about {size / GIB:.1f} GiB)" for text, size in remedies)
    raise ConfigError(
        f"{plan.describe(available)}: this does not fit. "
        + (f"Each of these would:{helps}" if helps else "No setting helps: take a smaller model=NAME."),
        param="hardware",
    )


def choose_plan(shape: Shape, demand: Demand, available: int) -> MemoryPlan:
    """Estimate what a run needs; `auto` choices are taken where they fit with a reserve of 8%, the quickest first.

    That is without recomputation before with it, and in each the base kept dequantized before four bits.
    """
    may_keep = demand.quant is QuantKind.nf4 and demand.strategy is not Strategy.fsdp2
    keeps = _list_choices(demand.keep_dequantized) if may_keep else [False]
    plans = [
        _plan_chosen(shape, demand, is_kept=is_kept, is_recomputed=is_recomputed)
        for is_recomputed in reversed(_list_choices(demand.checkpointing))
        for is_kept in keeps
    ]
    fitting = (plan for plan in plans if plan.total <= 0.92 * available)
    return next(fitting, min(plans, key=lambda plan: plan.total))


def _list_choices(choice: Choice) -> list[bool]:
    """Return what a choice leaves open, «yes» first."""
    return {Choice.always: [True], Choice.never: [False], Choice.auto: [True, False]}[choice]


def _plan_chosen(shape: Shape, demand: Demand, *, is_kept: bool, is_recomputed: bool) -> MemoryPlan:
    """Estimate what a run needs once both choices are made."""
    is_plain = is_kept or demand.quant is QuantKind.none
    kind = "cpu" if demand.is_cpu else "card"
    if demand.may_run_by_hand and shape.is_llama and not demand.is_cpu:
        activations = count_activations_by_hand(shape, demand, is_recomputed=is_recomputed)
    elif demand.may_run_by_hand and shape.is_llama and is_plain and not is_recomputed:
        kind, activations = "by hand", count_activations_by_hand(shape, demand)
    else:
        activations = count_activations(shape, demand, is_recomputed=is_recomputed)
    plan = MemoryPlan(
        count_base(shape, demand, is_dequantized=is_kept),
        count_adapter(shape, demand),
        activations,
        count_logits(shape, demand, is_recomputed=is_recomputed),
        RUNTIME_BYTES[kind],
        is_kept,
        is_recomputed,
    )
    spike = max(0, count_loading(shape, demand) - plan.total)  # more than training needs, if the shares are small
    return replace(plan, base=plan.base + spike)


def fix_choices(demand: Demand, plan: MemoryPlan) -> Demand:
    """Return a demand in which what a plan has chosen is configured."""
    return replace(
        demand,
        checkpointing=Choice.always if plan.gradient_checkpointing else Choice.never,
        keep_dequantized=Choice.always if plan.keep_dequantized else Choice.never,
    )


def plan_fixed(shape: Shape, demand: Demand, rows: int) -> MemoryPlan:
    """Estimate a demand without `auto` choices for another number of rows."""
    return choose_plan(shape, replace(demand, rows=rows), available=0)


def find_remedies(shape: Shape, demand: Demand, available: int) -> list[tuple[str, int]]:
    """Return the cheapest changes that really make a run fit, by the estimate.

    Each setting alone first; where fewer than three do, two of them together, and so on.

    Returns:
        At most three, what to type and the bytes that the run then needs.
    """
    found: list[tuple[str, int]] = []
    spare: list[tuple[str, int]] = []
    for settings in _list_changes(list_levers(demand)):
        changed = demand
        for setting in settings:
            changed = setting.change(changed)
        plan = choose_plan(shape, changed, available)
        if plan.total <= available:
            text = " ".join(setting.text for setting in settings)
            is_more = any(_read_keys(earlier) <= _read_keys(text) for earlier, _ in found)
            (spare if is_more else found).append((text, plan.total))
        if len(found) == REMEDIES_SHOWN:
            break
    return (found + spare)[:REMEDIES_SHOWN]


def _read_keys(text: str) -> set[str]:
    """Return the keys that a remedy sets; one that sets an earlier one's keys and more is only a spare."""
    return {part.partition("=")[0] for part in text.split()}


def _list_changes(levers: list[list[Setting]]) -> Iterator[tuple[Setting, ...]]:
    """Yield one setting, then two together and so on, the cheapest first; of three and more the strongest only."""
    for count in range(1, len(levers) + 1):
        yield from sorted(
            (
                pick
                for group in combinations(levers, count)
                for pick in product(*(lever if count < 3 else lever[-1:] for lever in group))
            ),
            key=lambda pick: sum(setting.cost for setting in pick),
        )


def list_levers(demand: Demand) -> list[list[Setting]]:
    """Return what can be turned: for each lever its settings from the cheapest to the one that saves most."""
    levers = [list(_list_rows(demand)), list(_list_lengths(demand)), list(_list_ranks(demand))]
    levers.append(list(_list_processes(demand)))
    if demand.checkpointing is Choice.never:
        change = _changing(checkpointing=Choice.always)
        levers.append([Setting("hardware.gradient_checkpointing=always", 33, change)])
    if demand.quant is QuantKind.none:
        change = _changing(quant=QuantKind.nf4, double=True, keep_dequantized=Choice.auto)
        levers.append([Setting("quant=nf4", 20, change)])
    elif demand.keep_dequantized is Choice.always:
        levers.append([Setting("quant.keep_dequantized=never", 5, _changing(keep_dequantized=Choice.never))])
    return [lever for lever in levers if lever]


def _changing(**values: object) -> Callable[[Demand], Demand]:
    return lambda demand: replace(demand, **values)  # type: ignore[arg-type]


def _list_rows(demand: Demand) -> Iterator[Setting]:
    """Halve the micro-batch: the same batch in more pieces."""
    rows, cost = demand.rows // 2, 4.0
    while rows:
        yield Setting(f"trainer.micro_batch={rows}", cost, _changing(rows=rows))
        rows, cost = rows // 2, cost + 4


def _list_lengths(demand: Demand) -> Iterator[Setting]:
    """Cut rows shorter, in eighths: what is cut off is not learned."""
    for eighths in range(7, 0, -1):
        length = demand.length * eighths // 8
        if length >= 64:
            yield Setting(f"trainer.max_length={length}", 40 + 15 * (8 - eighths), _changing(length=length))


def _list_ranks(demand: Demand) -> Iterator[Setting]:
    for rank in reversed([rank for rank in SERVED_RANKS if 8 <= rank < demand.rank]):
        yield Setting(f"lora.rank={rank}", 60 + demand.rank / rank, _changing(rank=rank))


def _list_processes(demand: Demand) -> Iterator[Setting]:
    """Share the weights out over more cards, of the same size."""
    for processes in (2, 4, 8):
        if processes > demand.processes or (demand.strategy is Strategy.ddp and processes == demand.processes):
            text = f"hardware.strategy=fsdp2 hardware.processes={processes}"
            change = _changing(processes=processes, strategy=Strategy.fsdp2)
            yield Setting(text, 150 + 10 * processes, change)
