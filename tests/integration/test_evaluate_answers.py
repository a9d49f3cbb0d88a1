"""evaluation.answers before the real gateway and a fake vLLM: all that is measured is saved; a stopped run goes on."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import Conflict, EngineUnavailable, InputError, ModelNotFound
from evaluation.answers import Answer, Arm, AskConfig, ask_all, read_answers
from evaluation.metrics import score_answer
from evaluation.questions import Question
from serve.answering import AssistantConfig
from tests.fakes.engine import BASE
from tests.fakes.gateway import PATIENCE_S, RunningGateway, running_gateway
from tests.fakes.searcher import make_passage

RETURNS = make_passage("chunk-1", "A customer can return a product within 45 days of delivery.", file="returns.md")
WARRANTY = make_passage("chunk-2", "The Brook 40 pump has a warranty of 26 months.", file="warranty.docx")
HELPER = AssistantConfig(model=BASE, stores=["acme"], k=2, min_score=0.2)
QUESTIONS = [
    Question("r", "Within how many days can a customer return a product?", accept=("45 days",), files=("returns.md",)),
    Question("w", "What warranty has the Brook 40 pump?", accept=("26 months",), files=("warranty.docx",)),
    Question("x", "qwertz asdf yxcv?", accept=("y",), files=("returns.md",)),
]  # fmt: skip
ARMS = [Arm("base", BASE, "Be short."), Arm("rag", "helper")]
REPLY = "A customer can return a product within 45 days of delivery."


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway with an assistant."""
    with running_gateway(tmp_path_factory.mktemp("answers"), [RETURNS, WARRANTY], {"helper": HELPER}) as running:
        yield running


def make_config(gateway: RunningGateway, **changes: Any) -> AskConfig:
    values: dict[str, Any] = {"url": f"{gateway.url}/v1", "retries": 0, "max_tokens": 20, "timeout_s": PATIENCE_S}
    return AskConfig(**values | changes)


def test_all_that_was_measured_is_saved(gateway: RunningGateway, tmp_path: Path) -> None:
    gateway.script(reply=REPLY, token_delay_s=0.01)
    before = len(gateway.state()["requests"])
    shown: list[Answer] = []
    answers = ask_all(QUESTIONS, ARMS, make_config(gateway), tmp_path / "answers.jsonl", shown.append)
    assert [(answer.question_id, answer.arm) for answer in answers] == [
        (question.id, arm.name) for question in QUESTIONS for arm in ARMS
    ]
    assert [answer.arm for answer in shown] == ["base", "rag", "rag", "base", "base", "rag"]
    base, rag = answers[0], answers[1]
    assert (base.text, base.searched, base.hits, base.citations) == (REPLY, False, (), ())
    assert (rag.text, rag.searched, rag.citations) == (f"{REPLY} [1]", True, (1,))
    assert next((hit.n, hit.file, hit.chunk_id, hit.text) for hit in rag.hits) == (
        1,
        "returns.md",
        "chunk-1",
        RETURNS.text,
    )
    for answer in (base, rag):
        assert answer.error is None
        assert answer.finish_reason == "stop"
        assert answer.completion_tokens == len(REPLY.split())
        assert answer.prompt_tokens is not None
        assert answer.prompt_tokens > 10
        assert answer.ttft_s is not None
        assert 0 < answer.ttft_s < answer.latency_s
    nothing = answers[5]
    assert (nothing.searched, nothing.hits, nothing.completion_tokens) == (True, (), 0)
    requests = gateway.state()["requests"][before:]
    assert [request["messages"][0]["role"] for request in requests] == ["system"] * 5
    assert requests[0]["messages"][0]["content"] == "Be short."
    scores = score_answer(QUESTIONS[0], rag)
    assert (scores.success, scores.citation_precision, scores.citation_recall) == (1.0, 1.0, 1.0)
    assert (scores.retrieval_recall, scores.ndcg_at_10) == (1.0, 1.0)
    assert {answer.key: answer for answer in read_answers(tmp_path / "answers.jsonl")} == {
        answer.key: answer for answer in answers
    }


