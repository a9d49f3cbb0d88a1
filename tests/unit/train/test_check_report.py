"""The check shows figures, repeated rows and a marked sample, on a terminal and elsewhere."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.fakes.byte_tokenizer import make_byte_tokenizer
from train.check_report import (
    LENGTH_EDGES,
    Findings,
    compare_files,
    count_lengths,
    describe_counts,
    draw_histogram,
    draw_sample,
    show_check,
    show_span,
    split_learned,
)
from train.config import DataConfig
from train.data import DataFile, check_data
from train.encoding import encode_chat, encode_chats, summarize_all
from train.template import SMOLLM2

TOKENIZER = make_byte_tokenizer()
LONG = "the parcel that you sent to our office in the old town has come back without its second label "


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_file(path: Path, *rows: dict[str, Any]) -> DataFile:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return check_data(path, DataConfig(), SMOLLM2)


def write_both(folder: Path) -> tuple[DataFile, DataFile]:
    train = write_file(
        folder / "train.jsonl", chat("Hi", "Hello"), chat(LONG + "today", "ok"), chat("Hi", "Hello"), chat("Hi", "Yes?")
    )
    valid = write_file(
        folder / "valid.jsonl", chat("Bye", "Good bye"), chat(LONG + "tonight", "ok"), chat("Hi", "Hello")
    )
    return train, valid


def test_rows_that_say_the_same_are_named_by_their_lines(tmp_path: Path) -> None:
    findings = compare_files(*write_both(tmp_path))
    assert findings.describe() == [
        "1 training rows that repeat an earlier row exactly (lines 3 = 1)",
        "1 training rows that ask what an earlier row asks and answer otherwise (lines 4 / 1)",
        "1 held-out rows that are training rows too: the evaluation flatters (lines 3 = 1)",
        "1 held-out rows that are nearly training rows: the evaluation may flatter (lines 2 ~ 2)",
    ]


def test_only_the_first_pairs_are_named(tmp_path: Path) -> None:
    file = write_file(tmp_path / "train.jsonl", *[chat("Hi", "Hello")] * 9)
    (line,) = compare_files(file, None).describe()
    assert line.endswith("exactly (lines 2 = 1, 3 = 1, 4 = 1, 5 = 1, 6 = 1 and 3 more)")
    assert line.startswith("8 training rows")


def test_preference_pairs_have_no_other_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "chosen": "Hello", "rejected": no} for no in ("No", "Go", "No")]
    findings = compare_files(write_file(tmp_path / "pairs.jsonl", *rows), None)
    assert findings.other_answers == []
    assert [pair.line for pair in findings.repeats] == [3]


def test_the_manifest_and_the_report_get_the_counts(tmp_path: Path) -> None:
    train, valid = write_both(tmp_path)
    encoded = [
        encode_chats(file, TOKENIZER, SMOLLM2, max_length=999, date=None, path=file.path.with_suffix(".arrow"))
        for file in (train, valid)
    ]
    summary = compare_files(train, valid).add_counts(summarize_all(train, encoded[0], valid, encoded[1]))
    assert [summary["train"][key] for key in ("repeats", "near_repeats", "other_answers")] == [1, 0, 1]
    assert [summary["valid"][key] for key in ("overlap", "near_overlap")] == [1, 1]
    assert describe_counts(summary["train"]) == "1 repeat an earlier one, 1 answer an earlier question otherwise"
    assert describe_counts({"rows": 3}) == ""


def test_without_held_out_rows_there_is_no_overlap(tmp_path: Path) -> None:
    train, _ = write_both(tmp_path)
    encoded = encode_chats(train, TOKENIZER, SMOLLM2, max_length=999, date=None, path=tmp_path / "a.arrow")
    summary = Findings().add_counts(summarize_all(train, encoded, None, None))
    assert summary["valid"] is None


@given(st.lists(st.integers(1, 2**22), min_size=1))
def test_every_row_is_in_one_bin(lengths: list[int]) -> None:
    bins = count_lengths(np.array(lengths))
    assert sum(rows for _, _, rows in bins) == len(lengths)
    assert bins[0][2] > 0
    assert bins[-1][2] > 0
    for low, high, rows in bins:
        assert low in LENGTH_EDGES
        assert rows == sum(low <= length <= high for length in lengths)


def test_the_longest_bar_is_the_most_frequent_length_and_no_bar_is_lost() -> None:
    lines = draw_histogram(np.array([20] * 500 + [40]))
    assert [line.count("█") for line in lines] == [40, 0, 1]
    assert [line.split()[-1] for line in lines] == ["500", "0", "1"]
    assert draw_histogram(np.array([], np.int64)) == []


def test_the_sample_marks_what_is_learned() -> None:
    messages = [*chat("Hi", "Hello")["messages"], *chat("Bye", "Good bye")["messages"]]
    messages[1]["weight"] = 0
    example = encode_chat({"messages": messages}, TOKENIZER, SMOLLM2, None)
    plain = draw_sample(example, TOKENIZER, is_terminal=False).plain
    assert plain.endswith(
        "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Good bye<|im_end|>⟧\n"
    )
    coloured = draw_sample(example, TOKENIZER, is_terminal=True)
    assert [coloured.plain[span.start : span.end] for span in coloured.spans if "green" in str(span.style)] == [
        "Good bye<|im_end|>"
    ]
    assert "⟦" not in coloured.plain
    assert [token for ids, _ in split_learned(example) for token in ids] == example["input_ids"]


def test_a_sample_cannot_steer_the_terminal() -> None:
    assert show_span("a\x1b[31mb\n\u202e") == "a\\u001b[31mb\n\\u202e"
    assert show_span("x" * 5000) == f"{'x' * 300} […] {'x' * 300}"


def show(*files: DataFile, is_terminal: bool = False) -> str:
    parts = [
        (file, encode_chats(file, TOKENIZER, SMOLLM2, max_length=120, date=None, path=file.path.with_suffix(".arrow")))
        for file in files
    ]
    out = io.StringIO()
    console = Console(file=out, width=120, highlight=False, force_terminal=is_terminal)
    show_check(console, parts, compare_files(files[0], files[1] if len(files) > 1 else None), TOKENIZER)
    return out.getvalue()


def test_the_whole_check_is_shown(tmp_path: Path) -> None:
    train = write_file(tmp_path / "train.jsonl", chat("[red]Hi", "Hello"), chat("Hi", "Hello" * 30))
    valid = write_file(tmp_path / "valid.jsonl", chat("Bye", "Good bye"))
    shown = show(train, valid)
    assert "chat (detected)" in shown
    assert "1 (lines 2)" in shown
    assert "Rows that say the same\n  none" in shown
    assert "[red]Hi<|im_end|>" in shown
    assert "⟦Hello<|im_end|>⟧" in shown
    assert "\x1b" not in shown
    assert "\x1b[1;32mHello<|im_end|>" in show(train, valid, is_terminal=True)
