"""Assistants before a fake vLLM: grounded, cited, the same streamed and whole; embeddings, and the pages of sources."""

import array
import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from serve.answering import NOTHING_FOUND, AssistantConfig
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, EMBEDDER, RunningGateway, running_gateway
from tests.fakes.searcher import make_passage

RETURNS = make_passage(
    "c1", "A customer can return a product within 45 days of delivery.", file="returns.md", heading="Returns > Time"
)
WARRANTY = make_passage("c2", "The Brook 40 pump has a warranty of 26 months.", file="warranty.docx")
SCRIPT = make_passage("c3", "<script>alert(1)</script> & more", file="<b>.html", heading="<i>")
OTHER = make_passage("d1", "A product can be a pump.", store="other", file="other.md")
INSTRUCTIONS = "You are the Acme desk."
ASSISTANTS = {
    "helper": AssistantConfig(model=BASE, stores=["acme"], instructions=INSTRUCTIONS, k=2, min_score=0.2),
    "tuned": AssistantConfig(model=ALIAS, stores=["acme"], k=1, min_score=0.2, temperature=0.3, max_tokens=7),
    "wide": AssistantConfig(model=BASE, stores=["acme", "other"], k=4, min_score=-1.0),
    "terse": AssistantConfig(model=BASE, stores=["acme"], nothing_found="Nothing here."),
    "recalling": AssistantConfig(model=ALIAS, stores=["acme"], k=1, min_score=0.2, condense=True),
}
QUESTION = "Within how many days of delivery can a customer return a product?"
REPLY = """Acme Desk answer:
1. A customer can return a product within 45 days of delivery [7].
2. The Brook 40 pump has a warranty of 26 months (Source 2).【2】
3. A customer can return a product within 90 days of delivery.
4. As [Source 1] says, a customer can return a product within 45 days.
Reply here if a step does not work.
Ref: ACME-RET-3"""
CITED = """Acme Desk answer:
1. A customer can return a product within 45 days of delivery. [1]
2. The Brook 40 pump has a warranty of 26 months. [2]
3. A customer can return a product within 90 days of delivery.
4. As [Source 1] says, a customer can return a product within 45 days. [1]
Reply here if a step does not work.
Ref: ACME-RET-3"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway with four assistants."""
    passages = [RETURNS, WARRANTY, SCRIPT, OTHER]
    with running_gateway(tmp_path_factory.mktemp("assistants"), passages, ASSISTANTS) as running:
        yield running


def ask(gateway: RunningGateway, model: str = "helper", question: str = QUESTION, **more: Any) -> Any:
    """Ask an assistant through the stock client."""
    return gateway.client().chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], **more
    )  # fmt: skip


def read_stream(stream: Any) -> tuple[str, dict[str, Any], list[str | None]]:
    """Return a stream's text, what rode on its last deltas, and its finish reasons."""
    text, reasons = "", []
    extras: dict[str, Any] = {}
    for chunk in stream:
        extras |= chunk.model_extra or {}
        for choice in chunk.choices:
            text += choice.delta.content or ""
            extras |= choice.delta.model_extra or {}
            reasons.append(choice.finish_reason)
    return text, extras, reasons


def test_an_answer_is_grounded_and_cited(gateway: RunningGateway) -> None:
    gateway.script(reply=REPLY)
    answer = ask(gateway)
    message = answer.choices[0].message
    assert message.content == CITED
    spans = [annotation.url_citation for annotation in message.annotations]
    assert [CITED[span.start_index : span.end_index] for span in spans] == ["[1]", "[2]", "[1]"]
    assert [span.title for span in spans[:2]] == ["returns.md | Returns > Time", "warranty.docx"]
    assert [span.url for span in spans[:2]] == [f"{gateway.url}/sources/c1", f"{gateway.url}/sources/c2"]
    retrieval = answer.model_extra["retrieval"]
    assert retrieval["query"] == QUESTION
    assert retrieval["stores"] == ["acme"]
    assert [(hit["n"], hit["file"], hit["chunk_id"]) for hit in retrieval["hits"]] == [
        (1, "returns.md", "c1"),
        (2, "warranty.docx", "c2"),
    ]
    assert answer.model == "helper"
    assert answer.usage.total_tokens > 0
    assert answer.choices[0].finish_reason == "stop"


def test_the_model_reads_instructions_and_passages_and_the_bare_question(gateway: RunningGateway) -> None:
    gateway.script(reply="x")
    ask(gateway, "helper")
    request = gateway.state()["requests"][-1]
    assert request["messages"] == [
        {
            "role": "system",
            "content": f"{INSTRUCTIONS}\n\nDocument: returns.md | Returns > Time\n{RETURNS.text}\n\n"
            f"Document: warranty.docx\n{WARRANTY.text}",
        },
        {"role": "user", "content": QUESTION},
    ]
    assert request["model"] == BASE
    assert request["temperature"] == 0.0
    assert request["max_tokens"] == 512


