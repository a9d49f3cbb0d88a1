"""The bench says of every goal of the GPU path whether it is met, from figures that may come from several runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench_gpu import count_verdicts, list_goals, list_rows, note_steps, render_markdown
from scripts.bench_gpu_book import exchange_book, read_book, write_book
from scripts.bench_gpu_goals import GOALS, MET, NOT_MEASURED, NOT_MET, judge_goals
from scripts.bench_gpu_plan import PLAN, WHOLE
from scripts.bench_gpu_serve import find_interval
from scripts.bench_gpu_steps import Book
from tests.rules.checkout import REPO

CARD: dict[str, Any] = {
    "name": "NVIDIA H100 80GB HBM3",
    "size": "full",
    "device": "cuda:0",
    "identity": ["H100", "full", "abc+", "2"],
}
OTHER = {**CARD, "name": "NVIDIA H200", "identity": ["H200", "full", "abc+", "2"]}
TWIN: dict[str, Any] = {
    "name": "x86_64",
    "size": "small",
    "device": "cpu",
    "identity": ["x86_64", "small", "abc+", "2"],
}
SPEED = "non-padding tokens (flash4, compiled)"
FIGURES: dict[tuple[str, str], dict[str, float]] = {
    ("probe", "copy"): {"copy's error": 0, "memory bandwidth": 3000},
    ("train", "packed = unpacked"): {"packed logits, blocks": 0.001, "packed logits, flash4": 0.004},
    ("train", "step, bf16 LoRA"): {SPEED: 30_000, "share of 800 TFLOP/s": 0.53},
    ("train", "step, bf16 LoRA, 16,384 tokens"): {SPEED: 32_000, "share of 800 TFLOP/s": 0.56},
    ("train", "step, NF4 kept"): {SPEED: 29_100},
    ("train", "step, true NF4"): {SPEED: 24_000},
    ("train", "step, least memory"): {SPEED: 20_000, "most memory": 3.7},
    ("train", "trainer, Loam"): {"non-padding tokens, packed": 24_000, "tokens, full rows": 26_000},
    ("train", "trainer, TRL defaults"): {"non-padding tokens": 10_000},
    ("train", "trainer, TRL tuned"): {"non-padding tokens (sdpa)": 20_000},
    ("train", "trainer, Unsloth"): {"non-padding tokens, packed": 25_000, "tokens, full rows": 20_000},
    ("memory", "budget of 24 GB"): {"tokens of vLLM's cache": 68_099},
    ("memory", "trainer within its share"): {"4-bit training": 20_000},
    ("memory", "encoders within their share"): {"pairs within the share": 20_000},
    ("memory", "serving, ingestion and training at once"): {"most of the card": 21},
    ("serve", "engine"): {
        "one adapter, of base": 0.97,
        "8 adapters, of base": 0.92,
        "one stream, of the memory's bandwidth": 0.81,
    },
    ("serve", "gateway"): {"of what its engine alone gives": 0.99, "half of its 95% interval, 8 pairs of rounds": 0.02},
    ("retrieval", "flat, 384"): {
        "flat, 1,000,000 × 384: recall@10": 1,
        "flat, 1,000,000 × 384: 256 queries": 120_000,
        "flat, 1,000,000 × 384: bytes read at one query": 2000,
    },
    ("retrieval", "flat, 1024"): {
        "flat, 1,000,000 × 1024: recall@10": 0.9996,
        "flat, 1,000,000 × 1024: 256 queries": 59_000,
        "flat, 1,000,000 × 1024: bytes read at one query": 2200,
    },
    ("retrieval", "lists"): {"lists, 10,000,000 × 384: recall@10": 0.99},
    ("retrieval", "graph"): {"graph, 10,000,000 × 384: recall@10": 0.99},
    ("retrieval", "filters and deletions"): {
        "searches equal to an exact scan, 90% allowed": 50,
        "searches equal to an exact scan, 0% allowed": 50,
    },
    ("retrieval", "encoders"): {
        "cross-encoder, 20 at once": 9_000,
        "cross-encoder, 128 at once": 26_000,
        "embedder, 128 at once": 27_000,
    },
    ("retrieval", "search and rerank"): {"dense search of 1,000,000 and 20 pairs reranked, p50": 11},
}
WANTED: list[tuple[float, str]] = [
    (0.004, MET),
    (32_000, MET),
    (0.56, MET),
    (29_100 / 30_000, NOT_MET),  # of the step that learns from as many tokens at once
    (24_000, MET),
    (2.4, NOT_MET),
    (1.2, MET),
    (0.96, NOT_MET),
    (1.3, MET),
    (3.7, MET),
    (20_000 / 32_000, NOT_MET),
    (68_099, MET),
    (20_000, MET),
    (20_000, MET),
    (21, MET),
    (0.92, NOT_MET),
    (0.97, MET),
    (0.81, MET),
    (1.01, MET),
    (2000 / 3000, NOT_MET),
    (120_000, MET),
    (1, MET),
    (2200 / 3000, MET),
    (59_000, NOT_MET),
    (0.9996, NOT_MET),
    (0.99, MET),
    (0.99, MET),
    (50, MET),
    (26_000, MET),
    (27_000, MET),
    (11, MET),
]
"""Of each goal, in the order of GOALS: what FIGURES come to by hand."""


def make_entry(figures: dict[str, float]) -> dict[str, Any]:
    return {
        "status": "measured",
        "figures": [{"name": name, "value": value, "unit": "", "goal": ""} for name, value in figures.items()],
    }


def make_book(machine: dict[str, Any] = CARD) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for (part, step), figures in FIGURES.items():
        parts.setdefault(part, {})[step] = make_entry(figures)
    return {"machine": machine, "parts": parts}


def judge(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["goal"]: one for one in judge_goals(content)}


def test_every_goal_is_computed_from_the_figures_and_judged() -> None:
    found = judge_goals(make_book())
    assert [(one["value"], one["verdict"]) for one in found] == [
        (pytest.approx(value), verdict) for value, verdict in WANTED
    ]
    assert len(judge(make_book())) == len(GOALS), "their names are their own"
    assert count_verdicts(make_book()) == "goals: 23 met, 8 not met, 0 not measured"


def test_a_goal_hangs_on_a_step_that_is_planned() -> None:
    planned = {(leg.part, step) for leg in PLAN for step in leg.allowances}
    assert {(goal.part, goal.step) for goal in GOALS} <= planned


def test_parts_that_were_measured_one_by_one_and_in_another_order_give_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "bench_gpu.json"
    for (part, step), figures in reversed(FIGURES.items()):
        Book(path, CARD).write(part, step, make_entry(figures))  # a process for each, as with calls that are cut off
    found, whole = read_book(path), make_book()
    assert found["goals"] == judge_goals(whole)
    assert list_goals(found) == list_goals(whole)
    assert render_markdown(found) == render_markdown(whole)
    assert {row[0] for row in list_rows(found)} == {"probe", "train", "memory", "serve", "retrieval"}


def test_what_was_not_measured_says_why_and_what_was_not_computed_right_missed_its_goal() -> None:
    content = make_book()
    train, retrieval = content["parts"]["train"], content["parts"]["retrieval"]
    train["step, NF4 kept"] = {"status": "skipped", "reason": "not installed: bitsandbytes"}
    train["trainer, TRL tuned"] = {"status": "failed", "reason": "OutOfMemoryError: CUDA out of memory"}
    train["packed = unpacked"] = {"status": "failed", "reason": "Wrong: packed logits: found 0.2"}
    del train["trainer, Unsloth"], train["step, bf16 LoRA, 16,384 tokens"]
    del content["parts"]["serve"], content["parts"]["probe"]
    content["parts"]["memory"] = {WHOLE: {"status": "failed", "reason": "its process ended with -9"}}
    retrieval["graph"] = {"status": "begun", "reason": "its process ended before it did"}
    found = judge(content)
    wanted = {
        "NF4 kept, of bf16 LoRA": (NOT_MEASURED, "train/step, NF4 kept: skipped: not installed: bitsandbytes"),
        "Loam against TRL well tuned, mixed lengths": (
            NOT_MEASURED,
            "train/trainer, TRL tuned: failed: OutOfMemoryError: CUDA out of memory",
        ),
        "packed = unpacked logits, the worst attention that ran": (
            NOT_MET,
            "train/packed = unpacked: failed: Wrong: packed logits: found 0.2",
        ),
        "Loam against Unsloth, packed": (NOT_MEASURED, "train/trainer, Unsloth: not run yet"),
        "bf16 LoRA, r16, packed 2,048": (NOT_MET, "step, bf16 LoRA; above the floor of 26,000"),
        "trainer within its share": (NOT_MEASURED, "its process ended with -9"),
        "one adapter, of base": (NOT_MEASURED, "serve/engine: not run yet"),
        "flat, 1,000,000 × 384: one query, of a copy": (NOT_MEASURED, "probe/copy: not run yet"),
        "graph (CAGRA), 10,000,000 × 384: recall@10": (
            NOT_MEASURED,
            "retrieval/graph: begun: its process ended before it did",
        ),
    }
    assert {name: (found[name]["verdict"], found[name]["why"]) for name in wanted} == wanted
    assert judge(make_book())["its speed, of the fastest bf16 LoRA"]["why"].endswith("(step, bf16 LoRA, 16,384 tokens)")


def test_a_twin_and_another_card_are_not_taken_for_the_card_of_the_goal() -> None:
    twin = judge(make_book(TWIN))
    assert {one["verdict"] for name, one in twin.items() if "vLLM's cache" not in name} == {NOT_MEASURED}
    assert twin["budget of one card of 24 GB: vLLM's cache"]["verdict"] == MET, "computed on any machine"
    other = judge(make_book(OTHER))
    speed = other["bf16 LoRA, r16, packed 2,048"]
    assert (speed["verdict"], speed["value"]) == (NOT_MEASURED, 32_000)
    assert "the goal is for one H100, this is NVIDIA H200" in speed["why"]
    assert other["8 adapters, of base"]["verdict"] == NOT_MET, "a ratio is one on any card"


@pytest.mark.parametrize(
    ("mean", "half", "verdict"), [(0.97, 0.01, NOT_MET), (0.97, 0.04, MET), (1.1, 0.02, MET), (0.9, 0.2, NOT_MEASURED)]
)
def test_a_loss_through_the_gateway_counts_where_it_can_be_told(mean: float, half: float, verdict: str) -> None:
    content = make_book()
    interval = {"of what its engine alone gives": mean, "half of its 95% interval, 8 pairs of rounds": half}
    content["parts"]["serve"]["gateway"] = make_entry(interval)
    assert judge(content)["through the gateway, of its engine alone, 95% at most"]["verdict"] == verdict


def test_the_interval_is_students() -> None:
    mean, half = find_interval([0.9, 1.1])
    assert [mean, half] == pytest.approx([1.0, 12.706 * 0.1], rel=1e-4)


def test_another_machines_book_is_put_aside_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "bench_gpu.json"
    Book(path, CARD).write("train", "step, true NF4", make_entry({SPEED: 24_000}))
    note_steps(path, "serve", {"engine": "no time"})
    Book(path, TWIN).write("train", "step, true NF4", make_entry({SPEED: 1}))
    aside = tmp_path / "bench_gpu_H100_full_abc-_2.json"
    assert json.loads(aside.read_text())["parts"]["serve"]["engine"]["reason"] == "no time"
    again = Book(path, CARD)
    assert again.content["parts"]["train"]["step, true NF4"]["figures"][0]["value"] == 24_000
    assert not aside.exists()
    assert (tmp_path / "bench_gpu_x86-64_small_abc-_2.json").is_file()


def test_a_book_that_cannot_be_read_is_kept_and_one_without_figures_is_not(tmp_path: Path) -> None:
    path = tmp_path / "bench_gpu.json"
    path.write_text('{"machine": {"identi')
    assert read_book(path) == {"machine": {}, "parts": {}}
    assert exchange_book(path, CARD["identity"]) == {}
    assert (tmp_path / "bench_gpu_unreadable.json").read_text() == '{"machine": {"identi'
    write_book(path, {"machine": {**TWIN}, "parts": {"probe": {"everything": {"status": "skipped", "reason": "x"}}}})
    assert exchange_book(path, CARD["identity"]) == {}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bench_gpu.json", "bench_gpu_unreadable.json"]


def test_the_page_names_each_goal() -> None:
    page = (REPO / "docs" / "benchmarks" / "gpu.md").read_text()
    assert f"{len(GOALS)} goals" in page
