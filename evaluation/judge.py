"""Who judges: the configuration of the judge, and of the embedder that answer relevancy needs.

Does not know how a judge is asked (structured.py does) or what it is asked (ragas_scores.py does).
"""

from dataclasses import dataclass, field

from core.errors import ConfigError
from evaluation.structured import Asking, find_asking_faults

RAGAS_METRICS = ("faithfulness", "answer_relevancy", "context_precision", "context_recall")


@dataclass(slots=True)
class JudgeConfig:
    """Who judges, and how.

    Attributes:
        url: Base URL of an OpenAI-compatible server, with /v1; its key comes from LOAM_JUDGE_API_KEY. null: no judge.
        model: Its model; null: the only one that it serves.
        embedder_url: Where texts are embedded for answer relevancy; null: the endpoint that is evaluated.
        embedder: The embedding model there; null: the one that the evaluated endpoint lists as its embedder.
        metrics: Which of RAGAS's are measured: faithfulness, answer_relevancy, context_precision, context_recall.
        limit: Judge so many answers of each arm, spread evenly; null: all.
        labels: File of answers that people have judged; the judge is compared with it.
        controls: So many right answers are judged beside passages that hold them, and as many beside foreign ones.
        max_tokens: Most tokens of one answer of the judge.
        temperature: 0 to 2.
        timeout_s: Longest wait for one answer.
        retries: How often an unusable answer is asked for again.
        concurrency: Requests at the same time.
    """

    url: str | None = None
    model: str | None = None
    embedder_url: str | None = None
    embedder: str | None = None
    metrics: list[str] = field(default_factory=lambda: list(RAGAS_METRICS))
    limit: int | None = None
    labels: str | None = None
    controls: int = 5
    max_tokens: int = 1024
    temperature: float = 0.0
    timeout_s: float = 300.0
    retries: int = 2
    concurrency: int = 4

    def __post_init__(self) -> None:
        """Check every range."""
        wanted_metrics = f"some of {', '.join(RAGAS_METRICS)}"
        is_url = self.url is None or self.url.startswith(("http://", "https://"))
        faults = [
            f"judge.{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("url", is_url, "http://HOST:PORT/v1 or null", self.url),
                ("metrics", set(self.metrics) <= set(RAGAS_METRICS), wanted_metrics, self.metrics),
                ("embedder", self.embedder_url is None or self.embedder, "a name beside embedder_url", self.embedder),
                ("limit", self.limit is None or self.limit >= 1, "at least 1 or null", self.limit),
                ("controls", 0 <= self.controls <= 1000, "0 to 1000", self.controls),
            )
            if not is_good
        ]
        if faults := faults + find_asking_faults("judge", self.to_asking()):
            raise ConfigError("; ".join(faults))

    def to_asking(self) -> Asking:
        """Return how the judge is asked."""
        return Asking(self.max_tokens, self.temperature, self.timeout_s, self.retries, self.concurrency)


@dataclass(frozen=True, slots=True)
class EmbedderEndpoint:
    """Where texts are embedded.

    Attributes:
        url: A server's base URL, with /v1.
        model: Its name of the embedding model.
        key_variable: Environment variable that holds the server's key.
    """

    url: str
    model: str
    key_variable: str = "LOAM_API_KEY"
