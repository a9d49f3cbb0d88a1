"""Answers to a few fixed prompts, taken again and again while a run trains, so that people see what it learns.

Greedy, so that an answer changes only because the model did, and without touching a random state. Does not know when
they are taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.chat import plain_message
from core.errors import InvalidFile, NotFound
from train.config import TrainConfig, resolve_path
from train.data import DataFile
from train.template import TrainingTemplate


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to answer at each evaluation.

    Attributes:
        text: The user's last message, for people.
        ids: The whole prompt, up to where the answer begins.
        wanted: The answer that the data holds, or None.
    """

    text: str
    ids: list[int]
    wanted: str | None


def collect_prompts(
    config: TrainConfig, held_out: DataFile | None, tokenizer: Any, template: TrainingTemplate
) -> list[Prompt]:
    """Return the prompts of a run: those of data.sample_prompts, else of the first held-out rows, else none."""
    date = template.date(config.data.template_date)
    if config.data.sample_prompts is not None:
        return read_prompts(resolve_path(config.data.sample_prompts), tokenizer, template, date)
    if held_out is None or not config.trainer.samples:
        return []
    rows, options = (row for _, row in held_out.read()), config.trainer
    return choose_prompts(rows, options.samples, options.max_length, tokenizer, template, date)


def choose_prompts(
    rows: Iterable[dict[str, Any]],
    count: int,
    max_length: int,
    tokenizer: Any,
    template: TrainingTemplate,
    date: str | None,
) -> list[Prompt]:
    """Make prompts of the first held-out rows: each up to its last answer, where that is not cut off in training.

    A longer one would take memory that no estimate knows of.

    Args:
        rows: In normal form: {"messages"} or {"prompt", "chosen", "rejected"}.
        count: How many to take.
        max_length: Tokens of the longest prompt to take.
        tokenizer: The base model's.
        template: Its training template.
        date: What the template prints as today's date, or None.
    """
    prompts: list[Prompt] = []
    for row in rows:
        if len(prompts) == count:
            break
        if "messages" in row:
            last = max(at for at, message in enumerate(row["messages"]) if message["role"] == "assistant")
            messages, answer = row["messages"][:last], row["messages"][last]
        else:
            messages, answer = row["prompt"], row["chosen"][-1]
        prompt = make_prompt(messages, answer.get("content"), row.get("tools"), tokenizer, template, date)
        if len(prompt.ids) <= max_length:
            prompts.append(prompt)
    return prompts


def read_prompts(path: Path, tokenizer: Any, template: TrainingTemplate, date: str | None) -> list[Prompt]:
    """Make prompts of a text file, one user's message a line.

    Raises:
        NotFound: There is no such file.
        InvalidFile: It holds no text.
    """
    if not path.is_file():
        raise NotFound(
            f"data.sample_prompts: wanted a text file with a prompt a line, found none at {path}. Check the path.",
            param="data.sample_prompts",
        )
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        problem = f"data.sample_prompts: not UTF-8 at byte {error.start} of {path}. Save the file as UTF-8."
        raise InvalidFile(problem, param="data.sample_prompts") from error
    if not lines:
        problem = f"data.sample_prompts: wanted a prompt a line, found {path} empty. Fill it."
        raise InvalidFile(problem, param="data.sample_prompts")
    return [make_prompt([{"role": "user", "content": line}], None, None, tokenizer, template, date) for line in lines]


def make_prompt(
    messages: list[dict[str, Any]],
    wanted: str | None,
    tools: Any,
    tokenizer: Any,
    template: TrainingTemplate,
    date: str | None,
) -> Prompt:
    """Render messages up to where the assistant's answer begins."""
    rendered = tokenizer.apply_chat_template(
        [plain_message(message) for message in messages],
        tools=tools or None,
        chat_template=template.text,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        **({"date_string": date} if date is not None else {}),
    )
    asked = [message.get("content") or "" for message in messages if message["role"] == "user"]
    return Prompt(asked[-1] if asked else "", list(rendered["input_ids"]), wanted)


def answer_prompts(model: Any, prompts: list[Prompt], max_tokens: int, stop_token_id: int, tokenizer: Any) -> list[str]:
    """Answer every prompt greedily.

    Args:
        model: The model with its adapter; its mode (training or not) is the same afterwards.
        prompts: At least one.
        max_tokens: After which an answer is cut.
        stop_token_id: What ends an answer.
        tokenizer: For padding and decoding.

    Returns:
        An answer each, without special tokens.
    """
    from transformers import GenerationConfig

    width = max(len(prompt.ids) for prompt in prompts)
    device = next(model.parameters()).device
    input_ids = torch.full((len(prompts), width), tokenizer.pad_token_id, device=device)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):  # padded on the left: answers begin together
        input_ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids, device=device)
        attention_mask[row, width - len(prompt.ids) :] = 1
    settings = GenerationConfig(
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=stop_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, generation_config=settings)
    model.train(was_training)
    answers: list[str] = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
    return [answer.strip() for answer in answers]
