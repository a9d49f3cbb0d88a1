"""In which order scripts/bench_gpu.py measures where a card is lent for minutes: `budget_s=`, by worth, not by part.

Correctness first, then what training comes to, its memory, exact search, reranking, then what these are held against.
A step is begun only where its allowance still fits, and ended, with all it started, when it takes PATIENCE times as
long; what was measured stands in the book by then. Does not know what the steps measure.
"""

from dataclasses import dataclass

WHOLE, NOTHING = "the part itself", "everything"
"""Steps that stand in a book for a part that broke off, and for one that did not begin."""
PATIENCE, LEAST_PATIENCE_S = 3, 60
"""A step is given so many times its allowance, and never less than so many seconds."""


@dataclass(frozen=True, slots=True)
class Leg:
    """Steps of one part that stand behind one another in the order and share a process.

    Attributes:
        part: Whose steps.
        allowances: Seconds that each may want on an H100, compiling and models of its own included, by its name.
            Reckoned from sizes, not measured.
    """

    part: str
    allowances: dict[str, int]


PLAN = (
    Leg("probe", {"products": 15, "copy": 10}),
    Leg(
        "train",
        {
            "loss and gradients": 50,
            "packed = unpacked": 50,
            "no waits": 40,
            "step, bf16 LoRA": 40,
            "step, NF4 kept": 30,
            "step, true NF4": 30,
            "step, least memory": 30,
            "no waits, true NF4, recomputed": 30,
        },
    ),
    Leg("memory", {"trainer within its share": 50}),
    Leg("retrieval", {"filters and deletions": 25, "flat, 384": 40, "encoders": 25, "reranker from texts": 40}),
    Leg(
        "train",
        {
            "trainer, Loam": 80,
            "no waits, trainer": 40,
            "no waits, trainer, pairs": 40,
            "trainer, TRL defaults": 60,
            "trainer, TRL tuned": 50,
            "step, bf16 LoRA, 16,384 tokens": 30,
            "attention": 50,
            "passes": 30,
            "adapters": 15,
        },
    ),
    Leg("retrieval", {"torch's own scan": 20, "flat, 1024": 70, "search and rerank": 50}),
    Leg("memory", {"budget of 24 GB": 5, "encoders within their share": 40}),
    Leg("serve", {"engine": 200, "gateway": 100}),
    Leg("probe", {"a token at least, computed": 5}),
    Leg("memory", {"serving, ingestion and training at once": 240}),
    Leg("retrieval", {"lists": 240, "graph": 240}),
    Leg("train", {"trainer, Unsloth": 240}),
)


def find_place(part: str, step: str) -> tuple[bool, int]:
    """Return what steps of a part are sorted by, however a book came to hold them; unknown ones come last."""
    names = [name for leg in PLAN if leg.part == part for name in leg.allowances]
    return step not in names, names.index(step) if step in names else 0


def find_patience(allowance_s: int) -> int:
    """Return after how many seconds a step is ended."""
    return max(LEAST_PATIENCE_S, PATIENCE * allowance_s)
