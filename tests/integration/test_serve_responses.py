"""/v1/responses through the stock client, on the real app, ingestion and search, before a fake vLLM."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseInputMessageItem, ResponseOutputMessage
from sqlalchemy import text

from retrieval.database import read_transaction, write_transaction
from serve.answering import INSTRUCTIONS, NOTHING_FOUND, AssistantConfig
from serve.keys import create_key
from serve.responses import remove_old_responses
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, RunningGateway
from tests.fakes.handbook import HANDBOOK, QUESTION, WARRANTY, handbook_gateway
from tests.fakes.strict_answers import check_answer, drop_identity, read_events

RETURNS = "A customer can return a product within 45 days of delivery."
REPLY = f"Here is what I know:\n{WARRANTY} [9]\n{RETURNS}\nThe Brook 40 pump has a warranty of 99 months."
CITED = f"Here is what I know:\n{WARRANTY} [1]\n{RETURNS} [2]\nThe Brook 40 pump has a warranty of 99 months."
SEARCH_EVENTS = [
    "response.output_item.added",
    "response.file_search_call.in_progress",
    "response.file_search_call.searching",
    "response.file_search_call.completed",
    "response.output_item.done",
]
TEXT_EVENTS = ["response.output_text.delta", "response.output_text.annotation.added"]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway with an assistant over a store of the command line; its stores are made by the tests."""
    desk = AssistantConfig(model=ALIAS, stores=[HANDBOOK], instructions="You are the desk.", temperature=0.3)
    with handbook_gateway(tmp_path_factory.mktemp("responses"), desk) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client of an owner."""
    return gateway.client(create_key(gateway.database, "owner")[1])


@pytest.fixture(autouse=True)
def _script(gateway: RunningGateway) -> None:
    """Begin each test with the same words."""
    gateway.script(reply=REPLY)


@pytest.fixture(scope="module")
def store(client: openai.OpenAI) -> str:
    """A store of the owner's with two files."""
    return make_store(client)


def make_store(client: openai.OpenAI) -> str:
    made = client.vector_stores.create(name="shop").id
    for name, words, year in (("warranty.md", WARRANTY, 2024), ("returns.md", RETURNS, 2020)):
        file = client.files.create(file=(name, words.encode()), purpose="assistants")
        client.vector_stores.files.create_and_poll(file.id, vector_store_id=made, attributes={"year": year})
    return made


def tool(store: str, **more: Any) -> Any:
    """Return a search that lets everything through: the embedder here knows only which words are the same."""
    everything = {"ranking_options": {"score_threshold": 0}}
    return {"type": "file_search", "vector_store_ids": [store], **everything, **more}


def last_request(gateway: RunningGateway) -> dict[str, Any]:
    request: dict[str, Any] = gateway.state()["requests"][-1]
    return request


def test_a_plain_response_is_the_models_own_words(gateway: RunningGateway, client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=BASE, input="hello there", instructions="Be kind.", temperature=0.5, top_p=0.9, max_output_tokens=50,
        metadata={"a": "b"}, user="me", reasoning={"effort": "low"}, store=False,
    )  # fmt: skip
    check_answer(answer, Response)
    assert (answer.output_text, answer.status, answer.model) == (REPLY, "completed", BASE)
    assert (answer.instructions, answer.temperature, answer.metadata) == ("Be kind.", 0.5, {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    request = last_request(gateway)
    assert request["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello there"},
    ]
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.5, 0.9, 50)
    events = read_events(client.responses.create(model=BASE, input="hello there", stream=True))
    assert [event.type for event in events if event.type not in TEXT_EVENTS] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1].response.output_text == REPLY


def test_file_search_answers_with_verified_citations(client: openai.OpenAI, store: str) -> None:
    answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)])
    check_answer(answer, Response)
    call, message = answer.output
    assert call.type == "file_search_call"
    assert message.type == "message"
    assert (call.status, call.queries, call.results) == ("completed", [QUESTION], None)
    content = message.content[0]
    assert content.type == "output_text"
    assert content.text == CITED
    names = {file.id for file in client.files.list()}
    for annotation, mark, name in zip(content.annotations, ("[1]", "[2]"), ("warranty.md", "returns.md"), strict=True):
        assert annotation.type == "file_citation"
        assert annotation.filename == name
        assert annotation.file_id in names
        assert content.text[annotation.index :].startswith(mark)


