"""A response while it is written: each event of an answer becomes OpenAI's events, and all add up to the response.

Streamed or whole, the same draft is written, so that both agree. Does not know where the answer comes from, nor HTTP.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import LoamError
from retrieval.searcher import Hit
from serve.answering import EndEvent
from serve.attached_files import AttachedFile
from serve.citing import Citation
from serve.prompting import read_passage_text
from serve.scores import read_score

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class FoundFile:
    """The file that a passage is of, as a client knows it.

    Attributes:
        id: The upload's id, or `doc-…`.
        name: What it is called.
        attributes: What was set.
    """

    id: str
    name: str
    attributes: dict[str, Any]

    @classmethod
    def of(cls, hit: Hit, file: AttachedFile | None) -> "FoundFile":
        """Describe a hit's file; None: it was deleted since it was found, and only its name is left."""
        if file is None:
            return cls(hit.chunk_id, hit.file, {})
        return cls(file.id, hit.file.removeprefix(f"{file.id}/"), dict(file.attributes))


class ResponseDraft:
    """One response, written event by event. Its `body` is OpenAI's object, as far as it has come."""

    def __init__(self, body: dict[str, Any]) -> None:
        """Begin a response.

        Args:
            body: OpenAI's object, status `in_progress`, without output.
        """
        self.body = body
        self._number = 0
        self._files: Mapping[str, FoundFile] = {}
        self._message: dict[str, Any] | None = None
        self._part: dict[str, Any] = {}

    def begin(self) -> Iterator[Event]:
        """Yield a stream's first events."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, response={**self.body, "output": []})

    def add_search(self, query: str, files: Mapping[str, FoundFile], results: list[Event] | None) -> Iterator[Event]:
        """Add what was searched.

        Args:
            query: What for.
            files: The file of each passage that may be cited, by the id of its chunk.
            results: What was found, as OpenAI's results; None where the client did not ask for them.
        """
        self._files = files
        item = {"id": make_id("fs"), "type": "file_search_call", "status": "in_progress", "queries": [query]}
        place = {"output_index": len(self.body["output"])}
        yield self._event("response.output_item.added", item={**item, "results": None}, **place)
        for stage in ("in_progress", "searching", "completed"):
            yield self._event(f"response.file_search_call.{stage}", item_id=item["id"], **place)
        done = {**item, "status": "completed", "results": results}
        self.body["output"].append(done)
        yield self._event("response.output_item.done", item=done, **place)

    def add_text(self, text: str) -> Iterator[Event]:
        """Add the next stretch of the answer."""
        yield from self._open_message()
        if text:
            self._part["text"] += text
            yield self._event("response.output_text.delta", **self._where(), delta=text, logprobs=[])

    def add_citation(self, citation: Citation) -> Iterator[Event]:
        """Add the annotation of a mark that the text has just got."""
        file = self._files[citation.source.chunk_id]
        annotation = {"type": "file_citation", "file_id": file.id, "filename": file.name, "index": citation.start}
        number = len(self._part["annotations"])
        self._part["annotations"].append(annotation)
        name = "response.output_text.annotation.added"
        yield self._event(name, **self._where(), annotation_index=number, annotation=annotation)

    def finish(self, end: EndEvent) -> Iterator[Event]:
        """End the answer; when all events are taken, `body` is the response as it stays."""
        yield from self._open_message()
        yield self._event("response.output_text.done", **self._where(), text=self._part["text"], logprobs=[])
        yield self._event("response.content_part.done", **self._where(), part=self._part)
        is_cut = end.finish_reason == "length"
        yield from self._close_message("incomplete" if is_cut else "completed")
        self.body["status"] = "incomplete" if is_cut else "completed"
        self.body["usage"] = shape_usage(end.usage)
        if is_cut:
            self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.body["completed_at"] = int(time.time())

    def close(self) -> Event:
        """Return a stream's last event."""
        return self._event(f"response.{self.body['status']}", response=self.body)

    def fail(self, error: LoamError) -> Event:
        """End a response that broke off; return a stream's last event."""
        for item in self.body["output"]:
            item["status"] = "incomplete" if item["status"] == "in_progress" else item["status"]
        self.body["status"] = "failed"
        self.body["error"] = {"code": "server_error", "message": error.message}
        return self.close()

    def _open_message(self) -> Iterator[Event]:
        if self._message is not None:
            return
        head = {"id": make_id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
        self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._message = {**head, "content": [self._part]}
        self.body["output"].append(self._message)
        yield self._event(
            "response.output_item.added", output_index=len(self.body["output"]) - 1, item={**head, "content": []}
        )
        part = {**self._part, "annotations": []}
        yield self._event("response.content_part.added", **self._where(), part=part)

    def _close_message(self, status: str) -> Iterator[Event]:
        assert self._message is not None  # noqa: S101  (opened above)
        self._message["status"] = status
        place = len(self.body["output"]) - 1
        yield self._event("response.output_item.done", output_index=place, item=self._message)

    def _where(self) -> dict[str, Any]:
        """Return which part of the response an event is about."""
        assert self._message is not None  # noqa: S101  (opened above)
        return {"item_id": self._message["id"], "output_index": len(self.body["output"]) - 1, "content_index": 0}

    def _event(self, name: str, **fields: Any) -> Event:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def make_id(kind: str) -> str:
    """Return a new id such as `resp_…`."""
    return f"{kind}_{secrets.token_hex(24)}"


def shape_usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return the engine's usage in the shape of responses."""
    details = usage.get("prompt_tokens_details") or {}
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens") or 0, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.get("total_tokens", 0),
    }


def shape_result(hit: Hit, file: FoundFile) -> dict[str, Any]:
    """Return a passage as OpenAI's result of a search."""
    where = {"file_id": file.id, "filename": file.name, "attributes": file.attributes}
    return {**where, "score": read_score(hit), "text": read_passage_text(hit)}


def shape_reference(hit: Hit, file: FoundFile) -> dict[str, Any]:
    """Return what is kept of a result: the id of its chunk in place of its text."""
    where = {"file_id": file.id, "filename": file.name, "attributes": file.attributes}
    return {**where, "score": read_score(hit), "chunk_id": hit.chunk_id}
