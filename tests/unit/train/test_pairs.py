"""Pairs: exactly the answers are scored, the bare base is the reference, and training widens the margin."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import TrainingDataError
from tests.fakes.small_run import TOKENIZER, run_small
from train.config import DataConfig, TrainerConfig
from train.data import check_data
from train.encoding import Encoded, encode_chat
from train.pairs import PairCollator, as_chat, encode_pairs, pair_up
from train.template import LLAMA_3_2, SMOLLM2, TrainingTemplate
from train.tokens import IGNORED

STOP = {SMOLLM2: "<|im_end|>", LLAMA_3_2: "<|eot_id|>"}


def make_row(number: int = 0) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Told before"},
            {"role": "user", "content": f"What is {number}?"},
        ],
        "chosen": [{"role": "assistant", "content": "good" * (1 + number % 3)}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def encode(path: Path, rows: list[dict[str, Any]], max_length: int = 400) -> Encoded:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    file = check_data(path, DataConfig(), SMOLLM2)
    return encode_pairs(file, TOKENIZER, SMOLLM2, max_length=max_length, date=None, path=path.with_suffix(".arrow"))


@pytest.mark.parametrize("template", [SMOLLM2, LLAMA_3_2])
def test_the_answer_and_its_stop_token_are_scored_and_nothing_before(template: TrainingTemplate) -> None:
    for answer, wanted in [("chosen", "good"), ("rejected", "bad")]:
        example = encode_chat(as_chat(make_row(), answer), TOKENIZER, template, template.date("26 Jul 2024"))
        scored = TOKENIZER.decode([label for label in example["labels"] if label != IGNORED])
        assert scored == wanted + STOP[template]
        assert "Told before" in TOKENIZER.decode(example["input_ids"])


def test_both_answers_follow_the_same_prompt(tmp_path: Path) -> None:
    chosen, rejected = encode(tmp_path / "pairs.jsonl", [make_row()]).examples
    start = next(place for place, label in enumerate(chosen["labels"]) if label != IGNORED)
    assert chosen["input_ids"][:start] == rejected["input_ids"][:start]
    assert rejected["labels"][start] != IGNORED


def test_a_pair_with_nothing_left_to_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"line 2, chosen(?s:.*)line 2, rejected"):
        encode(
            tmp_path / "pairs.jsonl", [make_row(), {**make_row(), "prompt": [{"role": "user", "content": "x" * 500}]}]
        )


def test_a_batch_holds_the_chosen_answers_first(tmp_path: Path) -> None:
    columns = pair_up(encode(tmp_path / "pairs.jsonl", [make_row(0), make_row(1)]).examples)
    rows = [{name: values[row] for name, values in columns.items()} for row in range(2)]
    batch = PairCollator(TOKENIZER.pad_token_id)(rows)
    texts = [
        TOKENIZER.decode(ids[mask.bool()])
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    assert texts == ["good<|im_end|>", "goodgood<|im_end|>", "bad<|im_end|>", "bad<|im_end|>"]
    assert batch["attention_mask"].sum().item() == sum(len(row[key]) for row in rows for key in row if "_ids" in key)


@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")  # PEFT looks for the base by its name
def test_training_widens_the_margin_on_held_pairs(tmp_path: Path) -> None:
    options = TrainerConfig(batch_size=8, epochs=4, learning_rate=2e-2, warmup=0, save_every=4, sample_tokens=4)
    learned, held_out = (
        encode(tmp_path / f"{part}.jsonl", [make_row(row) for row in rows])
        for part, rows in (("train", range(12)), ("valid", range(20, 26)))
    )
    run = run_small(tmp_path, learned, held_out, options, beta=0.2)
    before, after = run.read("eval")
    assert before["margin"] == pytest.approx(0, abs=1e-5), "the reference is the bare base"
    assert before["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert after["margin"] > 0.1
    assert after["accuracy"] == 1.0
    assert after["margin"] == pytest.approx(after["rewards_chosen"] - after["rewards_rejected"], abs=1e-5)
    assert (run.result.eval_margin, run.result.eval_pair_accuracy) == (after["margin"], 1.0)
    first = run.read("step")[0]
    assert {"rewards_chosen", "rewards_rejected", "margin", "accuracy"} <= first.keys()
    assert list(run.model.peft_config) == ["default"], "no second adapter is trained, saved or served"
    assert (tmp_path / "checkpoints" / "checkpoint-8" / "COMPLETE.json").is_file()
    assert not (tmp_path / "checkpoints" / "checkpoint-8" / "ref").exists()
