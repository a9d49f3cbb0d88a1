"""RAGAS by a local judge: faithfulness, answer relevancy, context precision and context recall of saved answers.

RAGAS brings the prompts and the arithmetic; the judge (structured.py) brings the JSON, and our own endpoint the
embeddings, so that neither `instructor` nor a hosted model takes part. Every judgement is saved as a line as it is
made, with what it depends on: a stopped run goes on, and a changed answer or judge is judged again. A judgement that
failed is a fault with its reason, never a 0. Does not know what the scores are good for (calibration.py asks how far
to believe them).

Source: ragas 0.4.3, ragas/metrics/collections; Es et al., «RAGAS», arXiv 2309.15217.
"""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import openai
from pydantic import BaseModel
from ragas.embeddings.base import BaseRagasEmbedding
from ragas.llms.base import InstructorBaseRagasLLM
from ragas.metrics.collections import AnswerRelevancy, ContextPrecision, ContextRecall, Faithfulness
from ragas.metrics.collections.answer_relevancy.util import AnswerRelevanceOutput

from core.errors import EngineUnavailable, InputError
from core.layout import sha256_bytes
from core.lines import LineWriter
from evaluation.answers import run_workers
from evaluation.judge import EmbedderEndpoint
from evaluation.judgements import Judgement, Sample, read_judgements
from evaluation.structured import KEY_VARIABLE, StructuredModel, UnusableAnswer, make_client


class _RagasJudge(InstructorBaseRagasLLM):
    """Our judge, as RAGAS's metrics call one."""

    def __init__(self, judge: StructuredModel) -> None:
        self._judge = judge

    def generate(self, prompt: str, response_model: type[BaseModel]) -> BaseModel:  # noqa: ARG002
        """Refuse: the metrics' `ascore` asks by `agenerate`."""
        raise TypeError("the judge is asked by agenerate only")

    async def agenerate(self, prompt: str, response_model: type[BaseModel]) -> BaseModel:
        """Ask the judge; RAGAS takes a judge that asks no question back for an answer that is beside the point."""
        answer = await self._judge.ask(prompt, response_model)
        if isinstance(answer, AnswerRelevanceOutput) and not (answer.question.strip() or answer.noncommittal):
            raise UnusableAnswer(f"{self._judge.model}: wrote no question that the answer would answer")
        return answer


class _RagasEmbedder(BaseRagasEmbedding):
    """The endpoint's embedder, as RAGAS's metrics call one."""

    def __init__(self, client: openai.AsyncOpenAI, endpoint: EmbedderEndpoint) -> None:
        super().__init__()
        self._client, self._endpoint = client, endpoint

    def embed_text(self, text: str, **_: Any) -> list[float]:  # noqa: ARG002
        """Refuse: the metrics' `ascore` embeds by `aembed_text`."""
        raise TypeError("texts are embedded by aembed_text only")

    async def aembed_text(self, text: str, **_: Any) -> list[float]:
        """Return a text's vector."""
        return (await self.aembed_texts([text]))[0]

    async def aembed_texts(self, texts: list[str], **_: Any) -> list[list[float]]:
        """Return the vectors of several texts, in their order."""
        try:
            answer = await self._client.embeddings.create(model=self._endpoint.model, input=texts)
        except openai.APIConnectionError as error:
            raise EngineUnavailable(
                f"judge.embedder_url: wanted an embedder at {self._endpoint.url}, found no server. Start it again and "
                "give the same command: it goes on."
            ) from error
        except openai.APIError as error:
            raise UnusableAnswer(f"embedder {self._endpoint.model}: refused: {error.message}") from error
        return [vector.embedding for vector in answer.data]


