"""Functions in chats and responses through the stock client and its helpers, before a fake vLLM that calls them."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import BaseModel

from tests.fakes.engine import BASE
from tests.fakes.gateway import RunningGateway, running_gateway
from tests.fakes.strict_answers import check_answer, drop_identity, read_events


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway without documents."""
    with running_gateway(tmp_path_factory.mktemp("functions")) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client."""
    return gateway.client()


WEATHER: Any = {
    "type": "function", "name": "get_weather", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}  # fmt: skip
CALLS = [{"name": "get_weather", "arguments": '{"city": "Leeds"}'}, {"name": "get_weather", "arguments": "{}"}]


def test_functions_are_called_and_what_they_return_goes_back(gateway: RunningGateway, client: openai.OpenAI) -> None:
    gateway.script(reply="", calls=CALLS)
    asked: dict[str, Any] = {"model": BASE, "input": "Weather?", "tools": [WEATHER], "parallel_tool_calls": True}
    answer = client.responses.create(**asked, tool_choice={"type": "function", "name": "get_weather"})
    check_answer(answer, Response)
    assert answer.status == "completed"
    calls: list[Any] = list(answer.output)
    assert [(call.type, call.name, call.arguments) for call in calls] == [
        ("function_call", one["name"], one["arguments"]) for one in CALLS
    ]
    request = gateway.state()["requests"][-1]
    assert request["tools"] == [{"type": "function", "function": {
        "name": "get_weather", "parameters": WEATHER["parameters"], "strict": True}}]  # fmt: skip
    assert request["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    gateway.script(reply="It rains.")
    returned: list[Any] = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"rain {number}"}
        for number, call in enumerate(calls)
    ]
    wanted = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]},
        {"role": "tool", "tool_call_id": calls[0].call_id, "content": "rain 0"},
        {"role": "tool", "tool_call_id": calls[1].call_id, "content": "rain 1"},
    ]  # fmt: skip
    following = client.responses.create(
        model=BASE, input=returned, previous_response_id=answer.id, tools=[WEATHER], truncation="auto"
    )
    assert gateway.state()["requests"][-1]["messages"] == wanted
    assert following.output_text == "It rains."
    sent_back = [{"role": "user", "content": "Weather?"}, *(call.model_dump() for call in calls)]
    client.responses.create(model=BASE, input=[*sent_back, *returned], tools=[WEATHER])
    assert gateway.state()["requests"][-1]["messages"] == wanted


def test_streamed_calls_come_in_openais_order(gateway: RunningGateway, client: openai.OpenAI) -> None:
    gateway.script(reply="Let me look.", calls=CALLS)
    asked: dict[str, Any] = {"model": BASE, "input": "Weather?", "tools": [WEATHER]}
    whole = client.responses.create(**asked)
    events = read_events(client.responses.create(**asked, stream=True))
    names = [event.type for event in events if not event.type.endswith(".delta")]
    call = [
        "response.output_item.added", "response.function_call_arguments.done", "response.output_item.done",
    ]  # fmt: skip
    assert names == [
        "response.created", "response.in_progress",
        "response.output_item.added", "response.content_part.added", "response.output_text.done",
        "response.content_part.done", "response.output_item.done",
        *call, *call, "response.completed",
    ]  # fmt: skip
    pieces: dict[int, str] = {}
    for event in events:
        if event.type == "response.function_call_arguments.delta":
            pieces[event.output_index] = pieces.get(event.output_index, "") + event.delta
    assert pieces == {1: CALLS[0]["arguments"], 2: CALLS[1]["arguments"]}
    assert drop_identity(events[-1].response) == drop_identity(whole)
    with client.responses.stream(**asked) as helper:
        assert [item.type for item in helper.get_final_response().output] == ["message", *["function_call"] * 2]


class Weather(BaseModel):
    """What a chat is asked to answer or to call a function with."""

    city: str


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the client's own, of what it has parsed
@pytest.mark.parametrize("calls", [[], CALLS[:1]], ids=["answer", "call"])
@pytest.mark.parametrize("helper", ["create", "parse", "stream"])
def test_what_a_chat_answered_goes_back_as_the_client_holds_it(
    gateway: RunningGateway, client: openai.OpenAI, helper: str, calls: list[dict[str, str]]
) -> None:
    gateway.script(reply="" if calls else CALLS[0]["arguments"], calls=calls)
    question: Any = {"role": "user", "content": "Weather?"}
    asked: dict[str, Any] = {"model": BASE, "messages": [question]}
    said: Any
    if calls:
        asked["tools"] = [openai.pydantic_function_tool(Weather, name="get_weather")]
    elif helper != "create":
        asked["response_format"] = Weather
    if helper == "stream":
        with client.chat.completions.stream(**asked) as stream:
            said = stream.get_final_completion().choices[0].message
    else:
        said = getattr(client.chat.completions, helper)(**asked).choices[0].message
    wanted: dict[str, Any] = {"role": "assistant", "content": said.content}
    if calls:
        wanted["tool_calls"] = [{"id": said.tool_calls[0].id, "type": "function", "function": calls[0]}]
    for held in (said, said.model_dump(mode="json")):
        client.chat.completions.create(model=BASE, messages=[question, held, question])
        assert gateway.state()["requests"][-1]["messages"] == [question, wanted, question]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("helper", ["parse", "stream"])
def test_what_a_response_was_parsed_into_goes_back(gateway: RunningGateway, client: openai.OpenAI, helper: str) -> None:
    gateway.script(reply=CALLS[0]["arguments"], calls=CALLS[:1])
    asked: dict[str, Any] = {"model": BASE, "input": "Weather?", "tools": [WEATHER], "text_format": Weather}
    if helper == "stream":
        with client.responses.stream(**asked) as stream:
            answer = stream.get_final_response()
    else:
        answer = client.responses.parse(**asked)
    assert answer.output_parsed == Weather(city="Leeds")
    question: Any = {"role": "user", "content": "Weather?"}
    for held in (answer.output, [item.model_dump(mode="json") for item in answer.output]):
        client.responses.create(model=BASE, input=[question, *held, question])
        _, said, called, _ = gateway.state()["requests"][-1]["messages"]
        assert said == {"role": "assistant", "content": CALLS[0]["arguments"]}
        assert called["tool_calls"][0]["function"] == CALLS[0]
