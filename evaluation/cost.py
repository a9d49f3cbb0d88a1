"""What each arm costs a month, by volume: on one's own machine, and at hosted prices.

A cost is a fixed part a month, a part for each answer, and for a local machine a capacity: past it a second machine is
bought. Prices stand in conf/cost/, dated, to be edited; usage (tokens, seconds, hours of training) is measured. Does
not know how usage was measured, or which arm is better.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from core.errors import ConfigError

HOURS_A_MONTH = 730.0
"""365 days of 24 hours over 12 months."""
MAX_VOLUME = 1_000_000_000
"""Answers a month up to which break-even points are looked for."""


@dataclass(slots=True)
class LocalPrices:
    """One's own machine.

    Attributes:
        hardware_usd: Price of the machine, or of the part of it that this work gets.
        depreciation_months: Months over which the price is spread.
        watts_idle: Drawn all the time.
        watts_busy: Drawn while it answers, embeds or trains.
        usd_per_kwh: Price of power, cooling included.
        busy_share: Largest share of the hours that the machine can be busy, above 0, to 1; the rest is waiting.
        seconds_factor: Seconds on this machine for one second on the machine that was measured, above 0.
    """

    hardware_usd: float = 3000.0
    depreciation_months: int = 36
    watts_idle: float = 60.0
    watts_busy: float = 150.0
    usd_per_kwh: float = 0.30
    busy_share: float = 0.5
    seconds_factor: float = 1.0


@dataclass(slots=True)
class HostedPrices:
    """What providers charge.

    Attributes:
        vector_database_usd_per_month: Of a hosted vector database: lowest and highest.
        embedding_usd_per_1k_tokens: Of documents and questions.
        training_usd_per_1k_tokens: Of fine-tuning, for each token that is read in training, every epoch.
        input_usd_per_1k_tokens: Of a prompt to the base model.
        output_usd_per_1k_tokens: Of its answer.
        tuned_price_factor: What a fine-tuned model costs for one dollar of the base model.
    """

    vector_database_usd_per_month: list[float] = field(default_factory=lambda: [50.0, 500.0])
    embedding_usd_per_1k_tokens: float = 0.0001
    training_usd_per_1k_tokens: float = 0.008
    input_usd_per_1k_tokens: float = 0.0015
    output_usd_per_1k_tokens: float = 0.002
    tuned_price_factor: float = 2.0


@dataclass(slots=True)
class CostConfig:
    """Prices, and how much is asked.

    Attributes:
        as_of: Date of the prices, YYYY-MM-DD.
        monthly_answers: Answers a month, the user's volume.
        updates_per_month: How often the knowledge changes: documents are ingested again, tuned models trained again.
        setup_months: Months over which the first ingestion and the first training are spread: how long they are used.
        local: One's own machine.
        hosted: What providers charge.
    """

    as_of: str = "2026-11-25"
    monthly_answers: int = 10_000
    updates_per_month: float = 1.0
    setup_months: int = 12
    local: LocalPrices = field(default_factory=LocalPrices)
    hosted: HostedPrices = field(default_factory=HostedPrices)

    def __post_init__(self) -> None:
        """Check every range."""
        local, hosted = self.local, self.hosted
        prices = {
            "updates_per_month": self.updates_per_month,
            "local.hardware_usd": local.hardware_usd,
            "local.watts_idle": local.watts_idle,
            "local.usd_per_kwh": local.usd_per_kwh,
            "hosted.embedding_usd_per_1k_tokens": hosted.embedding_usd_per_1k_tokens,
            "hosted.training_usd_per_1k_tokens": hosted.training_usd_per_1k_tokens,
            "hosted.input_usd_per_1k_tokens": hosted.input_usd_per_1k_tokens,
            "hosted.output_usd_per_1k_tokens": hosted.output_usd_per_1k_tokens,
            "hosted.tuned_price_factor": hosted.tuned_price_factor,
        }
        faults = [f"cost.{key}: wanted a number of at least 0, found {value}" for key, value in prices.items()
                  if not 0 <= value < math.inf]  # fmt: skip
        database = hosted.vector_database_usd_per_month
        checks: list[tuple[str, bool, str, Any]] = [
            ("monthly_answers", self.monthly_answers >= 1, "at least 1", self.monthly_answers),
            ("setup_months", self.setup_months >= 1, "at least 1", self.setup_months),
            ("local.depreciation_months", local.depreciation_months >= 1, "at least 1", local.depreciation_months),
            ("local.watts_busy", local.watts_idle <= local.watts_busy < math.inf,
             "a number of at least watts_idle", local.watts_busy),
            ("local.busy_share", 0 < local.busy_share <= 1, "above 0, to 1", local.busy_share),
            ("local.seconds_factor", 0 < local.seconds_factor < math.inf, "a number above 0", local.seconds_factor),
            ("hosted.vector_database_usd_per_month", len(database) == 2 and 0 <= database[0] <= database[1] < math.inf,
             "two prices, the lower first", database),
            ("as_of", _is_date(self.as_of), "a date as 2026-11-25", self.as_of),
        ]  # fmt: skip
        faults += [f"cost.{key}: wanted {wanted}, found {value!r}" for key, is_good, wanted, value in checks
                   if not is_good]  # fmt: skip
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def rounds_per_month(self) -> float:
        """How often a month documents are ingested and models trained: the first time, spread, and each update."""
        return 1 / self.setup_months + self.updates_per_month


@dataclass(frozen=True, slots=True)
class Usage:
    """What one arm uses, as measured.

    Attributes:
        prompt_tokens: Mean of an answer.
        completion_tokens: Mean of an answer.
        question_tokens: Mean of a question alone: what is embedded to search.
        busy_s: Seconds for which an answer keeps the machine busy.
        uses_documents: Whether it searches a store.
        is_tuned: Whether it answers with a fine-tuned model.
        training_tokens: Read in one training, all epochs; 0 where nothing was trained.
        training_s: Seconds of one training.
        corpus_tokens: Of all documents.
        ingest_s: Seconds to ingest all documents.
    """

    prompt_tokens: float
    completion_tokens: float
    question_tokens: float = 0.0
    busy_s: float = 0.0
    uses_documents: bool = False
    is_tuned: bool = False
    training_tokens: float = 0.0
    training_s: float = 0.0
    corpus_tokens: float = 0.0
    ingest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class MonthlyCost:
    """Cost a month as a function of volume.

    Attributes:
        fixed_usd: Once a month, whatever the volume: training, ingesting, databases.
        per_answer_usd: For each answer.
        machine_usd: For each machine; 0 for hosted.
        capacity: Answers a month that one machine gives; None: no limit.
    """

    fixed_usd: float
    per_answer_usd: float
    machine_usd: float = 0.0
    capacity: float | None = None

    def count_machines(self, volume: float) -> int:
        """Return how many machines so many answers a month take, at least one."""
        if self.capacity is None or volume <= 0:
            return 1
        return max(1, math.ceil(volume / self.capacity - 1e-9))

    def monthly_usd(self, volume: float) -> float:
        """Return the cost of a month with so many answers."""
        return self.fixed_usd + self.per_answer_usd * volume + self.machine_usd * self.count_machines(volume)

    def usd_per_thousand(self, volume: float) -> float:
        """Return the cost of a thousand answers at so many a month."""
        return 1000 * self.monthly_usd(volume) / volume

    def usd_per_correct(self, volume: float, quality: float) -> float | None:
        """Return the cost of one right answer at so many answers a month, or None where none is right.

        Args:
            volume: Answers a month.
            quality: Share of them that are right, 0 to 1.
        """
        return self.monthly_usd(volume) / (volume * quality) if quality > 0 else None


def price_locally(usage: Usage, config: CostConfig) -> MonthlyCost:
    """Return what an arm costs on one's own machine.

    The machine is paid for whether it works or not; work adds the power between idle and busy. Training and ingestion
    take their hours from those in which it could answer.

    Raises:
        ConfigError: They alone take more hours than a month has.
    """
    local = config.local
    kwh_a_second = (local.watts_busy - local.watts_idle) / 1000 / 3600
    usd_a_busy_second = kwh_a_second * local.usd_per_kwh
    making_s = (usage.training_s + usage.ingest_s) * local.seconds_factor * config.rounds_per_month
    free_s = HOURS_A_MONTH * 3600 * local.busy_share - making_s
    if free_s <= 0:
        raise ConfigError(
            f"cost.updates_per_month: wanted updates that leave time to answer, found {making_s / 3600:.0f} hours of "
            f"training and ingesting a month (the first time spread over {config.setup_months}) and "
            f"{HOURS_A_MONTH * local.busy_share:.0f} hours in which the machine can be busy. Lower it, or "
            "raise cost.setup_months."
        )
    busy_s = usage.busy_s * local.seconds_factor
    machine = local.hardware_usd / local.depreciation_months
    machine += local.watts_idle / 1000 * HOURS_A_MONTH * local.usd_per_kwh
    return MonthlyCost(
        fixed_usd=making_s * usd_a_busy_second,
        per_answer_usd=busy_s * usd_a_busy_second,
        machine_usd=machine,
        capacity=free_s / busy_s if busy_s > 0 else None,
    )


def price_hosted(usage: Usage, config: CostConfig, *, database: str = "low") -> MonthlyCost:
    """Return what an arm costs at hosted prices.

    Args:
        usage: What it uses.
        config: Prices.
        database: Price of the vector database: `low` or `high`.
    """
    hosted = config.hosted
    factor = hosted.tuned_price_factor if usage.is_tuned else 1.0
    answer = usage.prompt_tokens * hosted.input_usd_per_1k_tokens
    answer += usage.completion_tokens * hosted.output_usd_per_1k_tokens
    per_answer = factor * answer / 1000
    fixed = 0.0
    if usage.is_tuned:
        fixed += usage.training_tokens / 1000 * hosted.training_usd_per_1k_tokens * config.rounds_per_month
    if usage.uses_documents:
        low, high = hosted.vector_database_usd_per_month
        fixed += low if database == "low" else high
        fixed += usage.corpus_tokens / 1000 * hosted.embedding_usd_per_1k_tokens * config.rounds_per_month
        per_answer += usage.question_tokens / 1000 * hosted.embedding_usd_per_1k_tokens
    return MonthlyCost(fixed, per_answer)


def find_break_even(first: MonthlyCost, second: MonthlyCost, max_volume: int = MAX_VOLUME) -> int | None:
    """Return the least number of answers a month from which the order of two costs turns, or None.

    Where machines are bought one by one, the order can turn more than once; this is the first time.

    Args:
        first: A cost.
        second: Another one.
        max_volume: Where to stop looking.
    """
    is_first_dearer = first.monthly_usd(1) > second.monthly_usd(1)

    def is_turned(volume: int) -> bool:
        difference = first.monthly_usd(volume) - second.monthly_usd(volume)
        return difference < 0 if is_first_dearer else difference > 0

    for low, high in _list_stretches(first, second, max_volume):
        if is_turned(low):
            return low
        if is_turned(high):
            return _bisect(is_turned, low, high)
    return None


def _bisect(is_turned: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least number that is turned, where `low` is not and `high` is, and it turns once between them."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_turned(middle) else (middle, high)
    return high


def _list_stretches(first: MonthlyCost, second: MonthlyCost, max_volume: int) -> list[tuple[int, int]]:
    """Return ranges of volumes in which both costs are straight lines, in order; past 10,000 machines it stops."""
    edges = {max_volume}
    for cost in (first, second):
        if cost.capacity is not None:
            count = min(10_000, int(max_volume / cost.capacity))
            edges |= {math.floor(cost.capacity * machines + 1e-9) for machines in range(1, count + 1)}
    inside = sorted(edge for edge in edges if 1 <= edge <= max_volume)
    return list(zip([1, *(edge + 1 for edge in inside)], inside, strict=False))


@dataclass(frozen=True, slots=True)
class ArmCost:
    """The costs of one arm.

    Attributes:
        arm: Its name.
        usage: What it uses.
        local: On one's own machine.
        hosted_low: Hosted, with the cheapest vector database.
        hosted_high: Hosted, with the dearest one.
    """

    arm: str
    usage: Usage
    local: MonthlyCost
    hosted_low: MonthlyCost
    hosted_high: MonthlyCost


def price_arms(usages: Mapping[str, Usage], config: CostConfig) -> list[ArmCost]:
    """Return the costs of every arm, in their order."""
    return [
        ArmCost(
            arm,
            usage,
            price_locally(usage, config),
            price_hosted(usage, config),
            price_hosted(usage, config, database="high"),
        )
        for arm, usage in usages.items()
    ]


@dataclass(frozen=True, slots=True)
class BreakEven:
    """A volume at which two costs change places.

    Attributes:
        cheaper_below: What is cheaper for fewer answers.
        cheaper_above: What is cheaper from `volume` on.
        volume: Answers a month; None: the first is cheaper at every volume.
    """

    cheaper_below: str
    cheaper_above: str
    volume: int | None


def find_break_evens(costs: Sequence[ArmCost]) -> list[BreakEven]:
    """Return the break-even volumes of each two arms, local and hosted, and of local against hosted for each arm."""
    found = []
    for place, first in enumerate(costs):
        found.append(_break_even(f"{first.arm}, local", first.local, f"{first.arm}, hosted", first.hosted_low))
        for second in costs[place + 1 :]:
            found.append(_break_even(f"{first.arm}, local", first.local, f"{second.arm}, local", second.local))
            names = (f"{first.arm}, hosted", f"{second.arm}, hosted")
            found.append(_break_even(names[0], first.hosted_low, names[1], second.hosted_low))
    return found


def _break_even(first: str, first_cost: MonthlyCost, second: str, second_cost: MonthlyCost) -> BreakEven:
    if first_cost.monthly_usd(1) > second_cost.monthly_usd(1):
        first, first_cost, second, second_cost = second, second_cost, first, first_cost
    return BreakEven(first, second, find_break_even(first_cost, second_cost))


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
