"""Names that owners give to models, through the real gateway and search: made, moved under load, kept, taken away."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve.keys import create_key
from tests.fakes.engine import BASE
from tests.fakes.gateway import ADAPTER, ALIAS, RunningGateway, searching_gateway
from tests.fakes.tuned import add_tuned

FACT = "A customer can return a product within 45 days of delivery."
TEXT = f"# Returns\n\n{FACT} Étui included.\n\n# Frost\n\nEmpty the pump in winter.\n"
QUESTION = "Within how many days can a customer return a product?"
MOVES = 40


class Client:
    """An owner's requests."""

    def __init__(self, gateway: RunningGateway, owner: str) -> None:
        """Make a key."""
        self.gateway = gateway
        self.token = create_key(gateway.database, owner)[1]
        self.openai = gateway.client(self.token)

    def ask(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Ask a route of our own."""
        headers = {"authorization": f"Bearer {self.token}"}
        return self.gateway.request(method, f"/v1/loam/{path}", json=body, headers=headers)

    def name(self, name: str, model: str) -> httpx.Response:
        """Let a name stand for a model."""
        return self.ask("POST", "aliases", {"name": name, "model": model})

    def chat(self, model: str, question: str = QUESTION, **more: Any) -> Any:
        """Ask a model."""
        return self.openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], **more
        )

    def list_models(self) -> dict[str, str]:
        """Return what each listed name stands for."""
        return {model.id: model.target for model in self.openai.models.list()}  # type: ignore[attr-defined]

    def fill_store(self) -> str:
        """Return a new store with one document."""
        store = self.openai.vector_stores.create(name="handbook").id
        file = self.openai.files.create(file=("returns.md", TEXT.encode()), purpose="assistants").id
        self.openai.vector_stores.files.create(store, file_id=file)
        deadline = time.monotonic() + 60
        while self.openai.vector_stores.files.retrieve(file, vector_store_id=store).status == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return store


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here but one."""
    with searching_gateway(tmp_path_factory.mktemp("names")) as running:
        yield running


@pytest.fixture
def local(gateway: RunningGateway) -> Client:
    """The owner of the command line's adapter."""
    return Client(gateway, "local")


def test_an_alias_answers_from_the_next_request_on(local: Client) -> None:
    made = local.name("prod", ALIAS).json()
    assert (made["object"], made["name"], made["model"], made["is_served"]) == ("loam.alias", "prod", ADAPTER, True)
    assert local.list_models()["prod"] == ADAPTER
    assert local.openai.models.retrieve("prod").id == "prod"
    assert local.chat("prod").model == ADAPTER
    assert local.name("prod", BASE).json()["model"] == BASE
    assert local.chat("prod").model == BASE
    assert [one["name"] for one in local.ask("GET", "aliases").json()["data"]] == ["prod"]
    assert local.ask("DELETE", "aliases/prod").json()["deleted"] is True
    with pytest.raises(openai.NotFoundError):
        local.chat("prod")


def test_a_name_moves_while_it_is_asked(local: Client) -> None:
    local.name("busy", BASE)
    seen: list[str] = []
    faults: list[openai.OpenAIError] = []
    done = threading.Event()

    def ask() -> None:
        client = local.gateway.client(local.token)
        while not done.is_set():
            try:
                answer = client.chat.completions.create(model="busy", messages=[{"role": "user", "content": "a"}])
                seen.append(answer.model)
            except openai.OpenAIError as error:
                faults.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        turns = itertools.count()
        while (turn := next(turns)) < MOVES or (set(seen) != {BASE, ADAPTER} and turn < 100 * MOVES):
            assert local.name("busy", BASE if turn % 2 else ALIAS).status_code == 200
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == []
    assert set(seen) == {BASE, ADAPTER}
    assert local.chat("busy").model == BASE


def test_an_assistant_answers_from_its_owners_store_and_cites(local: Client) -> None:
    store = local.fill_store()
    body = {"name": "desk", "model": ALIAS, "vector_store_ids": [store], "k": 2, "min_score": -1, "max_tokens": 64}
    made = local.ask("POST", "assistants", body).json()
    assert (made["model"], made["vector_store_ids"], made["k"], made["temperature"]) == (ADAPTER, [store], 2, 0)
    assert local.list_models()["desk"] == ADAPTER
    local.gateway.script(reply=FACT)
    answer = local.chat("desk")
    (note,) = answer.choices[0].message.annotations
    assert answer.choices[0].message.content == f"{FACT} [1]"
    assert note.url_citation.title == "returns.md | Returns"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in local.chat("desk", stream=True))
    assert streamed == f"{FACT} [1]"
    response = local.openai.responses.create(model="desk", input=QUESTION)
    assert response.output_text == f"{FACT} [1]"
    changed = local.ask("POST", "assistants", {**body, "instructions": "Be brief."}).json()
    assert (changed["instructions"], changed["created_at"]) == ("Be brief.", made["created_at"])
    local.openai.vector_stores.delete(store)
    for ask in (lambda: local.chat("desk"), lambda: local.openai.responses.create(model="desk", input=QUESTION)):
        with pytest.raises(openai.NotFoundError, match=store):
            ask()


