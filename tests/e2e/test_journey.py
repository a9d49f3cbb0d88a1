"""The documents' journey with the stock client only: upload, vector store, batch, search, cited answers, deletion.

The clients of docs/recipes.md go the same way: curl, and one that knows /v1/models and /v1/chat/completions only.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from core.layout import DataDir
from tests.e2e.program import MODEL, REPO, Program, running_program

DOCUMENTS = REPO / "examples" / "acme" / "documents"
FILES = {
    "returns-policy.md": "sales", "shipping-policy.md": "sales", "service-plan.html": "sales",
    "price-list-parts.docx": "sales", "brook-40-manual.pdf": "technical", "lock-valve-quick-start.txt": "technical",
    "torrent-90-troubleshooting.html": "technical", "warranty-terms.docx": "technical", "hr-leave.docx": "people",
    "hr-travel.docx": "people",
}  # fmt: skip
QUESTION = "Within how many days of delivery can a customer return a product?"
OTHER_QUESTION = "What is the maximum flow of the Brook 40 pump?"


@pytest.fixture(scope="module")
def program(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A server with the small models and nothing else."""
    root = tmp_path_factory.mktemp("journey")
    DataDir(root).models.symlink_to(demo_models / "models")
    with running_program(root) as running:
        yield running


@pytest.fixture(scope="module")
def client(program: Program) -> openai.OpenAI:
    """The stock client."""
    return program.client()


@pytest.fixture(scope="module")
def files(client: openai.OpenAI) -> dict[str, str]:
    """Ten uploaded documents: id by name."""
    return {
        name: client.files.create(file=(name, (DOCUMENTS / name).read_bytes()), purpose="assistants").id
        for name in FILES
    }


@pytest.fixture(scope="module")
def store(client: openai.OpenAI, files: dict[str, str]) -> str:
    """A vector store that holds them, each with an attribute."""
    made = client.vector_stores.create(name="acme")
    attached: list[Any] = [{"file_id": files[name], "attributes": {"team": team}} for name, team in FILES.items()]
    batch = client.vector_stores.file_batches.create_and_poll(made.id, files=attached)
    assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", len(FILES), 0)
    return made.id


def ask(client: openai.OpenAI, store: str, question: str = QUESTION, **more: Any) -> Any:
    """Ask with file_search."""
    tool = {"type": "file_search", "vector_store_ids": [store], "max_num_results": 3}
    return client.responses.create(model=MODEL, input=question, tools=[tool], max_output_tokens=60, **more)  # type: ignore[list-item]


def test_search_finds_the_passage_and_filters_choose_documents(client: openai.OpenAI, store: str) -> None:
    assert next(iter(client.vector_stores.search(store, query=QUESTION))).filename == "returns-policy.md"
    people = {"type": "eq", "key": "team", "value": "people"}
    hits = list(client.vector_stores.search(store, query="How many days?", filters=people))  # type: ignore[arg-type]
    assert {hit.filename for hit in hits} == {"hr-leave.docx", "hr-travel.docx"}


def test_the_answer_is_right_and_its_citations_lead_to_what_they_say(
    client: openai.OpenAI, store: str, files: dict[str, str]
) -> None:
    for question, fact, name in (
        (QUESTION, "45 days", "returns-policy.md"),
        (OTHER_QUESTION, "38", "brook-40-manual.pdf"),
    ):
        answer = ask(client, store, question, include=["file_search_call.results"])
        call, message = answer.output
        (content,) = message.content
        assert fact in content.text
        citation = content.annotations[0]
        assert (citation.type, citation.filename, citation.file_id) == ("file_citation", name, files[name])
        number = int(content.text[citation.index :].removeprefix("[").partition("]")[0])
        assert fact in call.results[number - 1].text


def test_streamed_it_is_the_same_answer(client: openai.OpenAI, store: str) -> None:
    whole = ask(client, store)
    events = list(ask(client, store, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    noted = [event.annotation for event in events if event.type == "response.output_text.annotation.added"]
    assert said == whole.output_text == events[-1].response.output_text
    citations = whole.output[1].content[0].annotations
    assert [one.model_dump() for one in noted] == [one.model_dump() for one in citations]
    assert noted
    assert events[-1].type == "response.completed"


def test_a_conversation_goes_on(client: openai.OpenAI, store: str) -> None:
    first = ask(client, store)
    second = ask(client, store, OTHER_QUESTION, previous_response_id=first.id, truncation="auto")
    assert "38" in second.output_text
    items: list[Any] = list(client.responses.input_items.list(second.id))
    assert [item.content[0].text for item in items] == [OTHER_QUESTION]


def test_what_the_documents_do_not_know_is_not_made_up(client: openai.OpenAI, store: str) -> None:
    answer = ask(client, store, "Who composed the opera Aida?")
    assert answer.output_text == "I could not find this in the documents."
    assert answer.usage.output_tokens == 0


def test_plain_curl_goes_the_same_way(program: Program, store: str) -> None:
    body = {"model": MODEL, "input": QUESTION, "tools": [{"type": "file_search", "vector_store_ids": [store]}]}
    command = ["curl", "-sS", "-H", "content-type: application/json", "-d", json.dumps(body)]
    words = subprocess.run([*command, f"{program.url}/v1/responses"], check=True, capture_output=True, text=True).stdout
    assert "45 days" in json.loads(words)["output"][1]["content"][0]["text"]


def test_langchain_goes_the_same_way(program: Program, store: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings

    where: dict[str, Any] = {"base_url": f"{program.url}/v1", "api_key": "none"}
    chat = ChatOpenAI(model=MODEL, use_responses_api=True, temperature=0, max_tokens=60, **where)
    answer = chat.bind_tools([{"type": "file_search", "vector_store_ids": [store]}]).invoke(QUESTION)
    assert "45 days" in answer.text
    blocks: Any = answer.content
    annotation = next(block for block in blocks if block["type"] == "text")["annotations"][0]
    assert annotation["filename"] == "returns-policy.md"
    embeddings = OpenAIEmbeddings(model="all-minilm-l6-v2", check_embedding_ctx_length=False, **where)
    assert len(embeddings.embed_query(QUESTION)) == 384


def test_deleted_is_gone(client: openai.OpenAI, store: str, files: dict[str, str]) -> None:
    """Comes last: it takes everything away."""
    client.files.delete(files["returns-policy.md"])
    assert "returns-policy.md" not in {hit.filename for hit in client.vector_stores.search(store, query=QUESTION)}
    assert "45 days of delivery" not in ask(client, store).output_text
    client.vector_stores.delete(store)
    with pytest.raises(openai.NotFoundError):
        ask(client, store)
    for name, file_id in files.items():
        if name != "returns-policy.md":
            client.files.delete(file_id)
    assert client.files.list().data == []
