"""Which card for which model: prints the table of docs/operations.md; nothing of it is measured.

Training: train/memory.py's estimate (NF4, rank 16, rows of 1,024 tokens) and train/duration.py's share of what a card's
matrix products reach, over the card's own figure in bfloat16 without sparsity. Serving: weights in bfloat16, the tokens
of key-value cache that the rest of the engine's share holds, and what one answer cannot exceed, since each of its
tokens reads all weights once; answers that run together share that reading. Asks no card and needs none.
"""

from core.entry import begin_program

begin_program()

import sys
from dataclasses import dataclass

from core.config import run_command
from core.errors import ConfigError
from scripts.doctor_machine import CARD_ENGINE_BYTES
from train.config import QuantKind, Strategy
from train.duration import EFFICIENCY
from train.footprint import GIB, Demand, Shape
from train.memory import MemoryPlan, choose_plan

ROW_TOKENS = 1024
ROWS = 4
RANK = 16
ENGINE_SHARE = 0.85
SHAPES = {
    "Llama-3.2-3B": Shape(3072, 8192, 28, 24, 8, 128, 128_256, has_tied_head=True),
    "Llama-3.1-8B": Shape(4096, 14336, 32, 32, 8, 128, 128_256, has_tied_head=False),
    "Llama-3.3-70B": Shape(8192, 28672, 80, 64, 8, 128, 128_256, has_tied_head=False),
}
"""As their config.json has it."""


@dataclass(frozen=True, slots=True)
class Card:
    """A card by its data sheet.

    Attributes:
        memory_gib: What a program sees of its memory, about.
        teraflops: Of matrix products in bfloat16, dense, summed in float32.
        gigabytes_per_s: That its memory is read at.
    """

    memory_gib: float
    teraflops: float
    gigabytes_per_s: float


CARDS = {
    "L4 24 GB": Card(22, 121, 300),
    "A10 24 GB": Card(22, 125, 600),
    "RTX 4090 24 GB": Card(23.5, 165, 1008),
    "L40S 48 GB": Card(44, 362, 864),
    "A100 80 GB": Card(79, 312, 1935),
    "H100 80 GB": Card(79, 989, 3350),
    "H200 141 GB": Card(139, 989, 4800),
}


def plan_training(shape: Shape, card: Card) -> MemoryPlan:
    """Return what training takes on a card, with the choices that fit it."""
    demand = Demand(QuantKind.nf4, RANK, ROWS, ROW_TOKENS, 2)
    return choose_plan(shape, demand, int(card.memory_gib * GIB))


def count_training_rate(shape: Shape, card: Card, *, is_recomputed: bool) -> tuple[float, float]:
    """Return the tokens a second that training reads, at worst and at best."""
    passes = 3 if is_recomputed else 2
    weights = 2 * passes * shape.linear_parameters + (8 if is_recomputed else 6) * shape.adapter_parameters(RANK)
    attention = 4 * shape.queries * shape.layers * (passes + 1) * ROW_TOKENS
    head = 4 * shape.vocabulary * shape.hidden
    worst, best = (share * card.teraflops * 1e12 / (weights + attention + head) for share in EFFICIENCY["cuda"])
    return worst, best


def count_cache_tokens(shape: Shape, card: Card) -> int:
    """Return the tokens of key-value cache beside the weights; negative where the weights do not fit."""
    weights = 2 * (shape.linear_parameters + shape.embedding_parameters)
    room = ENGINE_SHARE * card.memory_gib * GIB - weights - CARD_ENGINE_BYTES
    return int(room // (2 * shape.layers * shape.keys * 2))


def count_answer_rate(shape: Shape, card: Card) -> float:
    """Return the tokens a second that one answer cannot exceed: each token reads every layer and the head once."""
    return card.gigabytes_per_s * 1e9 / (2 * (shape.linear_parameters + shape.vocabulary * shape.hidden))


def describe(shape: Shape, card: Card) -> str:
    """Return one cell pair of the table: training, serving."""
    plan = plan_training(shape, card)
    training = "does not fit"
    if plan.total <= 0.92 * card.memory_gib * GIB:
        worst, best = count_training_rate(shape, card, is_recomputed=plan.gradient_checkpointing)
        training = f"{plan.total / GIB:.0f} GiB, {_round(worst)} to {_round(best)} tokens/s"
    tokens = count_cache_tokens(shape, card)
    serving = f"{_round(tokens)} tokens of cache, {_round(count_answer_rate(shape, card))} tokens/s at most"
    serving = serving if tokens > 0 else "does not fit"
    return f"{training} | {serving}"


def _round(number: float) -> str:
    """Return a number with two digits that count."""
    digits = len(str(int(number))) - 2
    return f"{round(number, -digits) if digits > 0 else number:,.0f}"


def describe_shared(shape: Shape, card: Card, cards: int) -> str:
    """Return what each of several cards needs for training when they share the base out (FSDP2)."""
    demand = Demand(QuantKind.nf4, RANK, 1, ROW_TOKENS, 2, processes=cards, strategy=Strategy.fsdp2)
    plan = choose_plan(shape, demand, int(card.memory_gib * GIB))
    fits = plan.total <= 0.92 * card.memory_gib * GIB
    return f"{plan.total / GIB:.0f} GiB each" if fits else f"does not fit ({plan.total / GIB:.0f} GiB each)"


def print_shared(cards: int) -> None:
    """Print the table of several cards that train together."""
    print(f"| {cards} cards of | " + " | ".join(SHAPES) + " |")
    print("|---" * (len(SHAPES) + 1) + "|")
    for name, card in CARDS.items():
        print(f"| {name} | " + " | ".join(describe_shared(shape, card, cards) for shape in SHAPES.values()) + " |")


def main() -> None:
    """Print the table of one card, or with cards=N that of several that share a base out."""
    words = sys.argv[1:]
    if words:
        count = words[0].removeprefix("cards=")
        if len(words) > 1 or not count.isdecimal() or int(count) < 2:
            raise ConfigError(f"wanted nothing, or cards=N with N of 2 and more; found {' '.join(words)}.")
        print_shared(int(count))
        return
    print(f"| card | model | training in NF4, {ROWS} rows of {ROW_TOKENS:,} tokens | serving in bfloat16 |")
    print("|---|---|---|---|")
    for name, card in CARDS.items():
        for model, shape in SHAPES.items():
            print(f"| {name} | {model} | {describe(shape, card)} |")


if __name__ == "__main__":
    run_command(main)
