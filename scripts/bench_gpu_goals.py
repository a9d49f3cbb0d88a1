"""The goals of the GPU path, held against what a book of scripts/bench_gpu.py holds: met, not met, or not measured.

Ratios between steps are computed here, so that a book that was filled over several runs says the same as one that was
filled in one. Speeds are judged on the card that their goal was set for, and never by a small twin. Does not know how
anything is measured.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from scripts.bench_gpu_plan import NOTHING, WHOLE

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
CARD = "H100"
FLOOR = 26_000
WIDEST = 0.05
"""Half of an interval that is too wide to tell a loss from none."""
LAYERS = ("step, bf16 LoRA", "step, bf16 LoRA, 16,384 tokens")
SPEED = "non-padding tokens"


class Missing(Exception):
    """A figure that a goal needs is not in the book; says why."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a book.

    Attributes:
        parts: Of each part its steps, of each how it ended.
    """

    parts: Mapping[str, Mapping[str, Mapping[str, Any]]]

    def find(self, part: str, step: str, words: str) -> dict[str, float]:
        """Return the figures of a step whose names contain some words, by name.

        Raises:
            Missing: There is none.
        """
        entries = self.parts.get(part, {})
        entry = entries.get(step)
        if entry is None:
            whole = entries.get(WHOLE) or entries.get(NOTHING) or self.parts.get("probe", {}).get(NOTHING)
            raise Missing(whole["reason"] if whole else f"{part}/{step}: not run yet")
        if entry["status"] != "measured":
            raise Missing(f"{part}/{step}: {entry['status']}: {entry.get('reason', '')}")
        found = {one["name"]: float(one["value"]) for one in entry["figures"] if words in one["name"]}
        if not found:
            raise Missing(f"{part}/{step}: says nothing of «{words.strip(': ')}» here")
        return found

    def get(self, part: str, step: str, words: str) -> float:
        """Return the first of them."""
        return next(iter(self.find(part, step, words).values()))

    def has_proof_failed(self, part: str, step: str) -> bool:
        """Whether a step computed something else than it should."""
        entry = self.parts.get(part, {}).get(step, {})
        return entry.get("status") == "failed" and str(entry.get("reason")).startswith("Wrong: ")


Judged = tuple[float, str]
"""A value, and what it was computed from, in words."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One line of what the GPU path shall reach.

    Attributes:
        name: What is held against it.
        part: That measures it.
        step: That measures it; the one that decides, where several do.
        compute: Returns the value and what it was computed from.
        least: Smallest value that meets it.
        most: Largest value that meets it; None for both: it has to be reported.
        unit: Of the value.
        is_of_card: Whether it was set for one kind of card.
        is_proof: Whether the step itself refuses what is wrong: one that did has missed the goal.
        is_computed: Whether it hangs on no card at all.
    """

    name: str
    part: str
    step: str
    compute: Callable[[Figures], Judged]
    least: float | None = None
    most: float | None = None
    unit: str = ""
    is_of_card: bool = False
    is_proof: bool = False
    is_computed: bool = False

    @property
    def wanted(self) -> str:
        """The goal in words."""
        if self.least is None and self.most is None:
            return "runs" if self.is_proof else "reported"
        word, limit = ("at least", self.least) if self.most is None else ("at most", self.most)
        return f"{word} {limit:,g} {self.unit}".strip()

    def is_met_by(self, value: float) -> bool:
        """Whether a value meets it."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a goal stands.

    Attributes:
        goal: Its name.
        wanted: It in words.
        value: As computed; None where a figure is missing.
        unit: Of the value.
        verdict: MET, NOT_MET or NOT_MEASURED.
        why: What the value was computed from, or why there is none, or why it does not count.
    """

    goal: str
    wanted: str
    value: float | None
    unit: str
    verdict: str
    why: str


def judge_goals(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a verdict for each goal, always all of them and in the same order, as the book holds them.

    Args:
        content: A book: `machine` and `parts`.
    """
    return [asdict(judge_goal(goal, content)) for goal in GOALS]


def judge_goal(goal: Goal, content: Mapping[str, Any]) -> Verdict:
    """Hold a goal against a book."""
    figures = Figures(content["parts"])
    try:
        value, why = goal.compute(figures)
    except Missing as missing:
        has_failed = goal.is_proof and figures.has_proof_failed(goal.part, goal.step) and is_full(content["machine"])
        return Verdict(goal.name, goal.wanted, None, goal.unit, NOT_MET if has_failed else NOT_MEASURED, str(missing))
    verdict = MET if goal.is_met_by(value) else NOT_MET
    machine = content["machine"]
    if not goal.is_computed and not is_full(machine):
        verdict, why = NOT_MEASURED, "a small twin, which counts for nothing"
    elif goal.is_of_card and CARD not in str(machine.get("name")):
        verdict, why = NOT_MEASURED, f"the goal is for one {CARD}, this is {machine.get('name')}; {why}"
    return Verdict(goal.name, goal.wanted, value, goal.unit, verdict, why)


