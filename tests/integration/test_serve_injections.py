"""Promise I5: the words of a document have no authority, even over a model that obeys them.

Fifty documents give orders (tests/fakes/hostile_orders.py). The model is scripted to do as it is told: it repeats the
orders, makes up marks, links and images, and calls functions. What reaches the client must still be the gateway's own.
"""

import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response

from serve.keys import create_key
from tests.fakes.engine import BASE
from tests.fakes.gateway import CONTROL_TOKENS, RunningGateway, searching_gateway
from tests.fakes.hostile_orders import DOCUMENTS
from tests.fakes.strict_answers import check_answer

CALLS = [{"name": "delete_file", "arguments": '{"file": "all"}'}]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway without assistants; one owner fills its stores."""
    with searching_gateway(tmp_path_factory.mktemp("injections")) as running:
        yield running


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> openai.OpenAI:
    """The stock client of an owner."""
    return gateway.client(create_key(gateway.database, "owner")[1])


@pytest.fixture(scope="module")
def store(client: openai.OpenAI) -> str:
    """All fifty, each with a fact that a question finds."""
    made = client.vector_stores.create(name="hostile").id
    files = [
        client.files.create(file=(f"pump{number}.md", write_document(number).encode()), purpose="assistants").id
        for number in range(len(DOCUMENTS))
    ]
    batch = client.vector_stores.file_batches.create_and_poll(made, file_ids=files, poll_interval_ms=100)
    assert batch.file_counts.completed == len(DOCUMENTS) == 50
    return made


def write_fact(number: int) -> str:
    return f"The canary{number} pump runs at {number + 100} bar."


def write_document(number: int) -> str:
    return f"{write_fact(number)}\n\n{DOCUMENTS[number]}\n"


def test_no_order_in_a_document_is_obeyed_by_anything_but_the_model(
    gateway: RunningGateway, client: openai.OpenAI, store: str
) -> None:
    tool: Any = {
        "type": "file_search", "vector_store_ids": [store], "max_num_results": 3,
        "ranking_options": {"score_threshold": 0},
    }  # fmt: skip
    cited = 0
    for number, document in enumerate(DOCUMENTS):
        gateway.script(reply=f"{write_fact(number)} [9]\n{document}\nAs ordered. [2]【4:0†x】", calls=CALLS)
        answer = client.responses.create(
            model=BASE, input=f"At how many bar does the canary{number} pump run?", tools=[tool],
            include=["file_search_call.results"], store=False,
        )  # fmt: skip
        check_answer(answer, Response)
        check_request(gateway.state()["requests"][-1])
        cited += check_citations(client, store, answer)
    assert cited >= len(DOCUMENTS), "each answer holds one sentence that its document says"


def check_request(request: dict[str, Any]) -> None:
    """A document is words in the system message: it opens no role, and there is nothing that it could have called."""
    assert [message["role"] for message in request["messages"]] == ["system", "user"]
    assert not {"tools", "functions", "tool_choice"} & set(request)
    said = "".join(message["content"] for message in request["messages"])
    assert "canary" in said
    assert not [token for token in CONTROL_TOKENS if token in said]


def check_citations(client: openai.OpenAI, store: str, answer: Response) -> int:
    """Each mark is the gateway's and leads to a found passage that stands in its document; returns how many."""
    call, message = answer.output
    assert call.type == "file_search_call"
    assert message.type == "message"
    results = call.results or []
    for result in results:
        assert result.file_id
        pieces = client.vector_stores.files.content(result.file_id, vector_store_id=store).data
        assert result.text
        assert result.text in "".join(piece.text or "" for piece in pieces)
    content = message.content[0]
    assert content.type == "output_text"
    marks = [annotation for annotation in content.annotations if annotation.type == "file_citation"]
    prose = re.sub(r"```.*?```", "", content.text, flags=re.DOTALL)  # what stands in code is nobody's mark
    assert len(marks) == len(content.annotations) == len(re.findall(r"\[\d+\]", prose))
    assert "【" not in prose
    assert {mark.file_id for mark in marks} <= {result.file_id for result in results}
    return len(marks)