def test_an_assistants_passages_are_its_owners_alone(local: Client) -> None:
    store = local.fill_store()
    body = {"name": "private", "model": BASE, "vector_store_ids": [store], "min_score": -1}
    assert local.ask("POST", "assistants", body).status_code == 200
    local.gateway.script(reply=FACT)
    hit = local.chat("private").retrieval["hits"][0]
    other = Client(local.gateway, "sales")
    assert "private" not in other.list_models()
    assert local.ask("GET", f"passages/{hit['chunk_id']}").status_code == 200
    assert other.ask("GET", f"passages/{hit['chunk_id']}").status_code == 404
    refused = other.ask("POST", "assistants", body)
    unknown = other.ask("POST", "assistants", {**body, "vector_store_ids": ["vs_none"]})
    assert (refused.status_code, unknown.status_code) == (404, 404)
    assert refused.json()["error"]["code"] == unknown.json()["error"]["code"]
    assert other.ask("GET", "assistants").json()["data"] == []


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("aliases", {"name": BASE, "model": BASE}, 409, "taken"),
        ("aliases", {"name": ALIAS, "model": BASE}, 409, "taken"),
        ("aliases", {"name": "a", "model": "nothing"}, 404, "nothing"),
        ("aliases", {"name": "ft:x", "model": BASE}, 400, "name"),
        ("aliases", {"name": "../a", "model": BASE}, 400, "name"),
        ("aliases", {"name": "a"}, 400, "model"),
        ("assistants", {"name": "a", "model": BASE, "vector_store_ids": []}, 400, "vector_store_ids"),
        ("assistants", {"name": "a", "model": BASE, "vector_store_ids": ["vs_1"], "k": 51}, 400, "k"),
        ("assistants", {"name": "a", "model": BASE, "vector_store_ids": ["vs_1"], "stores": []}, 400, "stores"),
    ],
)
def test_what_cannot_be_is_refused_in_words(
    local: Client, path: str, body: dict[str, Any], status: int, word: str
) -> None:
    answer = local.ask("POST", path, body)
    assert answer.status_code == status
    assert word in answer.json()["error"]["message"]
    assert "a" not in local.list_models()


def test_a_model_with_a_name_is_not_taken_away(local: Client) -> None:
    content = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    file = local.openai.files.create(file=("t.jsonl", content), purpose="fine-tune").id
    job = local.openai.fine_tuning.jobs.create(model=BASE, training_file=file, suffix="s").id
    tuned = add_tuned(local.gateway, "local", job).name
    local.name("kept", tuned)
    with pytest.raises(openai.ConflictError, match="alias kept"):
        local.openai.models.delete(tuned)
    assert local.chat("kept").model == tuned
    local.name("kept", BASE)
    assert local.openai.models.delete(tuned).deleted


def test_names_outlive_the_gateway(tmp_path: Path) -> None:
    with searching_gateway(tmp_path) as first:
        client = Client(first, "local")
        store = client.fill_store()
        client.name("prod", ALIAS)
        body = {"name": "desk", "model": ALIAS, "vector_store_ids": [store], "min_score": -1}
        assert client.ask("POST", "assistants", body).status_code == 200
    with searching_gateway(tmp_path) as second:
        client = Client(second, "local")
        assert {name: client.list_models()[name] for name in ("prod", "desk")} == {"prod": ADAPTER, "desk": ADAPTER}
        assert client.chat("prod").model == ADAPTER
        second.script(reply=FACT)
        assert client.chat("desk").choices[0].message.content == f"{FACT} [1]"