def test_streamed_and_whole_agree_and_the_events_come_in_openais_order(client: openai.OpenAI, store: str) -> None:
    asked: dict[str, Any] = {"model": BASE, "input": QUESTION, "tools": [tool(store)]}
    asked["include"] = ["file_search_call.results"]
    whole = client.responses.create(**asked)
    events = read_events(client.responses.create(**asked, stream=True))
    names = [event.type for event in events]
    assert [name for name in names if name not in TEXT_EVENTS] == [
        "response.created",
        "response.in_progress",
        *SEARCH_EVENTS,
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    first, last = names.index("response.content_part.added"), names.index("response.output_text.done")
    assert set(names[first + 1 : last]) == set(TEXT_EVENTS)
    assert drop_identity(events[-1].response) == drop_identity(whole)
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text == CITED
    noted = [event.annotation for event in events if event.type == "response.output_text.annotation.added"]
    message = whole.output[-1]
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert [one.model_dump() for one in noted] == [one.model_dump() for one in message.content[0].annotations]
    with client.responses.stream(**asked) as helper:
        assert helper.get_final_response().output_text == CITED


def test_the_events_are_named_and_nothing_follows_the_last(gateway: RunningGateway, client: openai.OpenAI) -> None:
    body = {"model": BASE, "input": "x", "stream": True}
    headers = {"authorization": f"Bearer {client.api_key}"}
    answer = gateway.request("POST", "/v1/responses", json=body, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    for block in answer.text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert "[DONE]" not in answer.text


def test_results_are_shown_when_asked_for(client: openai.OpenAI, store: str) -> None:
    wanted = ["file_search_call.results"]
    answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)], include=wanted)  # type: ignore[arg-type]
    check_answer(answer, Response)
    call = answer.output[0]
    assert call.type == "file_search_call"
    assert call.results is not None
    assert [(one.filename, one.text, one.attributes) for one in call.results] == [
        ("warranty.md", WARRANTY, {"year": 2024}),
        ("returns.md", RETURNS, {"year": 2020}),
    ]
    assert all(0 <= (-1 if one.score is None else one.score) <= 1 for one in call.results)


def test_the_tool_says_how_it_is_searched(client: openai.OpenAI, store: str) -> None:
    def ask(**more: Any) -> list[str | None]:
        wanted = ["file_search_call.results"]
        answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store, **more)], include=wanted)  # type: ignore[arg-type]
        check_answer(answer, Response)
        call = answer.output[0]
        assert call.type == "file_search_call"
        return [one.filename for one in call.results or ()]

    assert ask(max_num_results=1) == ["warranty.md"]
    assert ask(filters={"type": "eq", "key": "year", "value": 2020}) == ["returns.md"]
    assert ask(filters={"type": "and", "filters": [{"type": "gt", "key": "year", "value": 2030}]}) == []
    assert ask(ranking_options={"score_threshold": 0.99}) == []
    hybrid = {"hybrid_search": {"embedding_weight": 0, "text_weight": 1}, "score_threshold": 0}
    assert ask(ranking_options=hybrid)[0] == "warranty.md"


def test_when_nothing_is_near_the_answer_says_so_without_the_model(
    gateway: RunningGateway, client: openai.OpenAI, store: str
) -> None:
    searching = tool(store, ranking_options={})
    before = len(gateway.state()["requests"])
    for stream in (False, True):
        answer: Any = client.responses.create(model=BASE, input="qwertz yxcv", tools=[searching], stream=stream)
        answer = read_events(answer)[-1].response if stream else answer
        check_answer(answer, Response)
        assert (answer.output_text, answer.status) == (NOTHING_FOUND, "completed")
    assert len(gateway.state()["requests"]) == before


def test_a_conversation_goes_on_from_a_stored_response(
    gateway: RunningGateway, client: openai.OpenAI, store: str
) -> None:
    first = client.responses.create(model=BASE, input=QUESTION, instructions="One.", tools=[tool(store)])
    second = client.responses.create(model=BASE, input="And now?", previous_response_id=first.id, instructions="Two.")
    assert second.previous_response_id == first.id
    assert last_request(gateway)["messages"] == [
        {"role": "system", "content": "Two."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": CITED},
        {"role": "user", "content": "And now?"},
    ]
    client.responses.create(model=BASE, input=QUESTION, previous_response_id=second.id, tools=[tool(store)])
    messages = last_request(gateway)["messages"]
    assert messages[0]["content"].startswith(f"{INSTRUCTIONS}\n\nDocument: warranty.md\n{WARRANTY}")
    assert [message["content"] for message in messages[1:]] == [
        QUESTION, CITED.replace(" [1]", "").replace(" [2]", ""), "And now?", REPLY.replace(" [9]", ""), QUESTION,
    ]  # fmt: skip
    client.responses.delete(first.id)
    client.responses.create(model=BASE, input="Still?", previous_response_id=second.id)
    assert [message["content"] for message in last_request(gateway)["messages"]] == ["And now?", REPLY, "Still?"]


def test_an_answer_can_be_sent_back_as_it_came(gateway: RunningGateway, client: openai.OpenAI, store: str) -> None:
    first = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)], store=False)
    said: list[Any] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    said += [item.model_dump() for item in first.output]
    said.append({"role": "user", "content": [{"type": "input_text", "text": "And now?"}]})
    client.responses.create(model=BASE, input=said)
    assert last_request(gateway)["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": CITED},
        {"role": "user", "content": "And now?"},
    ]


