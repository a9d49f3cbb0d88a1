"""What the gateway counts, for Prometheus: one object a gateway, so that two of them can live in one process.

Whoever has something to count adds its metric here and is handed the object. Does not know who reads it
(routes/metrics.py does), and never takes a prompt, a document's name or a key as a label.
"""

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The counters of one gateway."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loam_requests", "Requests answered.", ["route", "method", "status"], registry=self.registry
        )
        self.latency = Histogram(
            "loam_request_seconds",
            "From a request's head to the end of its answer.",
            ["route"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.first_token = Histogram(
            "loam_first_token_seconds",
            "From a request's head to the first bytes of its stream from vLLM.",
            ["model"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.tokens = Counter("loam_tokens", "Tokens as vLLM counts them.", ["model", "kind"], registry=self.registry)
        self.running = Gauge("loam_requests_running", "Requests that are being answered.", registry=self.registry)
        self.retrieval = Histogram(
            "loam_retrieval_seconds",
            "One search, by stage.",
            ["stage"],
            registry=self.registry,
            buckets=STAGE_SECONDS,
        )
        self.engine_ready = Gauge(
            "loam_engine_ready", "Whether a vLLM server can be asked.", ["server"], registry=self.registry
        )
        self.engine_in_flight = Gauge(
            "loam_engine_requests", "Requests that a vLLM server has been given.", ["server"], registry=self.registry
        )
        self.waiting_files = Gauge(
            "loam_files_waiting", "Attached files that wait to be ingested.", registry=self.registry
        )
        self.jobs = Gauge("loam_fine_tuning_jobs", "Fine-tuning jobs, by status.", ["status"], registry=self.registry)

    def count_tokens(self, model: str, usage: dict[str, Any] | None) -> None:
        """Count what an answer took; nothing where vLLM did not tell."""
        if usage:
            self.tokens.labels(model, "prompt").inc(usage.get("prompt_tokens") or 0)
            self.tokens.labels(model, "completion").inc(usage.get("completion_tokens") or 0)

    def time_search(self, timings_ms: dict[str, float]) -> None:
        """Time one search by its stages, in milliseconds."""
        for stage, ms in timings_ms.items():
            self.retrieval.labels(stage).observe(ms / 1000)

    def render(self, of_servers: dict[str, str]) -> bytes:
        """Return everything in Prometheus' text format, with what vLLM says of itself.

        Args:
            of_servers: vLLM's own metrics, as text, by the address of the server; they get a label `server`.
        """
        return generate_latest(self.registry) + generate_latest(_OfServers(of_servers))


class _OfServers:
    """vLLM's own metrics as a registry that can be printed: families of one name joined, a label more."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        families: dict[str, Metric] = {}
        for server, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                joined = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    joined.samples.append(sample._replace(labels={**sample.labels, "server": server}))
        return families.values()
