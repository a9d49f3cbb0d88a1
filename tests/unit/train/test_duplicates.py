"""Rows that say the same are found, exactly and nearly, in one file and across two; unrelated rows are not."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train import duplicates
from train.duplicates import (
    NEAR,
    Pair,
    Printer,
    Prints,
    find_near_repeats,
    find_other_answers,
    find_overlap,
    find_repeats,
    hash_words,
)

LETTERS = st.characters(codec="utf-8") | st.sampled_from("ab 1.\n\xe9\xdf\xab\u4f60\u597d\u2014\u0645\U0001f600\x1e")


def chat(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    head = [{"role": "system", "content": system}] if system else []
    return {
        "messages": [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}],
    }


def print_rows(*rows: dict[str, Any], common_of: Printer | None = None) -> Prints:
    printer = Printer(common_of.common if common_of else None)
    for line, row in enumerate(rows, start=1):
        printer.add(line, row)
    return printer.finish()


def draw_words(rng: random.Random, count: int) -> list[str]:
    """Words of an invented language, common and rare ones as in a real one."""
    return [f"w{int(rng.paretovariate(0.2)) % 5000}" for _ in range(count)]


def split_words(text: str) -> list[str]:
    """Split a text letter by letter, as the module's docstrings say it."""
    words, is_open = [], False
    for letter in text:
        code = ord(letter)
        if code >= 0x800 and not 0x2000 <= code < 0x3000:
            words.append(letter)
            is_open = False
        elif (code < 0x80 and letter.isalnum()) or 0xC0 <= code < 0x800:
            words[-1:] = [words[-1] + letter] if is_open else [*words[-1:], letter]
            is_open = True
        else:
            is_open = False
    return words


@given(st.lists(st.text(LETTERS, max_size=30), min_size=1, max_size=4))
def test_words_and_pairs_are_found_and_told_apart(texts: list[str]) -> None:
    owners, hashes = hash_words([text.encode() for text in texts])
    known: dict[int, Any] = {}
    for row, text in enumerate(texts):
        words = split_words(text)
        mine = hashes[owners == row].tolist()
        wanted: list[Any] = [*words, *pairwise(words)]
        assert len(mine) == len(wanted)
        for value, word in zip(mine, wanted, strict=True):
            assert known.setdefault(value, word) == word
    assert len(set(known.values())) == len(known)


@pytest.mark.parametrize("seed", range(3))
def test_one_changed_word_is_found_and_unrelated_rows_are_not(seed: int) -> None:
    rng = random.Random(seed)
    rows = [draw_words(rng, rng.randrange(24, 60)) for _ in range(2000)]
    changed = []
    for words in rows[:500]:
        copy = list(words)
        copy[rng.randrange(len(copy))] = "other"
        changed.append(copy)
    everything = [chat(" ".join(words[:-2]), " ".join(words[-2:])) for words in rows + changed]
    found = find_near_repeats(print_rows(*everything))
    wanted = {(2001 + index, 1 + index) for index in range(500)}
    assert {(pair.line, pair.like) for pair in found} - wanted == set()
    assert len(found) >= 0.99 * len(wanted)


