"""The memory estimate counts a model's parameters exactly, chooses what fits, and computes what would make it fit."""

from dataclasses import replace
from typing import Any

import pytest

from core.errors import ConfigError
from train.config import (
    Choice,
    HardwareConfig,
    MethodConfig,
    MethodKind,
    QuantKind,
    Strategy,
    TrainConfig,
    TrainerConfig,
)
from train.footprint import GIB, Demand, Shape
from train.memory import (
    MemoryPlan,
    choose_plan,
    find_remedies,
    fix_choices,
    plan_fixed,
    plan_memory,
    plan_run,
)

SMOLLM2 = Shape(576, 1536, 30, 9, 3, 64, 49_152, has_tied_head=True)
LLAMA_3B = Shape(3072, 8192, 28, 24, 8, 128, 128_256, has_tied_head=True)
LLAMA_70B = Shape(8192, 28672, 80, 64, 8, 128, 128_256, has_tied_head=False)
DEMAND = Demand(QuantKind.nf4, rank=16, rows=4, length=2048, value_bytes=2)


def plan(shape: Shape, gib: float, **values: Any) -> MemoryPlan:
    return plan_memory(shape, replace(DEMAND, **values), int(gib * GIB))


def apply_remedy(demand: Demand, text: str) -> Demand:
    """Do to a demand what a person would type."""
    for part in text.split():
        key, _, value = part.partition("=")
        changes: dict[str, Any] = {
            "trainer.micro_batch": lambda v: {"rows": int(v)},
            "trainer.max_length": lambda v: {"length": int(v)},
            "lora.rank": lambda v: {"rank": int(v)},
            "hardware.gradient_checkpointing": lambda v: {"checkpointing": Choice(v)},
            "quant": lambda v: {"quant": QuantKind(v), "keep_dequantized": Choice.auto},
            "quant.keep_dequantized": lambda v: {"keep_dequantized": Choice(v)},
            "hardware.strategy": lambda v: {"strategy": Strategy(v)},
            "hardware.processes": lambda v: {"processes": int(v)},
        }
        demand = replace(demand, **changes[key](value))
    return demand


def test_a_large_card_needs_no_recomputation_and_keeps_the_weights() -> None:
    chosen = plan(LLAMA_3B, 78)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (True, False)


def test_a_small_card_recomputes_and_keeps_four_bits() -> None:
    chosen = plan(LLAMA_3B, 8)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (False, True)


def test_what_was_said_is_done() -> None:
    chosen = plan(LLAMA_3B, 78, keep_dequantized=Choice.never, checkpointing=Choice.always)
    assert (chosen.keep_dequantized, chosen.gradient_checkpointing) == (False, True)


def test_shares_of_the_weights_make_a_large_model_fit() -> None:
    alone = choose_plan(LLAMA_70B, replace(DEMAND, quant=QuantKind.none), 78 * GIB)
    shared = replace(DEMAND, quant=QuantKind.none, processes=8, strategy=Strategy.fsdp2)
    assert alone.total > 130 * GIB
    assert not choose_plan(LLAMA_70B, replace(shared, quant=QuantKind.nf4), 78 * GIB).keep_dequantized
    assert choose_plan(LLAMA_70B, replace(shared, quant=QuantKind.nf4), 78 * GIB).total < 78 * GIB


@pytest.mark.parametrize("gib", [1.5, 2, 3, 4, 6])
@pytest.mark.parametrize("quant", list(QuantKind))
def test_each_remedy_that_is_named_does_make_it_fit(gib: float, quant: QuantKind) -> None:
    demand = replace(DEMAND, quant=quant, checkpointing=Choice.never, keep_dequantized=Choice.always, rank=64)
    available = int(gib * GIB)
    assert choose_plan(LLAMA_3B, demand, available).total > available
    remedies = find_remedies(LLAMA_3B, demand, available)
    for text, size in remedies:
        assert choose_plan(LLAMA_3B, apply_remedy(demand, text), available).total <= size <= available, text
    assert len(remedies) == (3 if gib >= 4 else len(remedies))


def test_what_cannot_fit_is_refused_with_three_changes() -> None:
    with pytest.raises(ConfigError) as refused:
        plan(SMOLLM2, 1.5, checkpointing=Choice.never)
    lines = refused.value.message.splitlines()
    assert len(lines) == 4
    assert "of 1.5 GiB free" in lines[0]
    assert all("(then about " in line for line in lines[1:])


def test_what_nothing_helps_names_a_smaller_model() -> None:
    with pytest.raises(ConfigError, match="smaller model=NAME"):
        plan(LLAMA_70B, 3)


def test_longer_rows_and_eager_attention_take_more() -> None:
    sizes = [choose_plan(SMOLLM2, replace(DEMAND, length=length), 99 * GIB).activations for length in (512, 1024)]
    assert sizes[1] == 2 * sizes[0]
    eager = [
        choose_plan(SMOLLM2, replace(DEMAND, length=length, is_eager=True), 99 * GIB).activations
        for length in (512, 1024)
    ]
    assert eager[1] > 2.5 * eager[0], "attention weights grow with the square"


