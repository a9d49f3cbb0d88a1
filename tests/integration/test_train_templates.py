"""The masks with the models' own tokenizers: Llama 3's real one and SmolLM2's."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fakes.chat_templates import read_trl_template
from tests.fakes.tiny_llama import find_tokenizer_model, list_special_tokens, write_llama_tokenizer
from tests.unit.train.test_template import chats
from train.encoding import encode_chat
from train.model import load_tokenizer
from train.template import LLAMA_3_1, LLAMA_3_2, SMOLLM2, TrainingTemplate, find_template
from train.tokens import IGNORED

DATE = "26 Jul 2024"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What does order 4711 cost?"},
    {"role": "assistant", "content": "It costs £1,085."},
    {"role": "user", "content": "And postage?"},
    {"role": "assistant", "content": "None."},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama-3.2")
    write_llama_tokenizer(folder)
    assert find_template(folder) is LLAMA_3_2
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def llama_3_1(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama-3.1")
    write_llama_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(read_trl_template("llama3_1"), encoding="utf-8")
    assert find_template(folder) is LLAMA_3_1
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def smollm2(demo_models: Path) -> Any:
    folder = demo_models / "models" / "smollm2-135m-instruct"
    assert find_template(folder) is SMOLLM2
    return load_tokenizer(folder)


def learned(messages: list[dict[str, Any]], tokenizer: Any, template: TrainingTemplate) -> list[int]:
    example = encode_chat({"messages": messages}, tokenizer, template, template.date(DATE))
    return [label for label in example["labels"] if label != IGNORED]


def test_llama_special_tokens_have_their_ids(llama: Any) -> None:
    assert llama.convert_tokens_to_ids(["<|begin_of_text|>", "<|eot_id|>", "<|python_tag|>"]) == [
        128_000,
        128_009,
        128_010,
    ]
    assert llama.convert_ids_to_tokens(list(range(128_000, 128_256))) == list_special_tokens()
    assert llama.pad_token == "<|finetune_right_pad_id|>"


def test_llama_tokens_are_those_of_the_reference(llama: Any) -> None:
    """The reference is the model's own code, run on the same chat (source: llama_models/llama3/chat_format.py)."""
    assert importlib.util.find_spec("llama_models") is not None
    from llama_models.llama3.tokenizer import Tokenizer

    reference = Tokenizer(find_tokenizer_model())
    text = llama.apply_chat_template(CHAT, tokenize=False, date_string=DATE)
    example = encode_chat({"messages": CHAT}, llama, LLAMA_3_2, DATE)
    assert example["input_ids"] == reference.encode(text, bos=False, eos=False, allowed_special="all")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=chats())
def test_llama_learns_whole_answers(llama: Any, messages: list[dict[str, Any]]) -> None:
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant" and m.get("weight") != 0]
    assert llama.decode(learned(messages, llama, LLAMA_3_2)) == "".join(f"{answer}<|eot_id|>" for answer in answers)


def test_smollm2_learns_whole_answers(smollm2: Any) -> None:
    assert smollm2.decode(learned(CHAT, smollm2, SMOLLM2)) == "It costs £1,085.<|im_end|>None.<|im_end|>"


@pytest.mark.parametrize(("name", "template"), [("llama", LLAMA_3_2), ("llama_3_1", LLAMA_3_1), ("smollm2", SMOLLM2)])
def test_the_prompt_in_training_is_the_prompt_in_serving(
    name: str, template: TrainingTemplate, request: pytest.FixtureRequest
) -> None:
    """What stands before the last answer is, token for token, what the server makes with the original template."""
    tokenizer = request.getfixturevalue(name)
    example = encode_chat({"messages": CHAT}, tokenizer, template, template.date(DATE))
    prompt = tokenizer.apply_chat_template(
        CHAT[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, date_string=DATE
    )["input_ids"]
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][len(prompt)] != IGNORED
    assert example["labels"][len(prompt) - 1] == IGNORED