def is_full(machine: Mapping[str, Any]) -> bool:
    """Whether a book's figures are of a card, at full size."""
    return machine.get("size") == "full" and str(machine.get("device", "")).startswith("cuda")


def read(part: str, step: str, words: str, figures: Figures) -> Judged:
    """Return the first figure whose name contains some words."""
    return figures.get(part, step, words), f"{part}/{step}"


def read_least(part: str, step: str, words: str, figures: Figures) -> Judged:
    """Return the smallest of such figures."""
    name, value = min(figures.find(part, step, words).items(), key=lambda one: one[1])
    return value, name


def read_most(part: str, step: str, words: str, figures: Figures) -> Judged:
    """Return the largest of such figures."""
    name, value = max(figures.find(part, step, words).items(), key=lambda one: one[1])
    return value, name


def find_fastest_layers(figures: Figures, words: str = SPEED) -> Judged:
    """Return a figure of whichever step of LoRA on bfloat16 weights is the faster of those that were measured."""
    found, reasons = {}, []
    for step in LAYERS:
        try:
            found[step] = figures.get("train", step, SPEED)
        except Missing as missing:
            reasons.append(str(missing))
    if not found:
        raise Missing(reasons[0])
    fastest = max(found, key=lambda step: found[step])
    return figures.get("train", fastest, words), fastest


def judge_speed(figures: Figures) -> Judged:
    """Return tokens a second on packs, and where they stand to the floor."""
    value, step = find_fastest_layers(figures)
    return value, f"{step}; {'above' if value >= FLOOR else 'below'} the floor of {FLOOR:,}"


def compare_with_layers(step: str, base: str | None, figures: Figures) -> Judged:
    """Return a training step's speed, of LoRA's on bfloat16 weights.

    Args:
        step: Whose speed.
        base: Of which step; None: of the fastest.
        figures: Of the book.
    """
    value = figures.get("train", step, SPEED)
    whole, name = (figures.get("train", base, SPEED), base) if base else find_fastest_layers(figures)
    return value / whole, f"{value:,.0f} of {whole:,.0f} tokens/s ({name})"


def compare_trainers(other: str, words: str, figures: Figures) -> Judged:
    """Return how many times as fast as another trainer Loam's is."""
    ours = figures.get("train", "trainer, Loam", "tokens, full rows" if words == "tokens, full rows" else SPEED)
    (name, theirs), *_ = figures.find("train", other, words).items()
    return ours / theirs, f"{ours:,.0f} against {theirs:,.0f} tokens/s ({other}: {name})"


def judge_gateway(figures: Figures) -> Judged:
    """Return the most that the gateway may let through of its engine's tokens, by the interval of paired rounds."""
    mean = figures.get("serve", "gateway", "of what its engine alone gives")
    half = figures.get("serve", "gateway", "half of its 95% interval")
    if half > WIDEST:
        raise Missing(f"{mean:.3f} ± {half:.3f} is too wide an interval to tell; wanted ± {WIDEST:g}")
    return mean + half, f"upper end of {mean:.3f} ± {half:.3f}"


def compare_with_copy(step: str, figures: Figures) -> Judged:
    """Return the bytes a second that one query reads, of those that a large copy reads and writes."""
    value = figures.get("retrieval", step, ": bytes read at one query")
    whole = figures.get("probe", "copy", "memory bandwidth")
    return value / whole, f"{value:,.0f} of {whole:,.0f} GB/s (probe/copy)"


def _list_goals_of_training() -> tuple[Goal, ...]:
    train = partial(Goal, part="train")
    kept, least = "step, NF4 kept", "step, least memory"
    unsloth = "trainer, Unsloth"
    return (
        train(
            "packed = unpacked logits, the worst attention that ran",
            step="packed = unpacked",
            compute=partial(read_most, "train", "packed = unpacked", "packed logits"),
            most=0.01,
            is_proof=True,
        ),
        train(
            "bf16 LoRA, r16, packed 2,048",
            step=LAYERS[0],
            compute=judge_speed,
            least=31_000,
            unit="tokens/s",
            is_of_card=True,
        ),
        train(
            "its share of 800 TFLOP/s, at 4N + 6P + 3A",
            step=LAYERS[0],
            compute=partial(find_fastest_layers, words="share of 800"),
            least=0.54,
            is_of_card=True,
        ),
        train("NF4 kept, of bf16 LoRA", step=kept, compute=partial(compare_with_layers, kept, LAYERS[0]), least=0.98),
        train(
            "true NF4, beside it",
            step="step, true NF4",
            compute=partial(read, "train", "step, true NF4", SPEED),
            unit="tokens/s",
        ),
        *(
            train(f"Loam against {name}", step=step, compute=partial(compare_trainers, step, words), least=times)
            for name, step, words, times in (
                ("TRL's defaults, mixed lengths", "trainer, TRL defaults", SPEED, 2.5),
                ("TRL well tuned, mixed lengths", "trainer, TRL tuned", SPEED, 1.2),
                ("Unsloth, packed", unsloth, SPEED, 1.0),
                ("Unsloth, full rows", unsloth, "tokens, full rows", 1.15),
            )
        ),
        train(
            "memory profile at 1 × 2,048: tensors",
            step=least,
            compute=partial(read, "train", least, "most memory"),
            most=4.0,
            unit="GB",
        ),
        train(
            "its speed, of the fastest bf16 LoRA",
            step=least,
            compute=partial(compare_with_layers, least, None),
            least=0.65,
        ),
    )