async def judge_samples(
    samples: Sequence[Sample],
    metrics: Sequence[str],
    judge: StructuredModel,
    embedder: EmbedderEndpoint | None,
    path: Path,
    on_judgement: Callable[[Judgement], None] = lambda _: None,
) -> list[Judgement]:
    """Judge samples by metrics that apply to them, and save each judgement.

    Args:
        samples: What is judged.
        metrics: Names of RAGAS_METRICS.
        judge: Who judges.
        embedder: Needed by answer_relevancy only.
        path: File of judgements; what it holds for the same sample and judge is taken from there, faults excepted.
        on_judgement: Told of each.

    Returns:
        Sample by sample, metrics in their order; a metric that does not apply is left out.

    Raises:
        EngineUnavailable: Judge or embedder went away; what was judged is saved.
        InputError: answer_relevancy is wanted without an embedder.
    """
    if "answer_relevancy" in metrics and embedder is None:
        raise InputError(
            "judge.embedder: wanted an embedding model for answer_relevancy, found none at the endpoint. Name one, or "
            "leave the metric out: judge.metrics=[faithfulness,context_precision,context_recall]."
        )
    known = {one.fingerprint: one for one in read_judgements(path) if one.fault is None}
    wanted = [(sample, metric) for sample in samples for metric in metrics if sample.fits(metric)]
    found: dict[tuple[str, str, str], Judgement] = {}
    pending: list[tuple[Sample, str, str]] = []
    for sample, metric in wanted:
        fingerprint = make_fingerprint(sample, metric, judge, embedder)
        if fingerprint in known:
            judgement = replace(known[fingerprint], group=sample.group, id=sample.id)  # lines may have moved
            found[sample.group, sample.id, metric] = judgement
            on_judgement(judgement)
        else:
            pending.append((sample, metric, fingerprint))
    if pending:
        with LineWriter(path) as writer:
            await _judge_pending(pending, judge, embedder, writer, found, on_judgement)
    return [found[sample.group, sample.id, metric] for sample, metric in wanted]


async def _judge_pending(
    pending: Sequence[tuple[Sample, str, str]],
    judge: StructuredModel,
    embedder: EmbedderEndpoint | None,
    writer: LineWriter,
    found: dict[tuple[str, str, str], Judgement],
    on_judgement: Callable[[Judgement], None],
) -> None:
    rest = iter(pending)
    endpoint = embedder or EmbedderEndpoint(judge.url, "", KEY_VARIABLE)  # without one, nothing is embedded
    key = os.environ.get(endpoint.key_variable, "none")
    async with make_client(endpoint.url, key, judge.asking.timeout_s) as client:
        scorers = make_scorers(judge, client, embedder)

        async def work() -> None:
            for sample, metric, fingerprint in rest:
                value, fault = await _score(scorers[metric], sample, metric)
                judgement = Judgement(sample.group, sample.id, metric, value, fault, fingerprint)
                writer.write(json.dumps(asdict(judgement), ensure_ascii=False))
                found[sample.group, sample.id, metric] = judgement
                on_judgement(judgement)

        await run_workers(work, min(judge.asking.concurrency, len(pending)))


def make_scorers(
    judge: StructuredModel, client: openai.AsyncOpenAI, embedder: EmbedderEndpoint | None
) -> dict[str, Any]:
    """Return RAGAS's metrics by name, on our judge and embedder."""
    model = _RagasJudge(judge)
    scorers = {
        "faithfulness": Faithfulness(llm=model),
        "context_precision": ContextPrecision(llm=model),
        "context_recall": ContextRecall(llm=model),
    }
    if embedder is not None:
        scorers["answer_relevancy"] = AnswerRelevancy(llm=model, embeddings=_RagasEmbedder(client, embedder))
    return scorers


async def _score(scorer: Any, sample: Sample, metric: str) -> tuple[float | None, str | None]:
    """Return a metric's value, or why it has none."""
    arguments: dict[str, Any] = {"user_input": sample.question}
    if metric in ("faithfulness", "answer_relevancy"):
        arguments["response"] = sample.response
    if metric in ("context_precision", "context_recall"):
        arguments["reference"] = sample.reference
    if metric != "answer_relevancy":
        arguments["retrieved_contexts"] = list(sample.contexts)
    try:
        value = float((await scorer.ascore(**arguments)).value)
    except UnusableAnswer as fault:
        return None, fault.message
    if math.isnan(value):
        return None, "NaN: the judge found no statement to judge"
    return value, None


def make_fingerprint(sample: Sample, metric: str, judge: StructuredModel, embedder: EmbedderEndpoint | None) -> str:
    """Return the SHA-256 over everything that a judgement depends on."""
    parts = {
        "sample": asdict(sample) | {"group": None, "id": None},
        "metric": metric,
        "judge": [judge.model, judge.asking.max_tokens, judge.asking.temperature],
        "embedder": embedder.model if embedder and metric == "answer_relevancy" else None,
    }
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())
