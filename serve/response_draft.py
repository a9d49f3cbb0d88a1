"""A response while it is written: each event of an answer becomes OpenAI's events, and all add up to the response.

Streamed or whole, the same draft is written, so that both agree. Does not know where the answer comes from, nor HTTP.
"""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from retrieval.searcher import Hit
from serve.answering import CallEvent, EndEvent
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
        self._open: dict[str, Any] | None = None  # the last item, while it is written: a message or a call
        self._part: dict[str, Any] = {}
        self._call_place: int | None = None

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
        item = {"id": make_id("fs"), "type": "file_search_call", "status": "completed", "queries": [query]}
        yield from self._add_search_item({**item, "results": results})

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
        yield from self._add_annotation(annotation)

    def add_call(self, call: CallEvent) -> Iterator[Event]:
        """Add the next stretch of a function's call."""
        if self._open is None or self._call_place != call.place:
            yield from self._close_item("completed")
            self._call_place = call.place
            yield from self._begin_call(shape_call(call.call_id, call.name, ""))
        yield from self._add_arguments(call.arguments)

    def add_item(self, item: dict[str, Any]) -> Iterator[Event]:
        """Add an item that was written before, its text or arguments in one stretch."""
        match item["type"]:
            case "file_search_call":
                yield from self._add_search_item(item)
            case "message":
                (part,) = item["content"]
                yield from self._begin_message(item["id"])
                yield from self.add_text(part["text"])
                for annotation in part["annotations"]:
                    yield from self._add_annotation(annotation)
                yield from self._close_item(item["status"])
            case "function_call":
                yield from self._begin_call(item)
                yield from self._add_arguments(item["arguments"])
                yield from self._close_item(item["status"])

    def finish(self, end: EndEvent) -> Iterator[Event]:
        """End the answer; when all events are taken, `body` is the response as it stays."""
        if self._open is None:
            yield from self._open_message()
        is_cut = end.finish_reason == "length"
        yield from self._close_item("incomplete" if is_cut else "completed")
        self.body["status"] = "incomplete" if is_cut else "completed"
        self.body["usage"] = shape_usage(end.usage)
        if is_cut:
            self.body["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.body["completed_at"] = int(time.time())

    def close(self) -> Event:
        """Return a stream's last event."""
        return self._event(f"response.{self.body['status']}", response=self.body)

    def fail(self, message: str) -> Event:
        """End a response that broke off, and say why; return a stream's last event."""
        for item in self.body["output"]:
            item["status"] = "incomplete" if item["status"] == "in_progress" else item["status"]
        self.body["status"] = "failed"
        self.body["error"] = {"code": "server_error", "message": message}
        return self.close()

    def read_said(self) -> str:
        """Return what has been said so far, and the arguments of calls."""
        items = self.body["output"]
        texts = [part["text"] for item in items for part in item.get("content", ())]
        return "".join(texts + [item["arguments"] for item in items if "arguments" in item])

    def _add_search_item(self, done: dict[str, Any]) -> Iterator[Event]:
        """Add a search that is over, stage by stage."""
        place = {"output_index": len(self.body["output"])}
        begun = {**done, "status": "in_progress", "results": None}
        yield self._event("response.output_item.added", item=begun, **place)
        for stage in ("in_progress", "searching", "completed"):
            yield self._event(f"response.file_search_call.{stage}", item_id=done["id"], **place)
        self.body["output"].append(done)
        yield self._event("response.output_item.done", item=done, **place)

    def _add_annotation(self, annotation: dict[str, Any]) -> Iterator[Event]:
        number = len(self._part["annotations"])
        self._part["annotations"].append(annotation)
        name = "response.output_text.annotation.added"
        yield self._event(name, **self._where(), annotation_index=number, annotation=annotation)

    def _begin_call(self, call: dict[str, Any]) -> Iterator[Event]:
        self._open = {**call, "arguments": "", "status": "in_progress"}
        self.body["output"].append(self._open)
        yield self._event("response.output_item.added", **self._place(), item=dict(self._open))

    def _add_arguments(self, arguments: str) -> Iterator[Event]:
        call = self.body["output"][-1]
        if arguments:
            call["arguments"] += arguments
            name = "response.function_call_arguments.delta"
            yield self._event(name, **self._place(), item_id=call["id"], delta=arguments)

    def _open_message(self) -> Iterator[Event]:
        if self._open is not None and self._open["type"] == "message":
            return
        yield from self._close_item("completed")
        self._call_place = None
        yield from self._begin_message(make_id("msg"))

    def _begin_message(self, item_id: str) -> Iterator[Event]:
        head = {"id": item_id, "type": "message", "role": "assistant", "status": "in_progress"}
        self._part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self._open = {**head, "content": [self._part]}
        self.body["output"].append(self._open)
        yield self._event("response.output_item.added", **self._place(), item={**head, "content": []})
        part = {**self._part, "annotations": []}
        yield self._event("response.content_part.added", **self._where(), part=part)

    def _close_item(self, status: str) -> Iterator[Event]:
        """End what is being written, if anything is."""
        item, self._open = self._open, None
        if item is None:
            return
        where = {**self._place(), "item_id": item["id"]}
        if item["type"] == "message":
            part = {**where, "content_index": 0}
            yield self._event("response.output_text.done", **part, text=self._part["text"], logprobs=[])
            yield self._event("response.content_part.done", **part, part=self._part)
        else:
            done = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **where, **done)
        item["status"] = status
        yield self._event("response.output_item.done", **self._place(), item=item)

    def _place(self) -> dict[str, Any]:
        """Return where the last item stands."""
        return {"output_index": len(self.body["output"]) - 1}

    def _where(self) -> dict[str, Any]:
        """Return which part of the response an event of the text is about."""
        return {**self._place(), "item_id": self.body["output"][-1]["id"], "content_index": 0}

    def _event(self, kind: str, /, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return event


def replay(body: dict[str, Any]) -> Iterator[Event]:
    """Yield the events of a stream for a response that was written before.

    Args:
        body: The response as it stays.
    """
    unwritten: dict[str, Any] = {
        "status": "in_progress",
        "completed_at": None,
        "incomplete_details": None,
        "output": [],
        "usage": None,
    }
    draft = ResponseDraft({**body, **unwritten})
    yield from draft.begin()
    for item in body["output"]:
        yield from draft.add_item(item)
    draft.body = body
    yield draft.close()


def make_id(kind: str) -> str:
    """Return a new id such as `resp_…`."""
    return f"{kind}_{secrets.token_hex(24)}"


def shape_call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """Return a call of a function as OpenAI's item."""
    head = {"id": make_id("fc"), "type": "function_call", "status": "completed"}
    return {**head, "call_id": call_id, "name": name, "arguments": arguments}


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
