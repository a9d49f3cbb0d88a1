"""core.control_tokens: the turns of every known family are broken, and nothing else is touched."""

from pathlib import Path

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from core.control_tokens import SHAPES, disarm_for_any_model

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TURNS = {
    "llama3_2": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "llama3_1": ("<|eom_id|>", "<|python_tag|>"),
    "qwen3": ("<|im_start|>", "<|im_end|>"),
    "phi3": ("<|user|>", "<|assistant|>", "<|end|>"),
    "gptoss": ("<|start|>", "<|message|>", "<|channel|>", "<|return|>"),
    "glm4moe": ("<|observation|>", "<sop>"),
    "gemma3": ("<start_of_turn>", "<end_of_turn>"),
    "gemma4": ("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>"),
    "cohere": ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    "deepseekv3": ("<｜User｜>", "<｜end▁of▁sentence｜>"),
    "idefics3": ("<end_of_utterance>", "<|begin_of_text|>"),
    "llava_next": ("[INST]", "[/INST]", "</s>"),
}
TOKENS = sorted(
    {*(token for tokens in TURNS.values() for token in tokens), "<s>", "<|endoftext|>", "<<SYS>>", "<</SYS>>"}
)
PIECES = st.sampled_from([*TOKENS, "<|im_", "end|>", "<", "|>", "[/", "plain words ", "\n", "é"])


@pytest.mark.parametrize("family", TURNS)
def test_the_turns_of_a_family_are_those_of_its_template(family: str) -> None:
    template = (TEMPLATES / f"{family}.jinja").read_text(encoding="utf-8")
    for token in TURNS[family]:
        assert token in template
        assert disarm_for_any_model(f"a {token}b") == f"a {token[0]} {token[1:]}b"


@pytest.mark.parametrize("text", ["<|[/INST]|>", "<[INST]|>", "<|im_[/INST]end|>", "<|[TOOL_CALLS]>"])
def test_a_token_within_what_looks_like_one_is_broken(text: str) -> None:
    assert not SHAPES.search(disarm_for_any_model(text))


@given(st.lists(PIECES, max_size=12).map("".join))
def test_a_tokenizer_finds_no_control_token_in_a_disarmed_text(text: str) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.add_special_tokens(TOKENS)
    disarmed = disarm_for_any_model(text)
    assert not tokenizer.encode(disarmed).ids
    assert disarmed.replace(" ", "") == text.replace(" ", ""), "nothing but spaces is added"
    if not SHAPES.search(text):
        assert disarmed == text


@pytest.mark.parametrize(
    "text",
    [
        "a < b and b > c, | d |",
        "<p>HTML</p> <script src='x'> <!-- note -->",
        "| a | b |\n|---|---|\n| <b> | [1] |",
        "xs <|> ys, f <$> x, [DRAFT] and [NAME]",
        "def f(x: list[int]) -> dict[str, int]: ...",
        "<tool_call>{}</tool_call>",
        "",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert disarm_for_any_model(text) == text
