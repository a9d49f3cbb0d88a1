"""Prompts end where the answer begins, and answers are cut at their stop token and leave the model as it was."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import InvalidFile, NotFound
from tests.fakes.small_run import TOKENIZER, make_model
from train.encoding import encode_chat
from train.samples import answer_prompts, choose_prompts, read_prompts
from train.template import QWEN_2_5, SMOLLM2

ROW: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": "2"},
    ]
}


def test_a_chat_is_asked_for_its_last_answer() -> None:
    (prompt,) = choose_prompts([ROW, ROW], 1, 2048, TOKENIZER, SMOLLM2, None)
    text = TOKENIZER.decode(prompt.ids)
    assert text.endswith("Two<|im_end|>\n<|im_start|>assistant\n")
    assert "assistant\n1<|im_end|>" in text
    assert (prompt.text, prompt.wanted) == ("Two", "2")


def test_a_prompt_that_training_would_cut_off_is_passed_over() -> None:
    """One long chat of many would else take more memory than all of the training."""
    long = {"messages": [*ROW["messages"][:2], {"role": "user", "content": "Two " * 100}, ROW["messages"][3]]}
    short = {"messages": ROW["messages"][:2]}
    prompts = choose_prompts([long, ROW, short, short], 2, 250, TOKENIZER, SMOLLM2, None)
    assert [prompt.text for prompt in prompts] == ["Two", "One"]


def test_calls_are_rendered_as_in_training_however_their_arguments_are_written() -> None:
    texts = []
    for arguments in ({"day": 1}, '{"day": 1}'):
        call = {"type": "function", "function": {"name": "look", "arguments": arguments}}
        asked = {"role": "assistant", "content": None, "tool_calls": [call]}
        told = {"role": "tool", "content": "Monday"}
        row = {"messages": [ROW["messages"][0], asked, told, {**ROW["messages"][1], "tool_calls": []}]}
        row["messages"] += [ROW["messages"][2], ROW["messages"][3]]
        (prompt,) = choose_prompts([row], 1, 2048, TOKENIZER, QWEN_2_5, None)
        ids = encode_chat(row, TOKENIZER, QWEN_2_5, None)["input_ids"]
        assert ids[: len(prompt.ids)] == prompt.ids
        texts.append(TOKENIZER.decode(prompt.ids))
    assert texts[0] == texts[1]
    assert '"arguments": {"day": 1}' in texts[0]


def test_a_pair_is_asked_for_its_chosen_answer() -> None:
    row = {"prompt": ROW["messages"][:1], "chosen": ROW["messages"][1:2], "rejected": ROW["messages"][3:]}
    (prompt,) = choose_prompts([row], 3, 2048, TOKENIZER, SMOLLM2, None)
    assert (prompt.text, prompt.wanted) == ("One", "1")


def test_a_file_holds_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Was ist los?\n\n  Grüß Gott \n", encoding="utf-8")
    prompts = read_prompts(path, TOKENIZER, SMOLLM2, None)
    assert [prompt.text for prompt in prompts] == ["Was ist los?", "Grüß Gott"]
    assert [prompt.wanted for prompt in prompts] == [None, None]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [(None, NotFound, "found none"), (b"\n \n", InvalidFile, "empty"), (b"\xff", InvalidFile, "UTF-8 at byte 0")],
)
def test_a_useless_file_is_refused(tmp_path: Path, content: bytes | None, error: type[Exception], words: str) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=words):
        read_prompts(path, TOKENIZER, SMOLLM2, None)


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    model = make_model().train()
    prompts = choose_prompts([ROW, {"messages": ROW["messages"][:2]}], 2, 2048, TOKENIZER, SMOLLM2, None)
    stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    together = answer_prompts(model, prompts, 12, stop, TOKENIZER)
    alone = [answer_prompts(model, [prompt], 12, stop, TOKENIZER)[0] for prompt in prompts]
    assert together == alone
    assert all(together)
    assert model.training
    first = TOKENIZER(together[0][0])["input_ids"][0]
    assert answer_prompts(model, prompts[:1], 12, first, TOKENIZER)[0] != together[0]