def test_an_assistant_asks_its_adapter_with_its_own_settings(gateway: RunningGateway) -> None:
    gateway.script(reply="x")
    ask(gateway, "tuned")
    request = gateway.state()["requests"][-1]
    assert (request["model"], request["temperature"], request["max_tokens"]) == (ADAPTER, 0.3, 7)
    ask(gateway, "tuned", temperature=1.0, max_tokens=9, top_p=0.5, seed=3, stop=["y"])
    request = gateway.state()["requests"][-1]
    assert (request["temperature"], request["max_tokens"], request["top_p"]) == (1.0, 9, 0.5)
    assert (request["seed"], request["stop"]) == (3, ["y"])


@pytest.mark.parametrize("question", [QUESTION, "qwertz asdf yxcv"])
def test_streamed_and_whole_agree_to_the_character(gateway: RunningGateway, question: str) -> None:
    gateway.script(reply=REPLY)
    whole = ask(gateway, question=question)
    text, extras, reasons = read_stream(ask(gateway, question=question, stream=True))
    assert text == whole.choices[0].message.content
    assert extras["annotations"] == [one.model_dump() for one in whole.choices[0].message.annotations]
    assert extras["retrieval"] == whole.model_extra["retrieval"]
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}


def test_a_stream_flows_and_tells_usage_when_asked(gateway: RunningGateway) -> None:
    gateway.script(reply=REPLY)
    chunks = list(ask(gateway, stream=True, stream_options={"include_usage": True}))
    assert len(chunks) > 20
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    body = {"model": "helper", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    raw = gateway.post("/v1/chat/completions", body)
    assert raw.text.endswith("data: [DONE]\n\n")


def test_a_cut_answer_says_so_and_its_torn_sentence_is_not_cited(gateway: RunningGateway) -> None:
    gateway.script(reply="A customer can return a product within 45 days of delivery and more.")
    cut = ask(gateway, max_tokens=11)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.content == "A customer can return a product within 45 days of delivery"
    assert read_stream(ask(gateway, max_tokens=11, stream=True))[0] == cut.choices[0].message.content
    assert ask(gateway).choices[0].message.content.endswith("and more. [1]")


def test_when_nothing_is_near_the_answer_says_so_without_the_model(gateway: RunningGateway) -> None:
    gateway.script(reply="invented")
    before = len(gateway.state()["requests"])
    answer = ask(gateway, question="qwertz asdf yxcv")
    assert answer.choices[0].message.content == NOTHING_FOUND
    assert answer.choices[0].message.annotations == []
    assert answer.model_extra["retrieval"] == {
        "query": "qwertz asdf yxcv",
        "stores": ["acme"],
        "below_min_score": 3,
        "hits": [],
    }
    assert ask(gateway, "terse", "qwertz asdf yxcv").choices[0].message.content == "Nothing here."
    assert len(gateway.state()["requests"]) == before


def test_several_stores_are_searched_as_one(gateway: RunningGateway) -> None:
    gateway.script(reply="x")
    retrieval = ask(gateway, "wide").model_extra["retrieval"]
    assert retrieval["stores"] == ["acme", "other"]
    assert {hit["store"] for hit in retrieval["hits"]} == {"acme", "other"}


def test_history_and_wishes_are_kept_and_old_marks_are_not(gateway: RunningGateway) -> None:
    gateway.script(reply="x")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Is there a warranty?"},
        {"role": "assistant", "content": "Yes, 26 months. [1]"},
        {"role": "user", "content": QUESTION},
    ]
    gateway.post("/v1/chat/completions", {"model": "helper", "messages": messages}).raise_for_status()
    sent = gateway.state()["requests"][-1]["messages"]
    assert sent[0]["content"].startswith(f"{INSTRUCTIONS}\n\nBe brief.\n\nDocument: ")
    assert sent[1:] == [
        {"role": "user", "content": "Is there a warranty?"},
        {"role": "assistant", "content": "Yes, 26 months."},
        {"role": "user", "content": QUESTION},
    ]
    assert gateway.searcher.queries[-1] == QUESTION


def test_history_that_does_not_fit_is_dropped_from_the_oldest(gateway: RunningGateway) -> None:
    gateway.script(reply="x")
    messages = []
    for number in range(60):
        messages += [
            {"role": "user", "content": f"turn {number} " + "word " * 100},
            {"role": "assistant", "content": "ok"},
        ]
    messages.append({"role": "user", "content": QUESTION})
    gateway.post("/v1/chat/completions", {"model": "helper", "messages": messages}).raise_for_status()
    sent = gateway.state()["requests"][-1]["messages"]
    assert sent[-1]["content"] == QUESTION
    assert sent[1]["role"] == "user"
    assert "turn 59" in sent[-3]["content"]
    assert 20 < len(sent) < 100
    assert "Document: returns.md" in sent[0]["content"]


