"""Original chat templates, as models carry them, to hold our training templates against."""

from pathlib import Path

import trl

from tests.fakes.byte_tokenizer import read_smollm2_template
from train.template import CHATML, LLAMA_3_1, LLAMA_3_2, QWEN_2_5, QWEN_3, SMOLLM2, TrainingTemplate


def read_trl_template(name: str) -> str:
    """Return an original that TRL carries."""
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def write_chatml_template(line_break: str, *, has_default: bool) -> str:
    """Return plain ChatML in one of the four spellings that tokenizers carry.

    Args:
        line_break: As such, or escaped.
        has_default: Whether it gives add_generation_prompt a default first.
    """
    default = (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        if has_default
        else ""
    )
    turn = "{{'<|im_start|>' + message['role'] + 'BR' + message['content'] + '<|im_end|>' + 'BR'}}"
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistantBR' }}{% endif %}"
    text = default + "{% for message in messages %}" + turn + "{% endfor %}" + prompt
    return text.replace("BR", line_break)


ORIGINALS: list[tuple[TrainingTemplate, str]] = [
    (SMOLLM2, read_smollm2_template()),
    *(
        (CHATML, write_chatml_template(line_break, has_default=has_default))
        for line_break in ("\n", "\\n")
        for has_default in (False, True)
    ),
    (LLAMA_3_1, read_trl_template("llama3_1")),
    (LLAMA_3_2, read_trl_template("llama3_2")),
    (QWEN_2_5, read_trl_template("qwen2_5")),
    (QWEN_3, read_trl_template("qwen3_instruct_2507")),
]
"""Our templates with the originals that they are twins of."""