def _list_goals_of_memory() -> tuple[Goal, ...]:
    memory = partial(Goal, part="memory")
    runs = (("trainer within its share", "4-bit training"), ("encoders within their share", "pairs within the share"))
    budget, everybody = "budget of 24 GB", "serving, ingestion and training at once"
    return (
        memory(
            "budget of one card of 24 GB: vLLM's cache",
            step=budget,
            compute=partial(read, "memory", budget, "tokens of vLLM's cache"),
            least=8192,
            unit="tokens",
            is_computed=True,
        ),
        *(
            memory(
                step,
                step=step,
                compute=partial(read, "memory", step, words),
                unit="pairs/s" if "pairs" in words else "tokens/s",
                is_proof=True,
            )
            for step, words in runs
        ),
        memory(
            everybody,
            step=everybody,
            compute=partial(read, "memory", everybody, "most of the card"),
            most=24.0,
            unit="GiB",
            is_proof=True,
        ),
    )


def _list_goals_of_serving() -> tuple[Goal, ...]:
    lines = (
        ("8 adapters, of base", 0.93),
        ("one adapter, of base", 0.96),
        ("one stream, of the memory's bandwidth", 0.8),
    )
    return (
        *(Goal(name, "serve", "engine", partial(read, "serve", "engine", name), least=least) for name, least in lines),
        Goal(
            "through the gateway, of its engine alone, 95% at most",
            "serve",
            "gateway",
            judge_gateway,
            least=1.0,
        ),
    )


def _list_goals_of_retrieval() -> tuple[Goal, ...]:
    goal = partial(Goal, part="retrieval")
    goals: list[Goal] = []
    for step, width, speed in (("flat, 384", "384", 100_000), ("flat, 1024", "1,024", 60_000)):
        name, find = f"flat, 1,000,000 × {width}", partial(read, "retrieval", step)
        goals += [
            goal(f"{name}: one query, of a copy", step=step, compute=partial(compare_with_copy, step), least=0.7),
            goal(
                f"{name}: 256 at once",
                step=step,
                compute=partial(find, ": 256 queries"),
                least=speed,
                unit="queries/s",
                is_of_card=True,
            ),
            goal(f"{name}: recall@10", step=step, compute=partial(find, ": recall@10"), least=1.0, is_proof=True),
        ]
    goals += [
        goal(
            f"{name}, 10,000,000 × 384: recall@10",
            step=step,
            compute=partial(read, "retrieval", step, ": recall@10"),
            least=0.98,
            is_proof=True,
        )
        for name, step in (("lists", "lists"), ("graph (CAGRA)", "graph"))
    ]
    filters, encoders, search = "filters and deletions", "encoders", "search and rerank"
    return (
        *goals,
        goal(
            "filters and deletions: searches equal to an exact scan, of 50",
            step=filters,
            compute=partial(read_least, "retrieval", filters, "equal to an exact scan"),
            least=50,
            is_proof=True,
        ),
        goal(
            "cross-encoder of MiniLM-L6's shape, pairs of 256 tokens",
            step=encoders,
            compute=partial(read_most, "retrieval", encoders, "cross-encoder"),
            least=25_000,
            unit="pairs/s",
            is_of_card=True,
        ),
        goal(
            "embedder of that shape, beside it",
            step=encoders,
            compute=partial(read_most, "retrieval", encoders, "embedder"),
            unit="passages/s",
        ),
        goal(
            "dense search of 1,000,000 and 20 pairs reranked, p50",
            step=search,
            compute=partial(read, "retrieval", search, "p50"),
            most=12,
            unit="ms",
            is_of_card=True,
        ),
    )


GOALS = (
    *_list_goals_of_training(),
    *_list_goals_of_memory(),
    *_list_goals_of_serving(),
    *_list_goals_of_retrieval(),
)
