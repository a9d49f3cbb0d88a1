"""The configuration refuses what is out of range, names every fault, and composes with every choice of every group."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from core.config import CONF_DIR, Device, load_config
from core.errors import ConfigError
from train.config import (
    PROJECT_DIR,
    HardwareConfig,
    LoraConfig,
    MethodConfig,
    MethodKind,
    QuantKind,
    Schedule,
    TrainConfig,
    TrainerConfig,
    fill_micro_batch,
    micro_batch_of,
    resolve_path,
)

GROUPS = ("model", "quant", "lora", "data", "trainer", "hardware", "experiment")


def compose_train(*overrides: str) -> TrainConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return load_config(compose("train", overrides=list(overrides)), TrainConfig)


def list_choices() -> list[str]:
    return [f"{group}={path.stem}" for group in GROUPS for path in sorted((CONF_DIR / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", list_choices())
def test_every_choice_composes(choice: str) -> None:
    assert compose_train(choice).paths.data_dir


def test_there_are_choices_in_every_group() -> None:
    assert {choice.partition("=")[0] for choice in list_choices()} == set(GROUPS)


def test_a_bare_run_means_llama_on_this_machine() -> None:
    config = compose_train()
    assert (config.model.name, config.hardware.device) == ("llama-3.2-3b-instruct", Device.auto)
    assert (config.quant.kind, config.quant.double, config.lora.rank) == (QuantKind.nf4, True, 16)


def test_the_demo_is_small_and_named() -> None:
    config = compose_train("experiment=acme_cpu", "trainer.schedule=linear")
    assert (config.run_id, config.model.name, config.hardware.device) == ("acme", "smollm2-135m-instruct", Device.cpu)
    assert config.trainer.schedule is Schedule.linear


def test_defaults_in_yaml_and_dataclasses_agree() -> None:
    """A value has one home only if both say the same."""
    assert compose_train() == TrainConfig()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"epochs": 0.0}, "trainer.epochs"),
        ({"max_steps": 0}, "trainer.max_steps"),
        ({"batch_size": 0}, "trainer.batch_size"),
        ({"learning_rate": 2.0}, "trainer.learning_rate"),
        ({"warmup": -0.1}, "trainer.warmup"),
        ({"max_length": 2}, "trainer.max_length"),
        ({"seed": -1}, "trainer.seed"),
        ({"save_every": 0}, "trainer.save_every"),
        ({"options": {"output_dir": "elsewhere"}}, "trainer.options.output_dir"),
    ],
)
def test_the_trainer_refuses_numbers_out_of_range(values: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        TrainerConfig(**values)


def test_all_faults_of_a_group_come_together() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.epochs.*trainer\.seed"):
        TrainerConfig(epochs=-1, seed=-1)


@pytest.mark.parametrize(
    "values",
    [{"rank": 12}, {"alpha": 0}, {"dropout": 1.5}, {"targets": []}, {"targets": ["q_proj", "lm_head"]}],
)
def test_lora_refuses_what_could_not_be_served(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"lora\."):
        LoraConfig(**values)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.epoch: no such configuration key\. Did you mean epochs"):
        compose_train("+trainer.epoch=3")


def test_resuming_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="run_id=NAME"):
        TrainConfig(resume=compose_train("resume=auto", "run_id=x").resume)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "rows"),
    [(16, None, 1, 4), (6, None, 1, 3), (7, 4, 1, 1), (8, 64, 1, 8), (16, 8, 4, 4)],
)
def test_the_micro_batch_divides_the_batch(batch: int, micro: int | None, processes: int, rows: int) -> None:
    hardware = HardwareConfig(processes=processes)
    assert (
        micro_batch_of(TrainConfig(trainer=TrainerConfig(batch_size=batch, micro_batch=micro), hardware=hardware))
        == rows
    )


def test_paths_are_looked_up_here_and_then_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = "examples/acme/chats_train.jsonl"
    assert resolve_path(shipped) == PROJECT_DIR / shipped
    (tmp_path / "examples" / "acme").mkdir(parents=True)
    (tmp_path / shipped).touch()
    assert resolve_path(shipped) == Path(shipped)
    assert resolve_path("nowhere.jsonl") == Path("nowhere.jsonl")


def test_pairs_are_not_packed() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.packing: pairs cannot be packed"):
        TrainConfig(method=MethodConfig(MethodKind.dpo, beta=0.1), trainer=TrainerConfig(packing=True))


@pytest.mark.parametrize(
    ("micro_tokens", "longest", "batch", "rows"),
    [(8192, 2048, 16, 4), (8192, 100, 16, 16), (8192, 9000, 16, 1), (8192, 1700, 16, 4), (None, 2048, 16, 4)],
)
def test_rows_at_once_can_be_counted_in_tokens(micro_tokens: int | None, longest: int, batch: int, rows: int) -> None:
    config = TrainConfig(
        trainer=TrainerConfig(batch_size=batch), hardware=HardwareConfig(micro_batch=4, micro_tokens=micro_tokens)
    )
    fill_micro_batch(config, longest)
    assert micro_batch_of(config) == rows


def test_rows_that_are_asked_for_are_not_counted_in_tokens() -> None:
    config = TrainConfig(trainer=TrainerConfig(micro_batch=2), hardware=HardwareConfig(micro_tokens=10**6))
    fill_micro_batch(config, 10)
    assert micro_batch_of(config) == 2
