"""docs/api.md says of every field what becomes of it: held against the app's schemas and the stock client's types."""

import re
from typing import Any, cast, get_type_hints

import pytest
from fastapi.routing import APIRoute
from openai.types import (
    completion_create_params as text_params,
)
from openai.types import (
    embedding_create_params,
    file_create_params,
    file_list_params,
    vector_store_create_params,
    vector_store_list_params,
    vector_store_search_params,
    vector_store_update_params,
)
from openai.types.chat import completion_create_params
from openai.types.fine_tuning import job_create_params, job_list_events_params, job_list_params
from openai.types.fine_tuning.jobs import checkpoint_list_params
from openai.types.responses import input_item_list_params, response_create_params, response_retrieve_params
from openai.types.vector_stores import (
    file_batch_create_params,
)
from openai.types.vector_stores import (
    file_create_params as attach_params,
)
from openai.types.vector_stores import (
    file_list_params as attached_params,
)
from pydantic import BaseModel

from serve.gateway import build_app
from serve.gateway_state import Gateway
from serve.keys import KeyRing
from tests.rules.checkout import REPO

VERDICTS = ("served", "ignored", "refused")
STORES = "/v1/vector_stores"
JOBS = "/v1/fine_tuning/jobs"
CLIENT_TYPES = {
    "POST /v1/chat/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "POST /v1/completions": text_params.CompletionCreateParamsNonStreaming,
    "POST /v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
    "GET /v1/responses/{response_id}": response_retrieve_params.ResponseRetrieveParamsNonStreaming,
    "GET /v1/responses/{response_id}/input_items": input_item_list_params.InputItemListParams,
    "POST /v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "POST /v1/files": file_create_params.FileCreateParams,
    "GET /v1/files": file_list_params.FileListParams,
    f"POST {STORES}": vector_store_create_params.VectorStoreCreateParams,
    f"GET {STORES}": vector_store_list_params.VectorStoreListParams,
    f"POST {STORES}/{{vector_store_id}}": vector_store_update_params.VectorStoreUpdateParams,
    f"POST {STORES}/{{vector_store_id}}/search": vector_store_search_params.VectorStoreSearchParams,
    f"POST {STORES}/{{vector_store_id}}/files": attach_params.FileCreateParams,
    f"GET {STORES}/{{vector_store_id}}/files": attached_params.FileListParams,
    f"POST {STORES}/{{vector_store_id}}/file_batches": file_batch_create_params.FileBatchCreateParams,
    f"POST {JOBS}": job_create_params.JobCreateParams,
    f"GET {JOBS}": job_list_params.JobListParams,
    f"GET {JOBS}/{{fine_tuning_job_id}}/events": job_list_events_params.JobListEventsParams,
    f"GET {JOBS}/{{fine_tuning_job_id}}/checkpoints": checkpoint_list_params.CheckpointListParams,
}


def read_verdicts(page: str) -> dict[str, dict[str, str]]:
    """Return what the page says of each field, by «METHOD /path»."""
    found: dict[str, dict[str, str]] = {}
    route = ""
    for line in page.splitlines():
        heading = re.match(r"#+ (?:.* )?((?:GET|POST|DELETE|PUT|PATCH) /\S+)$", line)
        if heading:
            route = heading.group(1)
            found[route] = {}
        elif line.startswith("## "):
            route = ""
        row = re.match(r"\| (`.*?) \| (\w+) \|", line)
        if route and row and row.group(2) in VERDICTS:
            for name in re.findall(r"`([\w.]+)`", row.group(1)):
                found[route].setdefault(name, row.group(2))
    return found


PAGE = read_verdicts((REPO / "docs" / "api.md").read_text())


def list_routes() -> dict[str, APIRoute]:
    """Return the gateway's routes as «METHOD /path»."""
    app = build_app(cast("Gateway", None), cast("KeyRing", None), max_body_bytes=1, max_file_bytes=1)
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return {f"{method} {route.path}": route for route in routes for method in route.methods}


def list_taken(route: APIRoute) -> set[str]:
    """Return the names of the fields that a route's body and query take."""
    models: list[Any] = [part.field_info.annotation for part in route.dependant.body_params]
    models += [part.field_info.annotation for part in route.dependant.query_params]
    fields = [model.model_fields for model in models if isinstance(model, type) and issubclass(model, BaseModel)]
    return {(info.alias or name).removesuffix("[]") for part in fields for name, info in part.items()}


def test_every_route_has_a_heading_of_its_own() -> None:
    assert set(list_routes()) == set(PAGE)


@pytest.mark.parametrize("name", sorted(list_routes()))
def test_the_page_has_every_field_that_is_taken_and_no_other(name: str) -> None:
    taken = list_taken(list_routes()[name])
    said = {field.partition(".")[0] for field, verdict in PAGE[name].items() if verdict != "refused"}
    answered = {
        "refusal",
        "annotations",
        "audio",
        "function_call",
        "reasoning",
        "parsed",
    }  # of a chat's earlier messages
    if name == "POST /v1/files":  # a form, read by serve/forms.py
        taken = {"file", "purpose", "expires_after"}
    assert taken <= said, f"not on the page: {sorted(taken - said)}"
    assert said - taken <= answered, f"not in the schema: {sorted(said - taken - answered)}"


@pytest.mark.parametrize("name", sorted(CLIENT_TYPES))
def test_the_page_has_every_field_that_the_stock_client_can_send(name: str) -> None:
    sent = set(get_type_hints(CLIENT_TYPES[name]))
    sent -= {"vector_store_id"}
    said = {field.partition(".")[0] for field in PAGE[name]}
    assert sent <= said, f"say what becomes of {sorted(sent - said)}"


def test_the_rule_reads_a_table() -> None:
    page = "## GET /a\n| `b`, `c.d` | served | |\n| `e` | ignored | x |\n## Other\n| `f` | served | |\n"
    assert read_verdicts(page) == {"GET /a": {"b": "served", "c.d": "served", "e": "ignored"}}