def test_the_similarity_is_about_the_share_of_common_words_and_pairs() -> None:
    rng = random.Random(5)
    rows, exact = [], []
    for _ in range(400):
        words = draw_words(rng, rng.randrange(8, 60))
        copy = [word if rng.random() > 0.06 else f"new{rng.randrange(99)}" for word in words]
        sets = [{*part, *pairwise(part)} for part in (words, copy)]
        exact.append(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
        rows += [chat(" ".join(words), " "), chat(" ".join(copy), " ")]
    prints = print_rows(*rows)
    agree = (prints.values[0::2] == prints.values[1::2]).mean(axis=1)
    assert np.abs(agree - exact).mean() < 0.05
    assert np.abs(agree - exact).max() < 0.25


def test_case_and_punctuation_do_not_matter() -> None:
    prints = print_rows(chat("How do I pay?", "By card."), chat("how do I pay", "by card"))
    assert find_repeats(prints) == []
    assert find_near_repeats(prints) == [Pair(2, 1, 1.0)]


def test_exact_repeats_are_named_with_the_first_of_their_kind() -> None:
    rows = [chat("a", "b"), chat("c", "d"), chat("a", "b"), chat("a", "b", system="Be brief."), chat("a", "b")]
    rows[2]["messages"][0] = dict(reversed(rows[2]["messages"][0].items()))
    prints = print_rows(*rows)
    assert find_repeats(prints) == [Pair(3, 1, 1.0), Pair(5, 1, 1.0)]
    assert find_near_repeats(prints) == [Pair(4, 1, 1.0)]


def test_a_long_system_message_makes_no_rows_alike() -> None:
    rules = "Answer in the house style and name the page of the handbook that the answer stands on. " * 5
    prints = print_rows(chat("Where is the key?", "In the box.", rules), chat("When is lunch?", "At noon.", rules))
    assert find_near_repeats(prints) == []


def test_a_template_in_every_question_makes_no_rows_alike() -> None:
    rng = random.Random(3)
    template = "Name the intent of this question in one word out of the list that follows and give no reason: "
    rows = [chat(template + " ".join(draw_words(rng, 6)), f"w{rng.randrange(5000)}") for _ in range(200)]
    copy = chat(rows[7]["messages"][0]["content"] + "!", rows[7]["messages"][1]["content"])
    assert find_near_repeats(print_rows(*rows, copy)) == [Pair(201, 8, 1.0)]


def test_the_same_question_with_another_answer_is_found() -> None:
    rows = [chat("Is it open?", "Yes."), chat("Is it open?", "No."), chat("Is it open?", "Yes.")]
    assert find_other_answers(print_rows(*rows)) == [Pair(2, 1, 1.0)]


def test_tool_calls_count() -> None:
    def call(town: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": f'{{"town": "{town}"}}'}
        calls = [{"id": "1", "type": "function", "function": function}]
        return {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
            ]
        }

    prints = print_rows(call("Ulm"), call("Graz"), call("Ulm"))
    assert find_repeats(prints) == [Pair(3, 1, 1.0)]


def test_preference_pairs_are_compared_whole() -> None:
    def pair(chosen: str, rejected: str) -> dict[str, Any]:
        texts = {"prompt": "What is the capital?", "chosen": chosen, "rejected": rejected}
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        return {key: [{"role": roles[key], "content": text}] for key, text in texts.items()}

    prints = print_rows(pair("Rome", "Milan"), pair("Milan", "Rome"), pair("Rome", "Milan"))
    assert find_repeats(prints) == [Pair(3, 1, 1.0)]


def test_overlap_of_train_and_valid_is_found() -> None:
    rng = random.Random(11)
    texts = [draw_words(rng, 30) for _ in range(300)]
    rows = [chat(" ".join(words), "yes indeed") for words in texts]
    near = [chat(" ".join(["other", *texts[line][1:]]), "yes indeed") for line in (5, 50)]
    fresh = [chat(" ".join(draw_words(rng, 30)), "yes indeed") for _ in range(50)]
    same, close = find_overlap(print_rows(*rows), print_rows(rows[9], *fresh, *near))
    assert same == [Pair(1, 10, 1.0)]
    assert [(pair.line, pair.like) for pair in close] == [(52, 6), (53, 51)]
    assert all(NEAR <= pair.similarity < 1 for pair in close)


def test_the_same_file_gives_the_same_prints_however_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    rows = [chat(" ".join(draw_words(rng, 20)), "yes") for _ in range(40)]
    whole = print_rows(*rows)
    monkeypatch.setattr(duplicates, "CHUNK_BYTES", 300)
    assert np.array_equal(print_rows(*rows).bands, whole.bands)
    assert np.array_equal(print_rows(*rows).values, whole.values)


def test_rows_without_words_are_like_none() -> None:
    prints = print_rows(chat("?", "!"), chat("…", "!!"))
    assert not prints.has_words.any()
    assert find_near_repeats(prints) == []
    assert find_overlap(prints, prints)[1] == []


def test_an_empty_file_has_no_pairs() -> None:
    prints = print_rows()
    assert find_repeats(prints) == find_near_repeats(prints) == find_other_answers(prints) == []
    assert find_overlap(prints, print_rows(chat("a", "b"))) == ([], [])


def test_rows_beyond_the_limit_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_COMPARED_ROWS", 2)
    prints = print_rows(*(chat("How do I pay?", answer) for answer in ("By card", "By card!", "By card.", "By card")))
    assert find_near_repeats(prints) == [Pair(2, 1, 1.0)]
    assert find_repeats(prints) == [Pair(4, 1, 1.0)]
    assert [pair.line for pair in find_overlap(prints, prints)[0]] == [1, 2, 3, 4]