def test_a_stopped_run_goes_on_and_a_finished_one_asks_nothing(gateway: RunningGateway, tmp_path: Path) -> None:
    gateway.script(reply=REPLY)
    path = tmp_path / "answers.jsonl"

    def stop(answer: Answer) -> None:
        if len(path.read_bytes().splitlines()) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask_all(QUESTIONS, ARMS, make_config(gateway), path, stop)
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 5)  # as a kill in the middle of a line leaves it
    kept = read_answers(path)
    assert len(kept) == 2
    before = len(gateway.state()["requests"])
    answers = ask_all(QUESTIONS, ARMS, make_config(gateway, concurrency=1), path)
    assert all(answer in answers for answer in kept)
    assert len(answers) == 6
    assert len(gateway.state()["requests"]) == before + 3  # four were pending; one finds nothing and asks no model
    assert ask_all(QUESTIONS, ARMS, make_config(gateway), path) == answers
    assert len(gateway.state()["requests"]) == before + 3


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ({"status": 400}, "scripted"),
        ({"break_after": 2}, "Error"),
        ({"token_delay_s": 30}, "timeout: no whole answer"),
    ],
)
def test_what_goes_wrong_is_told_and_asked_again(
    gateway: RunningGateway, tmp_path: Path, script: dict[str, Any], words: str
) -> None:
    path, arms = tmp_path / "answers.jsonl", [Arm("base", BASE)]
    gateway.script(reply=REPLY, **script)
    limit_s = 1.5 if "token_delay_s" in script else PATIENCE_S
    failed = ask_all(QUESTIONS[:1], arms, make_config(gateway, timeout_s=limit_s), path)[0]
    assert failed.error is not None
    assert words in failed.error
    assert (failed.text, score_answer(QUESTIONS[0], failed).failed) == ("", 1.0)
    gateway.script(reply=REPLY)
    answer = ask_all(QUESTIONS[:1], arms, make_config(gateway), path)[0]
    assert (answer.error, answer.text) == (None, REPLY)
    assert read_answers(path) == [answer]


def test_several_questions_at_the_same_time(gateway: RunningGateway, tmp_path: Path) -> None:
    gateway.script(reply=REPLY, token_delay_s=0.01)
    questions = [Question(f"q{number}", f"Number {number}?", accept=("45",)) for number in range(9)]
    answers = ask_all(questions, ARMS[:1], make_config(gateway, concurrency=4), tmp_path / "answers.jsonl")
    assert [answer.question_id for answer in answers] == [question.id for question in questions]
    assert max(answer.latency_s for answer in answers) > 0
    starts = sorted((answer.asked_at, answer.asked_at + answer.latency_s) for answer in answers)
    assert any(later[0] < earlier[1] for earlier, later in itertools.pairwise(starts))


def test_other_settings_or_questions_are_refused(gateway: RunningGateway, tmp_path: Path) -> None:
    gateway.script(reply=REPLY)
    path = tmp_path / "answers.jsonl"
    ask_all(QUESTIONS[:1], ARMS, make_config(gateway), path)
    whole = path.read_bytes()
    with pytest.raises(Conflict, match=r"temperature: 0\.0 then, 0\.5 now"):
        ask_all(QUESTIONS[:1], ARMS, make_config(gateway, temperature=0.5), path)
    with pytest.raises(Conflict, match="arms"):
        ask_all(QUESTIONS[:1], ARMS[:1], make_config(gateway), path)
    changed = [Question("r", "Another question?", accept=("x",))]
    with pytest.raises(Conflict, match="the text of r was another"):
        ask_all(changed, ARMS, make_config(gateway), path)
    assert path.read_bytes() == whole


def test_a_wrong_model_url_or_silence_is_told_before_anything_is_asked(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with pytest.raises(ModelNotFound, match=r"wanted the model nobody, found .*helper"):
        ask_all(QUESTIONS, [Arm("x", "nobody")], make_config(gateway), path)
    with pytest.raises(InputError, match="ends in /v1"):
        ask_all(QUESTIONS, ARMS, make_config(gateway, url=f"{gateway.url}/v2"), path)
    with pytest.raises(EngineUnavailable, match="goes on with what is not answered yet"):
        ask_all(QUESTIONS, ARMS, make_config(gateway, url="http://127.0.0.1:9/v1"), path)
    gateway.script(reply=REPLY)
    assert len(ask_all(QUESTIONS, ARMS, make_config(gateway), path)) == 6