def test_a_stored_response_is_read_listed_and_deleted(client: openai.OpenAI, store: str) -> None:
    said: list[Any] = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
    said.append({"role": "user", "content": QUESTION})
    made = client.responses.create(model=BASE, input=said, tools=[tool(store)], metadata={"a": "b"})
    assert client.responses.retrieve(made.id) == client.responses.retrieve(made.id, stream=False) == made
    read = client.responses.retrieve(made.id, include=["file_search_call.results"])
    check_answer(read, Response)
    assert read.output[0].type == "file_search_call"
    assert [one.text for one in read.output[0].results or ()] == [WARRANTY, RETURNS]
    newest = list(client.responses.input_items.list(made.id))
    pages = list(client.responses.input_items.list(made.id, order="asc", limit=2).iter_pages())
    assert [len(page.data) for page in pages] == [2, 1]
    oldest = [item for page in pages for item in page.data]
    assert oldest == newest[::-1]
    kinds = [ResponseInputMessageItem, ResponseOutputMessage, ResponseInputMessageItem]
    for item, kind in zip(oldest, kinds, strict=True):
        check_answer(item, kind)
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=BASE, input="x", previous_response_id=made.id)


def test_a_deleted_document_is_gone_from_stored_responses(gateway: RunningGateway, client: openai.OpenAI) -> None:
    gateway.script(reply="Nothing.")
    store = make_store(client)
    made = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)])
    with read_transaction(gateway.database) as connection:
        row = connection.execute(text("SELECT * FROM responses WHERE id = :id"), {"id": made.id}).one()
    assert WARRANTY not in str(row)
    for file in client.vector_stores.files.list(store):
        client.vector_stores.files.delete(file.id, vector_store_id=store)
    read = client.responses.retrieve(made.id, include=["file_search_call.results"])
    assert read.output[0].type == "file_search_call"
    assert read.output[0].results == []


def test_what_is_not_to_be_stored_is_not(gateway: RunningGateway, client: openai.OpenAI) -> None:
    made = client.responses.create(model=BASE, input="hello", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    kept = client.responses.create(model=BASE, input="hello")
    old = int(time.time()) - 32 * 86_400
    with write_transaction(gateway.database) as connection:
        connection.execute(text("UPDATE responses SET created_at = :old WHERE id = :id"), {"old": old, "id": kept.id})
    remove_old_responses(gateway.database)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(kept.id)


def test_an_assistant_answers_from_its_own_documents(gateway: RunningGateway, client: openai.OpenAI) -> None:
    answer = client.responses.create(model="desk", input=QUESTION, instructions="Be brief.")
    check_answer(answer, Response)
    message = answer.output[1]
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    (citation,) = message.content[0].annotations
    assert citation.type == "file_citation"
    assert (citation.filename, citation.file_id[:4]) == ("warranty.md", "doc-")
    assert (answer.model, answer.temperature) == ("desk", 0.3)
    request = last_request(gateway)
    assert request["model"] == ADAPTER
    assert request["messages"][0]["content"].startswith("You are the desk.\n\nBe brief.\n\nDocument: warranty.md")


def test_an_assistant_with_a_tool_searches_the_tools_stores(client: openai.OpenAI, store: str) -> None:
    question = "Within how many days of delivery can a customer return a product?"
    answer = client.responses.create(model="desk", input=question, tools=[tool(store)])
    message = answer.output[1]
    assert message.type == "message"
    assert message.content[0].type == "output_text"
    assert "returns.md" in [one.filename for one in message.content[0].annotations if one.type == "file_citation"]


def test_a_choice_of_no_tool_searches_nothing(client: openai.OpenAI, store: str) -> None:
    answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)], tool_choice="none")
    assert [item.type for item in answer.output] == ["message"]
    answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)], tool_choice="required")
    assert [item.type for item in answer.output] == ["file_search_call", "message"]


def test_json_is_asked_for_and_never_marked(gateway: RunningGateway, client: openai.OpenAI, store: str) -> None:
    gateway.script(reply=json.dumps({"answer": WARRANTY}))
    form: Any = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    answer = client.responses.create(model=BASE, input=QUESTION, tools=[tool(store)], text={"format": form})
    check_answer(answer, Response)
    assert json.loads(answer.output_text) == {"answer": WARRANTY}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
    assert last_request(gateway)["response_format"] == wanted
    assert answer.text is not None
    assert answer.text.model_dump(by_alias=True, exclude_none=True)["format"] == form


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_answer_is_incomplete(client: openai.OpenAI, store: str, stream: bool) -> None:
    answer: Any = client.responses.create(
        model=BASE, input=QUESTION, tools=[tool(store)], max_output_tokens=8, stream=stream
    )
    if stream:
        last = read_events(answer)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    check_answer(answer, Response)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output[1].status == "incomplete"
    assert answer.output[1].content[0].annotations == []


