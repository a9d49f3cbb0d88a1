"""What an answer must hold to count: OpenAI's own models, taken strictly; the client forgives almost anything."""

from typing import Any

from openai.types.responses import Response
from pydantic import BaseModel, TypeAdapter


def check_answer(answer: BaseModel, kind: Any) -> None:
    """Fail unless an answer fulfils one of the client's models strictly and brings no field that it does not know."""
    raw = answer.model_dump(mode="json", by_alias=True, exclude_unset=True)
    parsed = TypeAdapter(kind).validate_json(answer.model_dump_json(by_alias=True, exclude_unset=True), strict=True)
    extra = dict(parsed.model_extra or {})
    assert extra == {}, f"{kind.__name__}: fields that OpenAI's has not: {sorted(extra)}"
    missing = [
        name for name, field in kind.model_fields.items() if field.is_required() and (field.alias or name) not in raw
    ]
    assert missing == [], f"{kind.__name__}: wanted {missing}"


def read_events(stream: Any) -> list[Any]:
    """Return a stream's events, each checked against the client's own model of it, numbered without a gap."""
    events = list(stream)
    for event in events:
        check_answer(event, type(event))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def drop_identity(response: Response) -> dict[str, Any]:
    """Return a response without what differs between two equal ones."""
    value = response.model_dump()
    for name in ("id", "created_at", "completed_at"):
        value.pop(name)
    for item in value["output"]:
        item.pop("id")
    return value
