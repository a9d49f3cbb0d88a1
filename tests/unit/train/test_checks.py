"""Whatever stands against a run is said at once, before anything heavy is imported."""

import json
from pathlib import Path

import pytest

from core.config import PathsConfig
from core.errors import ConfigError, Conflict, InputError, ModelNotFound
from core.events import EventWriter
from core.layout import write_json
from tests.fakes.byte_tokenizer import read_smollm2_template
from train.checks import check_run, to_plain
from train.config import (
    DataConfig,
    HardwareConfig,
    ModelConfig,
    QuantConfig,
    QuantKind,
    Resume,
    TrainConfig,
    TrainerConfig,
)
from train.folder import claim_folder
from train.template import SMOLLM2

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    model = tmp_path / "models" / "small"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "chat_template.jinja").write_text(read_smollm2_template())
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    return TrainConfig(
        paths=PathsConfig(str(tmp_path)),
        model=ModelConfig("small"),
        data=DataConfig(train=str(tmp_path / "chats.jsonl")),
        run_id="mine",
    )


def publish(folder: Path) -> None:
    write_json(folder / "adapter" / "manifest.json", {})


def finish(folder: Path) -> None:
    publish(folder)
    with EventWriter(folder / "events.jsonl") as events:
        events.write("done", steps=1)


def test_a_good_run_passes(config: TrainConfig, tmp_path: Path) -> None:
    checked = check_run(config)
    assert (checked.run_id, checked.folder) == ("mine", tmp_path / "runs" / "mine")
    assert (checked.template, checked.train.rows, checked.valid) == (SMOLLM2, 1, None)
    assert not checked.folder.exists()


def test_a_run_without_a_name_gets_a_new_one(config: TrainConfig) -> None:
    config.run_id = None
    first, second = check_run(config), check_run(config)
    assert first.run_id != second.run_id


def test_a_missing_model_says_how_to_import_it(config: TrainConfig) -> None:
    config.model.name = "llama-3.2-3b-instruct"
    command = r"scripts/models\.py import PATH --name llama-3\.2-3b-instruct.*models\.py get llama-3\.2-3b-instruct"
    with pytest.raises(ModelNotFound, match=command):
        check_run(config)


def test_a_model_with_a_strange_template_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "models" / "small" / "chat_template.jinja").write_text("strange")
    with pytest.raises(InputError, match="train/templates/"):
        check_run(config)


def test_everything_wrong_is_said_at_once(config: TrainConfig, tmp_path: Path) -> None:
    config.model.name = "nowhere"
    (tmp_path / "chats.jsonl").write_text("{}\n")
    config.data.valid = str(tmp_path / "no.jsonl")
    config.trainer, config.hardware = TrainerConfig(batch_size=3), HardwareConfig(processes=2)
    finish(tmp_path / "runs" / "mine")
    with pytest.raises(
        ModelNotFound, match=r"5 things(?s:.*)nowhere(?s:.*)line 1(?s:.*)no\.jsonl(?s:.*)finished(?s:.*)multiple"
    ):
        check_run(config)


def test_data_must_be_given(config: TrainConfig) -> None:
    config.data.train = None
    with pytest.raises(ConfigError, match=r"data\.train=chats\.jsonl"):
        check_run(config)


def test_stopping_early_wants_held_out_rows(config: TrainConfig) -> None:
    config.trainer = TrainerConfig(early_stopping=3, eval_every=10)
    with pytest.raises(ConfigError, match=r"early_stopping: .* data\.valid=null"):
        check_run(config)
    config.data.valid = config.data.train
    assert check_run(config).valid is not None


def test_a_plain_base_has_no_double_quantization(config: TrainConfig) -> None:
    config.quant = QuantConfig(QuantKind.none)
    with pytest.raises(ConfigError, match=r"quant\.double"):
        check_run(config)


@pytest.mark.parametrize("resume", list(Resume))
def test_a_finished_run_is_never_overwritten(config: TrainConfig, tmp_path: Path, resume: Resume) -> None:
    finish(tmp_path / "runs" / "mine")
    config.resume = resume
    with pytest.raises(Conflict, match="finished run"):
        check_run(config)


def test_a_run_that_lacks_its_report_only_is_gone_on_with(config: TrainConfig, tmp_path: Path) -> None:
    publish(tmp_path / "runs" / "mine")
    with pytest.raises(Conflict, match="finished run"):
        check_run(config)
    config.resume = Resume.auto
    assert check_run(config).is_published


def test_an_unfinished_run_is_resumed_only_when_asked(config: TrainConfig, tmp_path: Path) -> None:
    with claim_folder(tmp_path / "runs" / "mine", to_plain(config), {}), pytest.raises(Conflict, match="resume=auto"):
        check_run(config)
    config.resume = Resume.auto
    assert check_run(config).run_id == "mine"


def test_a_run_resumed_under_other_values_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    with claim_folder(tmp_path / "runs" / "mine", to_plain(config), {}):
        config.resume, config.trainer.seed = Resume.auto, 18
    with pytest.raises(Conflict, match=r"trainer: was .*'seed': 17.* is .*'seed': 18"):
        check_run(config)
    config.trainer.seed, config.hardware = 17, HardwareConfig(name="other")
    assert check_run(config).folder.exists()


def test_a_run_does_not_go_on_with_other_data(config: TrainConfig, tmp_path: Path) -> None:
    """The same names with another content: the steps behind it were taken on what is no longer there."""
    config.data.valid, config.data.system_file = str(tmp_path / "valid.jsonl"), str(tmp_path / "system.txt")
    contents = {"chats": json.dumps(CHAT) + "\n", "valid": json.dumps(CHAT) + "\n"}
    for name, content in contents.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    (tmp_path / "system.txt").write_text("Be kind.")
    checked = check_run(config)
    with claim_folder(checked.folder, to_plain(config), checked.inputs):
        config.resume = Resume.auto
    for name, content in contents.items():
        (tmp_path / f"{name}.jsonl").write_text(content + content)
    (tmp_path / "system.txt").write_text("Be brief.")
    assert check_run(config).inputs != checked.inputs, "nothing was learned yet: it begins with what is there now"
    (checked.folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(Conflict, match=r"another content of data\.train and data\.valid and data\.system_file"):
        check_run(config)
    for name, content in contents.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    (tmp_path / "system.txt").write_text("Be kind.\n")
    assert check_run(config).inputs == checked.inputs
    (checked.folder / "inputs.json").unlink()  # a run of an earlier version
    assert check_run(config).folder == checked.folder
