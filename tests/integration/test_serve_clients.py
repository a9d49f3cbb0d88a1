"""Clients other than the stock one: LangChain's OpenAI classes, and programs that know models and chats only."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from serve.answering import AssistantConfig
from tests.fakes.engine import BASE
from tests.fakes.gateway import EMBEDDER, RunningGateway, running_gateway
from tests.fakes.searcher import make_passage

WARRANTY = "The Brook 40 pump has a warranty of 26 months."
QUESTION = "How long is the warranty of the Brook 40 pump?"
CITED = f"{WARRANTY} [1]"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with an assistant whose model repeats the passage."""
    helper = AssistantConfig(model=BASE, stores=["acme"], min_score=0.2)
    passages = [make_passage("c1", WARRANTY, file="warranty.md")]
    with running_gateway(tmp_path_factory.mktemp("clients"), passages, {"helper": helper}) as running:
        running.script(reply=WARRANTY)
        yield running


def make_chat(gateway: RunningGateway, model: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, **more)


def test_langchain_gets_cited_answers_from_an_assistant(gateway: RunningGateway) -> None:
    chat = make_chat(gateway, "helper", temperature=0)
    assert chat.invoke(QUESTION).text == CITED
    said = [HumanMessage("Hello"), AIMessage("Hello."), HumanMessage(QUESTION)]
    assert "".join(chunk.text for chunk in chat.stream(said)) == CITED


def test_langchain_speaks_responses(gateway: RunningGateway) -> None:
    chat = make_chat(gateway, "helper", use_responses_api=True, include=["file_search_call.results"])
    answer = chat.invoke(QUESTION)
    assert answer.text == CITED
    blocks: Any = answer.content
    (annotation,) = next(block for block in blocks if block["type"] == "text")["annotations"]
    assert (annotation["type"], annotation["filename"]) == ("file_citation", "warranty.md")
    assert "".join(chunk.text for chunk in chat.stream(QUESTION)) == CITED


def test_langchain_embeds_texts(gateway: RunningGateway) -> None:
    where: dict[str, Any] = {"base_url": f"{gateway.url}/v1", "api_key": "none"}
    embeddings = OpenAIEmbeddings(model=EMBEDDER, check_embedding_ctx_length=False, **where)
    one, other = embeddings.embed_documents([WARRANTY, "ducks eat grass"])
    query = embeddings.embed_query(QUESTION)
    assert sum(a * b for a, b in zip(query, one, strict=True)) > sum(a * b for a, b in zip(query, other, strict=True))


def test_a_program_that_knows_chats_only_finds_the_assistant_and_streams_it(gateway: RunningGateway) -> None:
    """As Open WebUI does: list the models, then post chats with its own system message and streaming on."""
    listed = httpx.get(f"{gateway.url}/v1/models", headers={"authorization": "Bearer any"}).json()["data"]
    model = next(one["id"] for one in listed if one["id"] == "helper")
    messages = [{"role": "system", "content": "User Context:\n\n"}, {"role": "user", "content": QUESTION}]
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "messages": messages}
    text = ""
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=20) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
    assert text == CITED
