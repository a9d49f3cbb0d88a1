"""Control tokens: what chat templates write roles and turns with, and how a text that holds them is read as words.

A template writes `<|im_start|>` or `<|eot_id|>` where a message begins or ends, and a tokenizer finds the same
characters in the words of a document: a passage that holds them could end its message and speak as the system. Here
they are known by their shape, for readers whose tokenizer is not at hand (a judge behind a URL, the model that a
training file will be for); serve/prompting.py asks the tokenizer of the model that it serves.
"""

import re

SHAPES = re.compile(
    r"<[|｜][^<>\[\]|｜\s]{1,64}[|｜]?>"  # Llama 3, ChatML, Phi, GLM, Command, gpt-oss, DeepSeek; Gemma 4 opens so
    r"|<[^<>\[\]|｜\s]{1,64}[|｜]>"  # and closes so
    r"|<(?:start|end)_of_\w{1,64}>"  # Gemma, Idefics
    r"|</?s>|<(?:bos|eos|pad|unk|sop|eop)>"  # Llama 2, Mistral; padding and ends of others
    r"|<</?SYS>>|\[/?INST\]"  # Llama 2
    r"|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|THINK|[gs]MASK)\]"  # Mistral, GLM
)
"""A token of a known family; none holds a space, and none begins inside another, so that each is found."""


def break_token(token: str) -> str:
    """Return a control token as words: with a space behind its first character."""
    return f"{token[0]} {token[1:]}"


def disarm_for_any_model(text: str) -> str:
    """Return a text in which no known model finds a control token; one without any comes back as it is."""
    return SHAPES.sub(lambda match: break_token(match[0]), text)
