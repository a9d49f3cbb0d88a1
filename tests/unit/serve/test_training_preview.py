"""What a file of training data holds: faults by line, lengths, a row as it is read."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from serve.training_preview import BARS, MAX_FAULTS, describe_lengths, preview_file
from tests.fakes.byte_tokenizer import make_byte_tokenizer
from tests.fakes.tiny_llama import read_llama_template

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def write(path: Path, *rows: object) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=200))
def test_every_length_stands_in_one_bar(lengths: list[int]) -> None:
    found = describe_lengths(lengths)
    assert sum(found["bars"]) == found["measured"] == len(lengths)
    assert (found["total"], found["max"]) == (sum(lengths), max(lengths))
    assert 1 <= len(found["bars"]) <= BARS
    assert found["bars"][-1] > 0
    for at, count in enumerate(found["bars"]):
        assert count == sum(at * found["width"] <= length < (at + 1) * found["width"] for length in lengths)


def test_faults_are_counted_beyond_those_that_are_told(tmp_path: Path) -> None:
    found = preview_file(
        write(tmp_path / "a", GOOD, *({"messages": []} for _ in range(MAX_FAULTS + 5))), "a.jsonl", None
    )
    assert (found["rows"], found["fault_count"], len(found["faults"])) == (1, MAX_FAULTS + 5, MAX_FAULTS)
    assert found["faults"][0]["line"] == 2
    assert found["sample"]["line"] == 1


def test_an_empty_file_is_a_fault(tmp_path: Path) -> None:
    found = preview_file(write(tmp_path / "a"), "a.jsonl", None)
    assert (found["rows"], found["fault_count"], found["sample"]) == (0, 1, None)
    assert found["lengths"]["bars"] == []


def test_a_pair_is_read_with_its_better_answer(tmp_path: Path) -> None:
    found = preview_file(write(tmp_path / "a", {"prompt": "q", "chosen": "good", "rejected": "bad"}), "a.jsonl", None)
    assert found["format"] == "preference"
    assert found["sample"]["rendered"] == "user: q\n\nassistant: good"


def test_a_row_with_calls_is_shown_as_it_is_trained_on(tmp_path: Path) -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.chat_template = read_llama_template()
    tokenizer.save_pretrained(tmp_path / "model")
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"day": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "a", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "Monday"},
            {"role": "assistant", "content": "b", "tool_calls": []},
        ]
    }
    found = preview_file(write(tmp_path / "a", row), "a.jsonl", tmp_path / "model")
    assert '{"name": "look", "parameters": {"day": 1}}' in found["sample"]["rendered"]