def test_a_fixed_plan_chooses_nothing_itself() -> None:
    chosen = choose_plan(LLAMA_3B, replace(DEMAND, rows=1), 78 * GIB)
    fixed = plan_fixed(LLAMA_3B, fix_choices(DEMAND, chosen), 8)
    assert (fixed.keep_dequantized, fixed.gradient_checkpointing) == (True, False)
    assert fixed.activations == 8 * chosen.activations


def test_a_configuration_is_read() -> None:
    config = TrainConfig(
        trainer=TrainerConfig(batch_size=8, micro_batch="auto", max_length=512),
        hardware=HardwareConfig(attention="eager", processes=2),
    )
    demand = Demand.of_config(config, 9999, 4, "cpu")
    assert (demand.rows, demand.length, demand.is_eager, demand.is_cpu, demand.processes) == (1, 512, True, True, 2)
    assert plan_run(config, SMOLLM2, 100, 4, "cpu", 64 * GIB).total > 0


@pytest.mark.parametrize(
    ("values", "measured_mib"),
    [
        ({"value_bytes": 4, "keep_dequantized": Choice.never}, 2671),
        ({"value_bytes": 2, "keep_dequantized": Choice.never}, 1547),
        ({"value_bytes": 4, "keep_dequantized": Choice.always}, 1721),
        ({"value_bytes": 2, "keep_dequantized": Choice.always}, 926),
        ({"value_bytes": 4, "quant": QuantKind.none}, 2015),
        ({"value_bytes": 2, "quant": QuantKind.none}, 867),
        ({"value_bytes": 4, "keep_dequantized": Choice.never, "checkpointing": Choice.always}, 1534),
        ({"value_bytes": 2, "keep_dequantized": Choice.never, "checkpointing": Choice.always}, 803),
    ],
)
def test_the_estimate_is_near_what_was_measured(values: dict[str, Any], measured_mib: int) -> None:
    """Peaks of real runs of SmolLM2 on a CPU, 4 rows of 256 tokens (docs/experiments.md)."""
    fixed: dict[str, Any] = {"is_cpu": True, "has_fused_head": True, "may_run_by_hand": True, "length": 256}
    demand = replace(DEMAND, **fixed, **{"checkpointing": Choice.never, **values})
    estimated = choose_plan(SMOLLM2, demand, 99 * GIB).total / 2**20
    assert 0.95 < estimated / measured_mib < 1.2


def test_the_layers_by_hand_are_counted_where_they_are_used() -> None:
    demand = replace(DEMAND, is_cpu=True, has_fused_head=True, may_run_by_hand=True, keep_dequantized=Choice.always)
    by_hand = choose_plan(SMOLLM2, demand, 99 * GIB)
    own = choose_plan(SMOLLM2, replace(demand, may_run_by_hand=False), 99 * GIB)
    assert by_hand.activations < 0.6 * own.activations
    for changed in (replace(SMOLLM2, is_llama=False), SMOLLM2):
        four_bits = replace(demand, keep_dequantized=Choice.never)
        assert choose_plan(changed, demand if changed is not SMOLLM2 else four_bits, 99 * GIB).activations == (
            own.activations
        )
    assert choose_plan(SMOLLM2, replace(demand, checkpointing=Choice.always), 99 * GIB).gradient_checkpointing


def test_a_pair_has_two_answers() -> None:
    chats, pairs = (
        Demand.of_config(TrainConfig(method=MethodConfig(kind, beta)), 100, 2, "cpu")
        for kind, beta in ((MethodKind.sft, None), (MethodKind.dpo, 0.1))
    )
    assert (chats.rows, 2 * chats.tokens) == (pairs.rows, pairs.tokens)
    activations = [choose_plan(SMOLLM2, demand, 99 * GIB).activations for demand in (chats, pairs)]
    assert 1.8 < activations[1] / activations[0] < 2


def test_the_line_for_people_names_both_sides_and_the_choices() -> None:
    line = plan(LLAMA_3B, 78).describe(78 * GIB)
    assert "of 78.0 GiB free" in line
    assert "base kept dequantized" in line


def test_a_card_counts_the_layers_by_hand_in_four_bits_and_recomputed_too() -> None:
    by_hand = replace(DEMAND, rows=1, has_fused_head=True, may_run_by_hand=True, keep_dequantized=Choice.never)
    own = replace(by_hand, may_run_by_hand=False)
    for checkpointing in (Choice.never, Choice.always):
        pair = [
            choose_plan(LLAMA_3B, replace(demand, checkpointing=checkpointing), 99 * GIB) for demand in (by_hand, own)
        ]
        assert pair[0].activations < pair[1].activations
    least = choose_plan(LLAMA_3B, replace(by_hand, checkpointing=Choice.always), 99 * GIB)
    assert (least.total - least.libraries) / 1e9 < 4.0, "tensors of the memory profile, one row of 2,048"
    kept = choose_plan(LLAMA_3B, replace(by_hand, keep_dequantized=Choice.auto), 78 * GIB)
    assert (kept.keep_dequantized, kept.gradient_checkpointing) == (True, False)
