"""From a job to a command line: the profile's values for auto, and metadata's options."""

import re
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from core.layout import DataDir
from serve.engine_command import EngineConfig
from serve.job_command import (
    GpuUse,
    JobsConfig,
    Profile,
    build_arguments,
    build_command,
    decide_gpu,
    hide_paths,
    read_options,
    read_profile,
    settle_hyperparameters,
)
from serve.jobs import Job
from train.config import TrainerConfig

PROFILE = Profile(epochs=3, batch_size=16, learning_rate=2e-4, beta=0.1, rank=16)


def make_job(**values: Any) -> Job:
    known: dict[str, Any] = {
        "id": "ftjob-1", "owner": "local", "model": "base", "suffix": None, "seed": 3, "training_file": "file-a",
        "validation_file": None, "method": "supervised", "options": {}, "metadata": None,
        "hyperparameters": {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0},
    }  # fmt: skip
    return Job(**{**known, **values})


def test_auto_is_what_conf_says() -> None:
    assert read_profile(JobsConfig(), "supervised") == PROFILE
    assert read_profile(JobsConfig(), "dpo") == Profile(1, 16, 2e-5, 0.1, 16)


def test_the_operators_overrides_count() -> None:
    config = JobsConfig(overrides=["trainer.learning_rate=1e-3", "quant=none", "method.beta=0.5", "lora.rank=8"])
    assert read_profile(config, "dpo") == Profile(1, 16, 1e-3, 0.5, 8)


@pytest.mark.parametrize(
    "override",
    ["run_id=x", "output=json", "data.train=x", "experiment=acme_cpu", "-m", "nonsense", "hydra.run.dir=x", "+model=x"],
)
def test_what_a_job_sets_itself_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.overrides"):
        JobsConfig(overrides=[override])


def test_asked_values_come_before_the_profiles() -> None:
    asked = {"n_epochs": 5, "batch_size": "auto", "beta": 0.3}
    wanted = {"n_epochs": 5, "batch_size": 16, "learning_rate_multiplier": 1.0}
    assert settle_hyperparameters(asked, PROFILE, "supervised") == wanted
    assert settle_hyperparameters(asked, PROFILE, "dpo") == {**wanted, "beta": 0.3}
    broken = Profile(1.5, 16, 2e-4, 0.1, 16)
    assert settle_hyperparameters({}, broken, "supervised")["n_epochs"] == "auto"


@pytest.mark.parametrize(("multiplier", "rate"), [(1e-300, 2e-4), (4e-5, 2e-4), (1000, 2e-3)])
def test_a_learning_rate_that_the_trainer_would_not_take_is_refused(multiplier: float, rate: float) -> None:
    profile = Profile(3, 16, rate, 0.1, 16)
    with pytest.raises(
        ConfigError, match=f"found {re.escape(f'{multiplier:g}')} times the profile's {rate:g}"
    ) as refused:
        settle_hyperparameters({"learning_rate_multiplier": multiplier}, profile, "supervised")
    assert refused.value.param == "learning_rate_multiplier"
    with pytest.raises(ConfigError, match=r"trainer\.learning_rate"):
        TrainerConfig(learning_rate=rate * multiplier)


@pytest.mark.parametrize("multiplier", [1e-3, 1, 1000])
def test_any_other_learning_rate_is_one_that_the_trainer_takes(multiplier: float) -> None:
    settled = settle_hyperparameters({"learning_rate_multiplier": multiplier}, PROFILE, "supervised")
    rate = PROFILE.learning_rate * settled["learning_rate_multiplier"]
    assert TrainerConfig(learning_rate=rate).learning_rate == rate