def test_history_must_fit_unless_it_may_be_cut(gateway: RunningGateway, client: openai.OpenAI, store: str) -> None:
    said: list[Any] = []
    for number in range(40):
        said += [{"role": "user", "content": f"turn {number} " + "word " * 150}, {"role": "assistant", "content": "ok"}]
    said.append({"role": "user", "content": QUESTION})
    for tools in ([], [tool(store)]):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=BASE, input=said, tools=tools)
        assert caught.value.code == "context_length_exceeded"
        client.responses.create(model=BASE, input=said, tools=tools, truncation="auto")
        messages = last_request(gateway)["messages"]
        assert messages[-1]["content"] == QUESTION
        assert 10 < len(messages) < 80


@pytest.mark.parametrize("script", [{"break_after": 5}, {"error_after": 5}, {"garbage_after": 5}])
@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_fails_in_an_answer_is_seen(
    gateway: RunningGateway, client: openai.OpenAI, script: dict[str, int], stream: bool
) -> None:
    gateway.wait_until_ready()
    gateway.script(reply=REPLY, **script)
    if not stream:
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model=BASE, input="x")
    else:
        events = read_events(client.responses.create(model=BASE, input="x", stream=True))
        assert events[-1].type == "response.failed"
        check_answer(events[-1].response, Response)
        assert (events[-1].response.status, events[-1].response.error.code) == ("failed", "server_error")
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(events[-1].response.id)
    gateway.wait_until_ready()


def test_a_stream_that_cannot_be_kept_fails_and_tells_no_path(gateway: RunningGateway, client: openai.OpenAI) -> None:
    with gateway.full_disk("INSERT INTO responses"):
        last: Any = list(client.responses.create(model=BASE, input="x", stream=True))[-1]
    assert last.type == "response.failed"
    assert "Free some disk space" in last.response.error.message
    assert str(gateway.folder) not in last.response.error.message


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("tools", {"tools": [{"type": "web_search"}]}),
    ("tools", {"tools": [{"type": "file_search", "vector_store_ids": []}]}),
    ("tools", {"tools": [{"type": "file_search", "vector_store_ids": ["x"], "max_num_results": 51}]}),
    ("filters", {"tools": [{"type": "file_search", "vector_store_ids": ["«store»"], "filters": {"type": "like"}}]}),
    ("tools", {"tools": [{"type": "function", "name": "f"}, {"type": "file_search", "vector_store_ids": ["x"]}]}),
    ("tools", {"tools": [{"type": "function", "name": "f"}], "model": "desk"}),
    ("tool_choice", {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "g"}}),
    ("input", {"input": ""}),
    ("input", {"input": []}),
    ("input", {"input": [{"role": "tool", "content": "x"}]}),
    ("input", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}),
    ("input", {"input": [{"type": "item_reference", "id": "x"}]}),
    ("input", {"input": [{"role": "assistant", "content": "x"}], "tools": [
        {"type": "file_search", "vector_store_ids": ["«store»"]}]}),
    ("background", {"background": True}),
    ("conversation", {"conversation": "x"}),
    ("prompt", {"prompt": {"id": "x"}}),
    ("include", {"include": ["message.output_text.logprobs"]}),
    ("top_logprobs", {"top_logprobs": 3}),
    ("stream_options", {"stream_options": {}}),
    ("tool_choice", {"tool_choice": {"type": "file_search"}}),
    ("top_k", {"top_k": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("param", "change"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_cannot_be_honoured_is_refused_by_name(
    gateway: RunningGateway, client: openai.OpenAI, store: str, param: str, change: dict[str, Any]
) -> None:
    change = json.loads(json.dumps(change, ensure_ascii=False).replace("«store»", store))
    headers = {"authorization": f"Bearer {client.api_key}"}
    body = {"model": BASE, "input": "x", **change}
    answer = gateway.request("POST", "/v1/responses", json=body, headers=headers)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert param in (error["param"] or error["message"]), error


def test_the_folder_holds_no_trace_of_a_deleted_response(gateway: RunningGateway, client: openai.OpenAI) -> None:
    canary = f"canary {secrets.token_hex(8)}"
    made = client.responses.create(model=BASE, input=canary)
    client.responses.delete(made.id)
    deadline = time.monotonic() + 60
    while holds(gateway.folder, canary):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def holds(folder: Path, words: str) -> bool:
    files = [path for path in folder.glob("loam.db*") if path.is_file()]
    return any(words.encode() in path.read_bytes() for path in files)
