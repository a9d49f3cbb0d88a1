"""What a request for a response asks: its input as items, as turns, as an inquiry, and as the response's frame.

Pure functions over the request's schema. Does not know the database, the engine or HTTP.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from retrieval.filters import parse_filter
from retrieval.ranking import Ranking
from serve.answering import AssistantConfig
from serve.boundary import InvalidRequest
from serve.inquiry import Inquiry, sort_turns
from serve.response_draft import make_id, shape_call
from serve.schemas.responses import (
    FileSearchTool,
    FunctionCallItem,
    FunctionChoice,
    FunctionOutputItem,
    FunctionTool,
    MessageItem,
    ResponseRequest,
    TextPart,
)
from serve.scores import read_threshold

Turn = tuple[str, str]
"""A message's role and text."""


def list_items(body: ResponseRequest) -> list[dict[str, Any]]:
    """Return a request's input as OpenAI's items; earlier searches that were sent back are left out."""
    if isinstance(body.input, str):
        return [shape_item("user", [body.input])]
    items = []
    for item in body.input:
        match item:
            case MessageItem():
                items.append(shape_item(item.role, list_texts(item.content)))
            case FunctionCallItem():
                items.append(shape_call(item.call_id, item.name, item.arguments))
            case FunctionOutputItem():
                output = "\n".join(list_texts(item.output))
                head = {"id": make_id("fco"), "type": item.type, "status": "completed"}
                items.append({**head, "call_id": item.call_id, "output": output})
    return items


def list_texts(content: str | list[TextPart]) -> list[str]:
    """Return the texts of a message's parts."""
    return [content] if isinstance(content, str) else [part.text for part in content]


def shape_item(role: str, texts: Iterable[str]) -> dict[str, Any]:
    """Return a message as OpenAI's item."""
    more: dict[str, Any] = {"annotations": []} if role == "assistant" else {}
    kind = "output_text" if role == "assistant" else "input_text"
    content = [{"type": kind, "text": text, **more} for text in texts]
    return {"id": make_id("msg"), "type": "message", "role": role, "status": "completed", "content": content}


def read_turns(items: Iterable[dict[str, Any]]) -> list[Turn]:
    """Return what was said, from items of the input and the output; searches say nothing."""
    messages = [item for item in items if item["type"] == "message"]
    return [(item["role"], "\n".join(part["text"] for part in item["content"])) for item in messages]


def read_inquiry(body: ResponseRequest, turns: Sequence[Turn]) -> Inquiry:
    """Return what a response from documents is to answer.

    Args:
        body: The request.
        turns: What was said, the question last.

    Raises:
        InvalidRequest: The last message is not the user's.
        InputError: The tool's filter cannot be read.
    """
    tool = body.find_search()
    hybrid = tool.ranking_options.hybrid_search if tool and tool.ranking_options else None
    sampling = {} if body.top_p is None else {"top_p": body.top_p}
    return Inquiry(
        sort_turns(turns, "input"),
        filters=None if tool is None or tool.filters is None else parse_filter(tool.filters),
        ranking=Ranking(dense_weight=hybrid.read_dense_weight() if hybrid else None),
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        sampling={**sampling, **(body.text.to_engine() if body.text else {})},
        keeps_history=body.truncation != "auto",
        is_cited=body.text is None or not body.text.is_json(),
    )


def read_messages(body: ResponseRequest, items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the prompt of a response without documents: the instructions, then what was said, called and returned.

    Raises:
        InvalidRequest: There is nothing of it, only earlier searches.
    """
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    for item in items:
        match item["type"]:
            case "message":
                role = "system" if item["role"] == "developer" else item["role"]  # which every chat template knows
                messages.append({"role": role, "content": "\n".join(part["text"] for part in item["content"])})
            case "function_call":
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                if messages and messages[-1].get("tool_calls"):
                    messages[-1]["tool_calls"].append(call)
                else:
                    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            case "function_call_output":
                messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
    if not messages:
        raise InvalidRequest("input: wanted a message, found earlier searches alone.", param="input")
    return messages


def read_options(body: ResponseRequest) -> dict[str, Any]:
    """Return a request's options of sampling, as the engine names them; what is not set is the engine's choice."""
    options = {"max_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p}
    chosen = {name: value for name, value in options.items() if value is not None}
    return {**chosen, **(body.text.to_engine() if body.text else {}), **read_functions(body)}


def read_functions(body: ResponseRequest) -> dict[str, Any]:
    """Return the functions that the model may call, as the engine's chats have them."""
    functions = body.list_functions()
    if not functions:
        return {}
    choice: Any = body.tool_choice or "auto"
    if isinstance(choice, FunctionChoice):
        choice = {"type": "function", "function": {"name": choice.name}}
    options: dict[str, Any] = {"tools": [function.to_engine() for function in functions], "tool_choice": choice}
    return options if body.parallel_tool_calls is None else {**options, "parallel_tool_calls": body.parallel_tool_calls}


def narrow_search(config: AssistantConfig, stores: list[str], tool: FileSearchTool) -> AssistantConfig:
    """Return an assistant's settings with what a tool says of the search.

    Args:
        config: The settings.
        stores: The tool's stores, which the caller has found to be the client's.
        tool: The tool.
    """
    threshold = tool.ranking_options.score_threshold if tool.ranking_options else None
    return replace(
        config,
        stores=stores,
        k=tool.max_num_results or config.k,
        min_score=config.min_score if threshold is None else read_threshold(threshold),
    )


def shape_tool(tool: FileSearchTool | FunctionTool) -> dict[str, Any]:
    """Return a tool as the response shows it."""
    return tool.to_answer() if isinstance(tool, FunctionTool) else tool.model_dump(exclude_none=True)


def shape_frame(body: ResponseRequest, model: str, temperature: float | None) -> dict[str, Any]:
    """Return a response's object before anything is answered.

    Args:
        body: The request.
        model: The name of who answers.
        temperature: What is sampled with; None where the engine chooses.
    """
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    choice = body.tool_choice or "auto"
    return {
        "id": make_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "temperature": temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium", **text},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [shape_tool(tool) for tool in body.tools or ()],
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }
