"""No key reaches another owner's objects: every operation of the OpenAPI description × every id × every kind of key.

An operation or an id field that is not classified here fails the test, so that a new route cannot be forgotten.
"""

import json
import os
import random
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import text

from core.layout import write_file
from retrieval.database import read_transaction
from serve.boundary import OPEN_PATHS
from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing, create_key, revoke_key
from tests.fakes.engine import BASE
from tests.fakes.gateway import ALIAS, EMBEDDER, RunningGateway, searching_gateway
from tests.fakes.tuned import add_tuned

IS_FULL = bool(os.environ.get("LOAM_TEST_FULL"))
RANDOM_STEPS = 2000 if IS_FULL else 150
LOOKS_LIKE_AN_ID = re.compile(r"(^|_)(id|ids)$|_file$|^(after|before|model|name)$")


@dataclass(frozen=True, slots=True)
class Operation:
    """How an operation is asked.

    Attributes:
        ids: Kind of object by field: `path:…`, `query:…` or `body:…`.
        body: A body that is taken; «kind» stands for an id.
        free: Fields that look like ids and name nothing of anybody's.
        status: What its owner gets.
    """

    ids: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] | None = None
    free: tuple[str, ...] = ()
    status: int = 200


STORE = {"path:vector_store_id": "store"}
STORE_FILE = {**STORE, "path:file_id": "file"}
BATCH = {**STORE, "path:batch_id": "batch"}
RESPONSE = {"path:response_id": "response"}
PAGED_FILES = {"query:after": "file", "query:before": "file"}
JOBS = "GET /v1/fine_tuning/jobs/{fine_tuning_job_id}"
JOB = {"path:fine_tuning_job_id": "job"}
CHAT = {"model": "«model»", "messages": [{"role": "user", "content": "hello"}]}
OPERATIONS = {
    "GET /health": Operation(),
    "GET /docs": Operation(),
    "GET /openapi.json": Operation(),
    "GET /metrics": Operation(),
    "GET /v1/models": Operation(),
    "GET /v1/models/{name}": Operation({"path:name": "model"}),
    "POST /v1/chat/completions": Operation(
        {"body:model": "model"}, CHAT,
        free=("body:messages.name", "body:messages.tool_call_id", "body:messages.tool_calls.id",
              "body:messages.tool_calls.function.name", "body:tools.function.name", "body:tool_choice.function.name",
              "body:response_format.json_schema.name"),
    ),
    "POST /v1/completions": Operation({"body:model": "model"}, {"model": "«model»", "prompt": "hello"}),
    "POST /v1/responses": Operation(
        {"body:model": "model", "body:previous_response_id": "response", "body:tools.vector_store_ids": "store"},
        {"model": "«model»", "input": "hello", "previous_response_id": "«response»",
         "tools": [{"type": "file_search", "vector_store_ids": ["«store»"]}]},
        free=("body:input.id", "body:input.call_id", "body:input.name", "body:text.format.name", "body:tools.name",
              "body:tool_choice.name"),
    ),
    "GET /v1/responses/{response_id}": Operation(RESPONSE),
    "DELETE /v1/responses/{response_id}": Operation(RESPONSE),
    "GET /v1/responses/{response_id}/input_items": Operation({**RESPONSE, "query:after": "item"}),
    "POST /v1/embeddings": Operation(body={"model": EMBEDDER, "input": "x"}, free=("body:model",)),  # everybody's
    "POST /v1/rerank": Operation(
        body={"model": EMBEDDER, "query": "x", "documents": ["x"]}, free=("body:model",), status=404  # there is none
    ),
    "GET /sources/{chunk_id}": Operation({"path:chunk_id": "chunk"}),
    "POST /v1/files": Operation(),
    "GET /v1/files": Operation({"query:after": "file"}),
    "GET /v1/files/{file_id}": Operation({"path:file_id": "file"}),
    "GET /v1/files/{file_id}/content": Operation({"path:file_id": "file"}),
    "DELETE /v1/files/{file_id}": Operation({"path:file_id": "file"}),
    "POST /v1/vector_stores": Operation({"body:file_ids": "file"}, {"file_ids": ["«file»"]}, free=("body:name",)),
    "GET /v1/vector_stores": Operation({"query:after": "store", "query:before": "store"}),
    "GET /v1/vector_stores/{vector_store_id}": Operation(STORE),
    "POST /v1/vector_stores/{vector_store_id}": Operation(STORE, {"metadata": {"a": "b"}}, free=("body:name",)),
    "DELETE /v1/vector_stores/{vector_store_id}": Operation(STORE),
    "POST /v1/vector_stores/{vector_store_id}/search": Operation(STORE, {"query": "x"}),
    "POST /v1/vector_stores/{vector_store_id}/files": Operation(
        {**STORE, "body:file_id": "file"}, {"file_id": "«file»"}
    ),
    "GET /v1/vector_stores/{vector_store_id}/files": Operation({**STORE, **PAGED_FILES}),
    "GET /v1/vector_stores/{vector_store_id}/files/{file_id}": Operation(STORE_FILE),
    "POST /v1/vector_stores/{vector_store_id}/files/{file_id}": Operation(STORE_FILE, {"attributes": {"a": 1}}),
    "DELETE /v1/vector_stores/{vector_store_id}/files/{file_id}": Operation(STORE_FILE),
    "GET /v1/vector_stores/{vector_store_id}/files/{file_id}/content": Operation(STORE_FILE),
    "POST /v1/vector_stores/{vector_store_id}/file_batches": Operation(
        {**STORE, "body:file_ids": "file", "body:files.file_id": "file"}, {"file_ids": ["«file»"]}
    ),
    "GET /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}": Operation(BATCH),
    "POST /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel": Operation(BATCH),
    "GET /v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files": Operation({**BATCH, **PAGED_FILES}),
    "GET /v1/loam/account": Operation(),
    "POST /v1/loam/search": Operation(
        {"body:vector_store_ids": "store"}, {"vector_store_ids": ["«store»"], "query": "x"}
    ),
    "GET /v1/loam/documents/{vector_store_id}": Operation({**STORE, **PAGED_FILES}),
    "GET /v1/loam/passages/{chunk_id}": Operation({"path:chunk_id": "chunk"}),
    "POST /v1/loam/feedback": Operation(
        {"body:model": "model", "body:chunk_ids": "chunk"},
        {"rating": "up", "model": "«model»", "question": "q", "answer": "a", "chunk_ids": ["«chunk»"]},
    ),
    "GET /v1/loam/feedback": Operation({"query:after": "feedback"}),
    "GET /v1/loam/feedback/questions": Operation({"query:vector_store_id": "store"}),
    "GET /v1/loam/feedback/{feedback_id}": Operation({"path:feedback_id": "feedback"}),
    "DELETE /v1/loam/feedback/{feedback_id}": Operation({"path:feedback_id": "feedback"}),
    "POST /v1/loam/training_checks": Operation(
        {"body:file_id": "file", "body:model": "model"}, {"file_id": "«file»", "model": "«model»"}
    ),
    "POST /v1/loam/training_estimates": Operation(
        {"body:training_file": "training", "body:validation_file": "validation"},
        {"model": BASE, "training_file": "«training»", "validation_file": "«validation»"},
        free=("body:model",),  # base models, as of a job
    ),
    "POST /v1/loam/aliases": Operation(
        {"body:model": "model"}, {"name": "given-alias", "model": "«model»"}, free=("body:name",)  # one's own, always
    ),
    "GET /v1/loam/aliases": Operation(),
    "DELETE /v1/loam/aliases/{name}": Operation({"path:name": "alias"}),
    "POST /v1/loam/assistants": Operation(
        {"body:model": "model", "body:vector_store_ids": "store"},
        {"name": "given-assistant", "model": "«model»", "vector_store_ids": ["«store»"]},
        free=("body:name",),
    ),
    "GET /v1/loam/assistants": Operation(),
    "DELETE /v1/loam/assistants/{name}": Operation({"path:name": "assistant"}),
    "GET /v1/loam/reports": Operation(),
    "GET /v1/loam/reports/{report}/{file}": Operation({"path:report": "report", "path:file": "report_file"}),
    "GET /v1/loam/status": Operation(),
    "POST /v1/loam/doctor": Operation(),
    "GET /v1/loam/keys": Operation(),
    "POST /v1/loam/keys": Operation(body={"owner": "somebody"}),
    "DELETE /v1/loam/keys/{key_id}": Operation({"path:key_id": "key"}),
    "DELETE /v1/models/{name}": Operation({"path:name": "tuned"}),
    "POST /v1/fine_tuning/jobs": Operation(
        {"body:training_file": "training", "body:validation_file": "validation"},
        {"model": BASE, "training_file": "«training»", "validation_file": "«validation»"},
        free=("body:model",),  # base models, which are everybody's; see test_a_job_starts_from_no_adapter_of_others
    ),
    "GET /v1/fine_tuning/jobs": Operation({"query:after": "job"}),
    JOBS: Operation(JOB),
    f"{JOBS}/events": Operation({**JOB, "query:after": "event"}),
    f"{JOBS}/checkpoints": Operation({**JOB, "query:after": "checkpoint"}),
    **{f"POST {JOBS[4:]}/{verb}": Operation(JOB) for verb in ("pause", "resume", "cancel")},
}  # fmt: skip
ADMIN_ONLY = {"GET /metrics", "GET /v1/loam/status", "POST /v1/loam/doctor", "GET /v1/loam/keys", "POST /v1/loam/keys",
              "DELETE /v1/loam/keys/{key_id}"}  # fmt: skip
