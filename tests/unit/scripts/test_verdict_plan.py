"""Which arms are possible follows from what is given; every fault is named before anything starts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from core.errors import ConfigError, LoamError, NotFound
from core.layout import DataDir
from scripts.verdict_plan import VerdictConfig, list_serve_options, make_plan, read_corpus, read_trainings


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    """A data directory with two bases and a run of each."""
    data = DataDir(tmp_path / "data")
    for base, run in (("small", "mine"), ("small", "again"), ("large", "other")):
        (data.model(base)).mkdir(parents=True, exist_ok=True)
        (data.model(base) / "config.json").write_text("{}")
        (data.run(run) / "adapter").mkdir(parents=True)
        (data.run(run) / "config.yaml").write_text(f"model:\n  name: {base}\n")
        manifest = {"data": {"train": {"rows": 290}}}
        (data.run(run) / "adapter" / "manifest.json").write_text(json.dumps(manifest))
        events = [{"type": "done", "time": 1, "tokens": 5000, "seconds": 60.5}]
        (data.run(run) / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "long.txt").write_text('Answer\nlike "this".\n')
    return data


def make_config(data: DataDir, **values: Any) -> VerdictConfig:
    config = VerdictConfig(questions="some/questions.jsonl", **values)
    config.paths.data_dir = str(data.root)
    return config


def read_options(options: list[str]) -> dict[str, Any]:
    """Return what serve/run.py reads, by key."""
    overrides = OverridesParser.create().parse_overrides(options)
    return {override.key_or_group: override.value() for override in overrides}


def test_everything_given_makes_every_arm(data: DataDir, tmp_path: Path) -> None:
    long = str(tmp_path / "long.txt")
    config = make_config(data, store="docs", run="mine", raft_run="again", long_instructions=long, nearest_pattern=".+")
    plan = make_plan(config, data)
    assert [arm.name for arm in plan.arms] == ["base", "base-long", "rag", "fine-tuned", "hybrid", "raft-hybrid"]
    assert (plan.name, plan.base, plan.left_out, plan.nearest) == ("questions", "small", {}, ".+")
    assert plan.arms[1].instructions == 'Answer\nlike "this".'
    assert plan.runs == {"fine-tuned": "mine", "hybrid": "mine", "raft-hybrid": "again"}
    options = list_serve_options(config, plan, None)
    told = read_options(options)
    assert told["adapters"] == ["mine", "again"]
    assert told["assistants.verdict_hybrid"] == {"model": "mine", "stores": ["docs"], "k": 3}
    assert told["assistants.verdict_raft"] == {"model": "again", "stores": ["docs"], "k": 3}
    assert len(options) == 3 + 3


def test_what_is_not_given_is_left_out_with_its_reason(data: DataDir) -> None:
    plan = make_plan(make_config(data, run="mine"), data)
    assert [arm.name for arm in plan.arms] == ["base", "fine-tuned"]
    assert plan.left_out["rag"] == "store names none"
    assert plan.left_out["hybrid"] == "it needs run and store"
    assert not plan.searches
    assert [arm.name for arm in make_plan(make_config(data, store="docs", base="small"), data).arms] == ["base", "rag"]


def test_an_update_asks_the_new_store_and_the_new_run(data: DataDir) -> None:
    config = make_config(data, store="docs", run="mine", updated_run="again", changes="c.jsonl", documents="d")
    plan = make_plan(config, data)
    after = {arm.name: arm.model for arm in plan.arms_after(config)}
    assert after == {"base": "small", "rag": "verdict_rag_updated", "fine-tuned": "again",
                     "hybrid": "verdict_hybrid_updated"}  # fmt: skip
    options = list_serve_options(config, plan, "docs-updated")
    updated = {"model": "again", "stores": ["docs-updated"], "k": 3}
    assert read_options(options)["assistants.verdict_hybrid_updated"] == updated
    assert plan.describe_update("fine-tuned", 10, 2.0, 60.5) == ("trained again", 60.5)
    assert plan.describe_update("hybrid", 10, 2.0, 60.5)[1] == 62.5
    assert plan.describe_update("rag", 10, 2.0) == ("10 changed documents ingested again", 2.0)
    kept = make_plan(make_config(data, store="docs", run="mine", changes="c", documents="d"), data)
    assert kept.describe_update("fine-tuned", 10, 2.0)[0] == "not trained again"
    assert kept.describe_update("hybrid", 10, 2.0)[0].endswith("ingested again, not trained again")
    assert kept.describe_update("base", 10, 2.0) == ("nothing to do", None)


def test_a_served_system_names_its_own_arms(data: DataDir) -> None:
    config = make_config(data, url="http://127.0.0.1:1", arms={"base": "llama", "rag": "helper"}, name="x")
    plan = make_plan(config, data)
    assert [(arm.name, arm.model) for arm in plan.arms] == [("base", "llama"), ("rag", "helper")]
    assert read_trainings(plan, data) == {}


def test_the_cost_of_training_comes_from_the_run(data: DataDir) -> None:
    trainings = read_trainings(make_plan(make_config(data, run="mine"), data), data)
    assert (trainings["fine-tuned"].tokens, trainings["fine-tuned"].seconds) == (5000, 60.5)
    assert trainings["fine-tuned"].examples == 290


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({}, ConfigError, "base model's name, or a run"),
        ({"run": "absent"}, NotFound, "run: wanted a finished run"),
        ({"run": "mine", "raft_run": "other"}, ConfigError, r"wanted runs of small, found other \(large\)"),
        ({"base": "none"}, NotFound, "wanted a model in"),
        ({"run": "mine", "long_instructions": "/absent.txt"}, NotFound, "long_instructions: wanted a text file"),
        ({"run": "mine", "store": "s", "nearest_pattern": "("}, ConfigError, "wanted a regular expression"),
        ({"run": "mine", "name": "../x"}, ConfigError, "name: wanted"),
    ],
)
def test_a_plan_that_cannot_be_made_is_refused(
    data: DataDir, values: dict[str, Any], kind: type[LoamError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        make_plan(make_config(data, **values), data)


def test_settings_that_contradict_are_named_together() -> None:
    with pytest.raises(ConfigError) as fault:
        VerdictConfig(questions="q", url="http://x", changes="c", k=0, limit=0, arms={"ragg": "x"}, nearest_pattern="x")
    for words in ("k: wanted", "limit: wanted", "found ragg", "changes: wanted without url", "nearest_pattern: wanted"):
        assert words in fault.value.message


def test_a_store_that_is_gone_since_leaves_its_size_unknown(data: DataDir) -> None:
    config = make_config(data, store="docs", run="mine")
    assert read_corpus(config, data, make_plan(config, data), [], None) is None
