"""Answering from documents: what an assistant is."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from core.errors import ConfigError

INSTRUCTIONS = "Answer from the documents. If they do not hold the answer, say so."
NOTHING_FOUND = "I could not find this in the documents."


@dataclass(slots=True)
class AssistantConfig:
    """What stands under `assistants.NAME`.

    Attributes:
        model: The base model, an adapter's own name, or a run id.
        stores: Names of the stores to search; all of them, best hits first.
        instructions: The system message.
        k: Passages that the model reads.
        min_score: Least similarity (cosine, -1 to 1) of question and passage; below it nothing counts as found.
        nothing_found: The answer when nothing is found; the model is not asked.
        max_tokens: Of an answer, where the request does not say.
        temperature: Where the request does not say.
    """

    model: str = MISSING
    stores: list[str] = field(default_factory=list)
    instructions: str = INSTRUCTIONS
    k: int = 3
    min_score: float = 0.2
    nothing_found: str = NOTHING_FOUND
    max_tokens: int = 512
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"assistants.*.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("stores", bool(self.stores), "at least one store", self.stores),
                ("k", 1 <= self.k <= 50, "1 to 50", self.k),
                ("min_score", -1 <= self.min_score <= 1, "-1 to 1", self.min_score),
                ("nothing_found", bool(self.nothing_found.strip()), "a sentence", self.nothing_found),
                ("max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens),
                ("temperature", 0 <= self.temperature <= 2, "0 to 2", self.temperature),
            )
            if not is_good
        ]
        if faults:
            raise ConfigError("; ".join(faults))