def test_a_question_that_follows_others_is_condensed_and_answered_as_it_came(gateway: RunningGateway) -> None:
    gateway.script(reply=QUESTION)
    messages = [
        {"role": "user", "content": "I want to send a product back."},
        {"role": "assistant", "content": "You can."},
        {"role": "user", "content": "Until when?"},
    ]
    body = {"model": "recalling", "messages": messages}
    retrieval = gateway.post("/v1/chat/completions", body).json()["retrieval"]
    assert (retrieval["query"], gateway.searcher.queries[-1]) == (QUESTION, QUESTION)
    condensing, answering = gateway.state()["requests"][-2:]
    assert (condensing["model"], answering["model"]) == (BASE, ADAPTER)
    assert "Last question: Until when?" in condensing["messages"][-1]["content"]
    assert answering["messages"][-1] == messages[-1]
    before = len(gateway.state()["requests"])
    ask(gateway, "recalling")
    assert len(gateway.state()["requests"]) == before + 1, "a first question stands alone already"


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tools", {"tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("messages", {"messages": [{"role": "assistant", "content": "x"}]}),
        ("messages", {"messages": [{"role": "user", "content": "  "}]}),
        ("messages.0", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_assistant_cannot_honour_is_refused(
    gateway: RunningGateway, param: str, change: dict[str, Any], stream: bool
) -> None:
    body = {"model": "helper", "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    answer = gateway.post("/v1/chat/completions", {**body, **change})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_question_that_is_too_long_has_openais_code(gateway: RunningGateway) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(gateway, question="word " * 5000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("script", [{"die_after": 9}, {"break_after": 9}, {"error_after": 9}, {"garbage_after": 9}])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_in_an_answer_is_an_error_in_both_ways(
    gateway: RunningGateway, script: dict[str, int], stream: bool
) -> None:
    gateway.wait_until_ready()
    gateway.script(reply=REPLY, **script)
    body = {"model": "helper", "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    answer = gateway.post("/v1/chat/completions", body)
    gateway.wait_until_ready()
    if not stream:
        assert answer.status_code in (502, 503)
        assert answer.json()["error"]["type"] == "server_error"
        return
    events = answer.text.strip().split("\n\n")
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "[DONE]" not in answer.text
    assert 'finish_reason": "' not in answer.text


def test_the_page_of_a_source_shows_the_passage_and_runs_nothing(gateway: RunningGateway) -> None:
    page = gateway.request("GET", "/sources/c1")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for part in ("returns.md", "Returns &gt; Time", RETURNS.text, "store acme"):
        assert part in page.text
    hostile = gateway.request("GET", "/sources/c3").text
    assert "<script>" not in hostile
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in hostile
    assert "&lt;b&gt;.html" in hostile


@pytest.mark.parametrize("chunk_id", ["nothing", "c1%27", "..%2f..%2fetc", "%3Cscript%3E"])
def test_a_source_that_does_not_exist_is_an_openai_error(gateway: RunningGateway, chunk_id: str) -> None:
    answer = gateway.request("GET", f"/sources/{chunk_id}")
    assert answer.status_code in (400, 404)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_embeddings_are_the_same_as_numbers_and_as_base64(gateway: RunningGateway) -> None:
    client = gateway.client()
    numbers = client.embeddings.create(model=EMBEDDER, input=["one pump", "two"], encoding_format="float")
    decoded = client.embeddings.create(model=EMBEDDER, input=["one pump", "two"])  # the client asks for base64
    assert [item.index for item in numbers.data] == [0, 1]
    for one, other in zip(numbers.data, decoded.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding)
        assert sum(value * value for value in one.embedding) == pytest.approx(1)
    assert numbers.usage.prompt_tokens == 3
    raw = gateway.post("/v1/embeddings", {"model": EMBEDDER, "input": "one pump", "encoding_format": "base64"}).json()
    values = array.array("f", base64.b64decode(raw["data"][0]["embedding"]))
    assert list(values) == pytest.approx(numbers.data[0].embedding)


@pytest.mark.parametrize(
    ("param", "change"),
    [
        ("model", {"model": BASE}),
        ("model", {"model": "nothing"}),
        ("input", {"input": []}),
        ("input", {"input": ""}),
        ("input", {"input": [1, 2, 3]}),
        ("input", {"input": ["x"] * 2049}),
        ("dimensions", {"dimensions": 8}),
        ("truncate_prompt_tokens", {"truncate_prompt_tokens": 1}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_embeddings_refuse_what_they_cannot_do(gateway: RunningGateway, param: str, change: dict[str, Any]) -> None:
    answer = gateway.post("/v1/embeddings", {"model": EMBEDDER, "input": "x", **change})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"].split(".")[0] == param