def test_options_ride_in_metadata() -> None:
    metadata = {"lora_rank": "8", "lora_alpha": "16", "lora_dropout": "0.1", "max_steps": "4", "team": "blue"}
    assert read_options(metadata, 16) == {"lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.1, "max_steps": 4}
    assert read_options(None, 16) == {}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"lora_rank": "32"}, "1, 8, 16"), ({"lora_rank": "7"}, "1, 8, 16"), ({"lora_rank": "eight"}, "'eight'"),
        ({"lora_dropout": "nan"}, "0 to 0.9"), ({"lora_rnk": "8"}, "no such option"), ({"max_steps": "0"}, "at|1 to"),
    ],
)  # fmt: skip
def test_bad_options_are_named(metadata: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        read_options(metadata, 16)
    assert refused.value.param == f"metadata.{next(iter(metadata))}"


def test_the_command_is_what_a_person_would_type(tmp_path: Path) -> None:
    job = make_job(
        validation_file="file-b", options={"lora_rank": 8, "max_length": 1_048_576},
        hyperparameters={"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5},
    )  # fmt: skip
    data = DataDir(tmp_path)
    arguments, steps = build_arguments(job, JobsConfig(overrides=["quant=none"]), PROFILE, data, "cpu", rows=10)
    assert steps == 6
    assert {"hardware=cpu", "quant=none", "model.name='base'", "trainer.epochs=2", "trainer.batch_size=4"} <= set(
        arguments
    )
    assert {"trainer.learning_rate=0.0001", "trainer.save_every=3", "trainer.eval_every=3", "run_id=ftjob-1"} <= set(
        arguments
    )
    assert {"resume=auto", "lora.rank=8", "trainer.max_length=1048576"} <= set(arguments)
    command = build_command(make_job(arguments=arguments), data, ("python", "train/run.py"))
    assert command[:2] == ["python", "train/run.py"]
    assert command[-1] == f"paths.data_dir='{tmp_path}'"
    own, _ = build_arguments(job, JobsConfig(overrides=["hardware=h100"]), PROFILE, data, "cpu", rows=10)
    assert [one for one in own if one.startswith("hardware=")] == ["hardware=h100"]
    assert not [one for one in own if one.startswith("trainer.samples")]


def test_what_a_trainer_says_names_no_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for root in (tmp_path / "data", tmp_path / "link"):
        assert hide_paths(f"{root}/files/file-a: line 3", root) == "file-a: line 3"
    resolved = tmp_path / "data"
    assert hide_paths(f"{resolved}/models/x: gone", tmp_path / "link") == "models/x: gone"


def test_pairs_are_trained_with_their_beta(tmp_path: Path) -> None:
    hyperparameters = {"n_epochs": 1, "batch_size": 4, "learning_rate_multiplier": 1.0, "beta": 0.2}
    job = make_job(method="dpo", hyperparameters=hyperparameters, options={"max_steps": 2})
    arguments, steps = build_arguments(job, JobsConfig(), PROFILE, DataDir(tmp_path), "cpu", rows=100)
    assert steps == 2
    assert {"method=dpo", "method.beta=0.2", "trainer.max_steps=2"} <= set(arguments)


def test_who_has_the_card() -> None:
    cpu, card = EngineConfig(device="cpu"), EngineConfig(device="cuda")
    roomy = EngineConfig(device="cuda", trainer_gib=8)
    assert decide_gpu(JobsConfig(), cpu).gpu is GpuUse.share
    assert decide_gpu(JobsConfig(), card).gpu is GpuUse.stop
    assert decide_gpu(JobsConfig(), roomy).gpu is GpuUse.share
    own = JobsConfig(GpuUse.dedicated, cards="1")
    assert decide_gpu(own, card) == own
    with pytest.raises(ConfigError, match=r"engine\.trainer_gib"):
        decide_gpu(JobsConfig(GpuUse.share), card)


@pytest.mark.parametrize(
    ("use", "cards"), [(GpuUse.dedicated, None), (GpuUse.stop, "1"), (GpuUse.dedicated, "one"), (GpuUse.dedicated, "")]
)
def test_cards_are_for_dedicated_use(use: GpuUse, cards: str | None) -> None:
    with pytest.raises(ConfigError, match=r"jobs\.cards"):
        JobsConfig(use, cards)