"""Refused for every key that is no administrator's, before anything is looked for."""
BODIES = {"body:files.file_id": {"files": [{"file_id": "«file»"}]}}
"""Other bodies for fields that the operation's own does not hold."""


def describe_api() -> dict[str, Any]:
    """Return the app's OpenAPI description."""
    app = build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
    return app.openapi()


DESCRIPTION = describe_api()


def list_operations() -> dict[str, dict[str, Any]]:
    """Return every operation of the description as «METHOD /path»."""
    return {
        f"{method.upper()} {path.replace(':path}', '}')}": operation
        for path, methods in DESCRIPTION["paths"].items()
        for method, operation in methods.items()
    }


def list_fields(schema: dict[str, Any], prefix: str) -> Iterator[str]:
    """Yield the fields of a schema, nested ones joined by dots."""
    if "$ref" in schema:
        schema = DESCRIPTION["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from list_fields(part, prefix)
    if "items" in schema:
        yield from list_fields(schema["items"], prefix)
    for name, part in schema.get("properties", {}).items():
        yield f"{prefix}{name}"
        yield from list_fields(part, f"{prefix}{name}.")


def find_ids(operation: dict[str, Any]) -> set[str]:
    """Return the fields of an operation that look like ids."""
    parameters = [f"{part['in']}:{part['name']}" for part in operation.get("parameters", ())]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    fields = [f"body:{name}" for name in list_fields(content.get("schema", {}), "")]
    return {
        name
        for name in (*parameters, *fields)
        if name.startswith("path:") or LOOKS_LIKE_AN_ID.search(re.split(r"[:.]", name)[-1])
    }


def test_every_operation_and_every_id_is_classified() -> None:
    found = list_operations()
    assert set(found) == set(OPERATIONS)
    for name, operation in found.items():
        known = OPERATIONS[name]
        assert find_ids(operation) == set(known.ids) | set(known.free), name


def test_the_search_for_ids_sees_new_ones() -> None:
    schema = {"anyOf": [{"type": "object", "properties": {"training_file_id": {}, "a": {"items": {"properties": {
        "model": {}}}}}}, {"type": "null"}]}  # fmt: skip
    operation = {
        "parameters": [{"in": "path", "name": "thing"}],
        "requestBody": {"content": {"application/json": {"schema": schema}}},
    }
    assert find_ids(operation) == {"path:thing", "body:training_file_id", "body:a.model"}


class Owner:
    """An owner with a key and one object of each kind."""

    def __init__(self, gateway: RunningGateway, name: str) -> None:
        """Make the key; objects are made by `refill`."""
        self.gateway = gateway
        self.key, self.token = create_key(gateway.database, name, is_admin=name == "local")
        self.ids: dict[str, str] = {}

    def refill(self) -> None:
        """Make one object of each kind."""
        client = self.gateway.client(self.token)
        words = f"canary {secrets.token_hex(4)} of {self.key.owner}"
        file_id = client.files.create(file=("a.txt", words.encode()), purpose="assistants").id
        store = client.vector_stores.create(name="s")
        batch = client.vector_stores.file_batches.create(store.id, file_ids=[file_id])
        deadline = time.monotonic() + 60
        while client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id).status == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with read_transaction(self.gateway.database) as connection:
            query = text("SELECT c.id FROM chunks c JOIN stores s ON s.id = c.store_id WHERE s.name = :name")
            chunk = connection.execute(query, {"name": store.id}).scalar_one()
        model = ALIAS if self.key.owner == "local" else BASE
        said = {"rating": "up", "model": model, "question": words, "answer": "a", "chunk_ids": [f"chunk-{chunk}"]}
        headers = {"authorization": f"Bearer {self.token}"}
        feedback = self.gateway.request("POST", "/v1/loam/feedback", json=said, headers=headers).json()
        row = {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": "yes"}]}
        content = json.dumps(row).encode() + b"\n"
        training, validation = (client.files.create(file=("t.jsonl", content), purpose="fine-tune").id for _ in "tv")
        job = client.fine_tuning.jobs.create(model=BASE, training_file=training, suffix="s").id
        tuned = add_tuned(self.gateway, self.key.owner, job)
        add_tuned(self.gateway, self.key.owner, job, step=5)
        response = client.responses.create(model=BASE, input=words).id
        (item,) = client.responses.input_items.list(response)
        names = {kind: f"{kind}-of-{self.key.owner}" for kind in ("alias", "assistant")}
        for kind, path in (("alias", "aliases"), ("assistant", "assistants")):
            over = {"vector_store_ids": [store.id]} if kind == "assistant" else {}
            given = {"name": names[kind], "model": model, **over}
            self.gateway.request("POST", f"/v1/loam/{path}", json=given, headers=headers).raise_for_status()
        self.ids = {
            "file": file_id, "store": store.id, "batch": batch.id, "chunk": f"chunk-{chunk}", "model": model,
            "feedback": feedback["id"], "key": create_key(self.gateway.database, self.key.owner)[0].id,
            "report": f"of-{self.key.owner}", "report_file": "report.json",
            "training": training, "validation": validation, "job": job, "tuned": tuned.name,
            "event": client.fine_tuning.jobs.list_events(job).data[0].id,
            "checkpoint": client.fine_tuning.jobs.checkpoints.list(job).data[0].id,
            "response": response, "item": str(item.id), **names,
        }  # fmt: skip
        if self.key.owner == "local":
            write_file(self.gateway.folder / "reports" / "of-local" / "report.json", "{}")

    def ask(self, name: str, ids: dict[str, str], chosen: str | None, token: str | None = None) -> httpx.Response:
        """Ask an operation.

        Args:
            name: The operation.
            ids: The id of each field.
            chosen: The field in question; query fields are left out but for this one.
            token: The key; None: the owner's.
        """
        operation = OPERATIONS[name]
        method, path = name.split(" ")
        body = deepcopy(BODIES.get(chosen or "", operation.body))
        for where, value in ids.items():
            place, _, part = where.partition(":")
            if place == "path":
                path = path.replace(f"{{{part}}}", value)
            elif place == "body" and (where == chosen or not {where, chosen} & BODIES.keys()):
                body = json.loads(json.dumps(body, ensure_ascii=False).replace(f"«{operation.ids[where]}»", value))
        query = {chosen.partition(":")[2]: ids[chosen]} if chosen and chosen.startswith("query:") else None
        headers = {} if token == "" else {"authorization": f"Bearer {token or self.token}"}
        form = {"data": {"purpose": "batch"}, "files": {"file": ("a", b"x")}} if name == "POST /v1/files" else {}
        return self.gateway.request(method, path, headers=headers, json=body, params=query, **cast("Any", form))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """One gateway for all tests here."""
    with searching_gateway(tmp_path_factory.mktemp("isolation")) as running:
        yield running


@pytest.fixture(scope="module")
def owners(gateway: RunningGateway) -> tuple[Owner, Owner]:
    """The one whose things they are (`local`, so that an adapter is among them), and another."""
    victim, other = Owner(gateway, "local"), Owner(gateway, "sales")
    other.refill()
    return victim, other


def list_cases() -> list[tuple[str, str | None]]:
    """Return every operation with each of its ids; one without any once."""
    cases: list[tuple[str, str | None]] = []
    for name, operation in OPERATIONS.items():
        cases += [(name, chosen) for chosen in operation.ids] or [(name, None)]
    return cases


CASES = list_cases()


@pytest.mark.parametrize(("name", "chosen"), CASES)
def test_each_kind_of_key_gets_what_it_may(
    gateway: RunningGateway, owners: tuple[Owner, Owner], name: str, chosen: str | None,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    victim, other = owners
    victim.refill()
    kinds = OPERATIONS[name].ids
    own = {where: victim.ids[kind] for where, kind in kinds.items()}
    if name.split(" ")[1] not in OPEN_PATHS:
        revoked = Owner(gateway, "local")
        revoke_key(gateway.database, revoked.key.id)
        for token in (revoked.token, ""):
            assert victim.ask(name, own, chosen, token).status_code == 401
    if name in ADMIN_ONLY:
        assert other.ask(name, own, chosen).status_code == 403
    if chosen is not None:
        foreign = {where: other.ids[kind] for where, kind in kinds.items()}
        theirs = victim.ids[kinds[chosen]]
        unknown = re.sub("[0-9a-f]", "0", theirs) if "-" in theirs or "_" in theirs else "x" * len(theirs)
        if kinds[chosen] == "chunk":
            unknown = "chunk-" + "9" * (len(theirs) - 6)
        answers = [other.ask(name, {**foreign, chosen: value}, chosen) for value in (theirs, unknown)]
        wanted = 403 if name in ADMIN_ONLY else 404
        assert [answer.status_code for answer in answers] == [wanted, wanted], [answer.text for answer in answers]
        assert answers[0].text.replace(theirs, unknown) == answers[1].text
        if kinds[chosen] != "model":
            for kind, path in (("file", "/v1/files/"), ("store", "/v1/vector_stores/"), ("response", "/v1/responses/")):
                headers = {"authorization": f"Bearer {victim.token}"}
                assert gateway.request("GET", f"{path}{victim.ids[kind]}", headers=headers).status_code == 200
    assert victim.ask(name, own, chosen).status_code == OPERATIONS[name].status
    record_property("cases_of_the_matrix", 1)


def test_lists_hold_ones_own_only(gateway: RunningGateway, owners: tuple[Owner, Owner]) -> None:
    victim, other = owners
    victim.refill()
    for name in ("GET /v1/files", "GET /v1/vector_stores", "GET /v1/models", "GET /v1/fine_tuning/jobs"):
        mine, theirs = (one.ask(name, {}, None).text for one in owners)
        kind = name.rpartition("/")[2]
        wanted = {"files": "file", "vector_stores": "store", "models": "tuned", "jobs": "job"}[kind]
        assert victim.ids[wanted] in mine
        assert victim.ids[wanted] not in theirs
        assert other.ids[wanted] in theirs


def test_a_job_starts_from_no_adapter_of_others(owners: tuple[Owner, Owner]) -> None:
    victim, other = owners
    other.refill()
    answers = []
    for model in (victim.ids["tuned"], "x" * len(victim.ids["tuned"])):
        body = {"model": model, "training_file": other.ids["training"]}
        headers = {"authorization": f"Bearer {other.token}"}
        answer = other.gateway.request("POST", "/v1/fine_tuning/jobs", json=body, headers=headers)
        answers.append((answer.status_code, answer.text.replace(model, "")))
    assert answers[0] == answers[1]
    assert answers[0][0] == 404


def test_random_requests_of_three_owners_never_meet(
    gateway: RunningGateway, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("LOAM_TEST_SEED", random.SystemRandom().randrange(2**32) if IS_FULL else 20261126))
    sys.stdout.write(f"seed {seed}\n")
    chance = random.Random(seed)
    actors = [Owner(gateway, f"random-{number}") for number in range(3)]
    for actor in actors:
        actor.refill()
    names = [name for name, operation in OPERATIONS.items() if operation.ids and "model" not in operation.ids.values()]
    met = 0
    for _ in range(RANDOM_STEPS):
        asker, name = chance.choice(actors), chance.choice(names)
        kinds = OPERATIONS[name].ids
        holders = {where: chance.choice(actors) for where in kinds}
        chosen = chance.choice(list(kinds))
        ids = {where: holders[where].ids[kind] for where, kind in kinds.items()}
        used = [where for where in kinds if where.startswith(("path:", "body:")) or where == chosen]
        used = [where for where in used if where not in BODIES or where == chosen]
        answer = asker.ask(name, ids, chosen)
        foreign = [where for where in used if holders[where] is not asker]
        if chosen == "body:files.file_id":
            foreign = [where for where in foreign if where != "body:file_ids"]
        met += bool(foreign)
        assert answer.status_code < 500, (seed, name, answer.text)
        assert answer.status_code != 200 or not foreign, (seed, name, foreign)
        for one in actors:
            if one is not asker:
                assert f"of {one.key.owner}" not in answer.text, (seed, name)
        if answer.status_code == 200 and name.startswith("DELETE"):
            asker.refill()
    assert met > RANDOM_STEPS / 4
    record_property("random_requests", RANDOM_STEPS)
    record_property("of_them_for_what_is_anothers", met)
