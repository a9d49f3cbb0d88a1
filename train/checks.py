"""Everything that can be wrong with a run and be known without torch, found at once, before anything heavy is imported.

Does not know the tokenizer: rows that are too long are found by data.py, before the model loads.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml
from omegaconf import OmegaConf

from core.errors import ConfigError, Conflict, LoamError, ModelNotFound
from core.events import read_events
from core.layout import DataDir, sha256_bytes
from core.manifest import ADAPTER_MANIFEST
from train.config import Choice, QuantKind, Resume, Strategy, TrainConfig, resolve_path
from train.data import DataFile, check_data
from train.folder import read_inputs
from train.launch import check_processes, is_launched
from train.template import TrainingTemplate, find_template

T = TypeVar("T")
MAY_DIFFER_ON_RESUME = ("resume", "hardware", "paths", "run_id", "check_only", "output")
"""Keys that do not change what a run computes, so that it may go on under other values."""


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """A run that nothing stands against, as far as can be known without torch.

    Attributes:
        run_id: Its name.
        folder: runs/<run_id>/, which may not exist yet.
        model_folder: The base model.
        template: The base model's training template.
        train: The training chats.
        valid: The held-out chats, or None.
        inputs: SHA-256 of the files that are read, by their keys.
        is_published: Whether the adapter stands already and only its report is missing.
    """

    run_id: str
    folder: Path
    model_folder: Path
    template: TrainingTemplate
    train: DataFile
    valid: DataFile | None
    inputs: dict[str, str]
    is_published: bool = False


def check_run(config: TrainConfig) -> CheckedRun:
    """Check a run, or refuse it with everything that stands against it.

    Raises:
        LoamError: The first fault's class, with every fault in the message.
    """
    data_dir = DataDir(Path(config.paths.data_dir))
    run_id = config.run_id or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    folder, model_folder = data_dir.run(run_id), data_dir.model(config.model.name)
    adopt_micro_batch(config, folder)
    faults: list[LoamError] = []
    template = _attempt(faults, lambda: _find_model(model_folder))
    train = _attempt(faults, lambda: _check_data(config.data.train, "data.train", config, template))
    valid = (
        _attempt(faults, lambda: _check_data(config.data.valid, "data.valid", config, template))
        if config.data.valid
        else None
    )
    inputs = list_inputs(train, valid)
    _attempt(faults, lambda: _check_folder(folder, config, inputs))
    _attempt(faults, lambda: _check_sizes(config))
    _attempt(faults, lambda: check_processes(config.hardware, config.run_id))
    if faults or template is None or train is None:
        raise _join(faults)
    return CheckedRun(run_id, folder, model_folder, template, train, valid, inputs, is_published=has_adapter(folder))


def _attempt(faults: list[LoamError], check: Callable[[], T]) -> T | None:
    """Run one check; note what it raises and go on, so that one fault does not hide another."""
    try:
        return check()
    except LoamError as fault:
        faults.append(fault)
        return None


def _join(faults: list[LoamError]) -> LoamError:
    """Return one error of the first fault's class that says them all."""
    if len(faults) == 1:
        return faults[0]
    listed = "".join(f"\n  {fault.message}" for fault in faults)
    return type(faults[0])(f"{len(faults)} things stand against this run:{listed}", param=faults[0].param)


def _find_model(folder: Path) -> TrainingTemplate:
    if not (folder / "config.json").is_file():
        name = folder.name
        raise ModelNotFound(
            f"model.name: wanted the base model {name} in {folder}, found none. Import a folder that you have: "
            f"python scripts/models.py import PATH --name {name}; or get it: python scripts/models.py get {name}",
            param="model.name",
        )
    return find_template(folder)


def _check_data(path: str | None, key: str, config: TrainConfig, template: TrainingTemplate | None) -> DataFile:
    if path is None:
        raise ConfigError(
            f"{key}: wanted a file of rows to learn from, found none. Give it: {key}=chats.jsonl", param=key
        )
    file = check_data(resolve_path(path), config.data, template, key)
    if file.layout.is_preference != config.method.is_dpo:
        wanted, other = ("pairs to prefer by", "sft") if config.method.is_dpo else ("answers to learn", "dpo")
        raise ConfigError(
            f"{key}: wanted {wanted}, found {file.layout.describe()} in {file.path}. Give another file, or use "
            f"method={other}.",
            param=key,
        )
    return file


def list_inputs(train: DataFile | None, valid: DataFile | None) -> dict[str, str]:
    """Return the SHA-256 of what a run reads, by its key; a file with faults, which end the run anyway, is left out."""
    inputs = {key: file.sha256 for key, file in (("data.train", train), ("data.valid", valid)) if file is not None}
    system = train.layout.system if train is not None else None
    return inputs | ({"data.system_file": sha256_bytes(system.encode())} if system is not None else {})


def adopt_micro_batch(config: TrainConfig, folder: Path) -> None:
    """Put the number of rows that a run has found before in the place of `auto`, so that it resumes with the same."""
    saved = folder / "config.yaml"
    if config.trainer.micro_batch == "auto" and config.resume is Resume.auto and saved.is_file():
        before = yaml.safe_load(saved.read_text(encoding="utf-8"))
        config.trainer.micro_batch = before.get("trainer", {}).get("micro_batch") or "auto"


def _check_folder(folder: Path, config: TrainConfig, inputs: dict[str, str]) -> None:
    """Refuse a run that would overwrite another, or go on with one that was told otherwise or has read other files."""
    if not folder.exists() or is_launched() or config.hardware.node_rank:  # the first process has checked
        return
    if has_adapter(folder) and (config.resume is Resume.never or has_ended(folder)):
        raise Conflict(
            f"run_id: {folder} holds a finished run. Choose another run_id, or remove the folder.", param="run_id"
        )
    if config.resume is Resume.never:
        raise Conflict(
            f"run_id: {folder} holds an unfinished run. Go on with it by resume=auto, choose another run_id, or remove "
            "the folder.",
            param="run_id",
        )
    saved = folder / "config.yaml"
    if saved.is_file():
        before, now = yaml.safe_load(saved.read_text(encoding="utf-8")), to_plain(config)
        changed = sorted(
            f"{group}: was {before.get(group)}, is {now[group]}"
            for group in now
            if group not in MAY_DIFFER_ON_RESUME and before.get(group) != now[group]
        )
        if changed:
            raise Conflict(
                f"resume: the configuration of {folder} differs: {'; '.join(changed)}. Give the same values, or choose "
                "another run_id.",
                param="resume",
            )
    checkpoints, known = folder / "checkpoints", read_inputs(folder)
    has_learned = has_adapter(folder) or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    if has_learned and (others := [key for key, digest in inputs.items() if known.get(key, digest) != digest]):
        raise Conflict(
            f"resume: {folder} has learned from another content of {' and '.join(others)}. Give the file as it was, or "
            "choose another run_id.",
            param="resume",
        )


def has_adapter(folder: Path) -> bool:
    """Whether a run has published its adapter."""
    return (folder / "adapter" / ADAPTER_MANIFEST).is_file()


def has_ended(folder: Path) -> bool:
    """Whether a run has said that it is done, which it does after its report."""
    return any(event["type"] == "done" for event in read_events(folder / "events.jsonl"))


def _check_sizes(config: TrainConfig) -> None:
    if config.trainer.early_stopping is not None and config.data.valid is None:
        raise ConfigError(
            "trainer.early_stopping: wanted held-out rows to judge by, found data.valid=null. Give them: "
            "data.valid=held_out.jsonl",
            param="trainer.early_stopping",
        )
    if config.trainer.batch_size % config.hardware.world:
        raise ConfigError(
            f"trainer.batch_size: wanted a multiple of all processes together ({config.hardware.world}), found "
            f"{config.trainer.batch_size}",
            param="trainer.batch_size",
        )
    if config.hardware.strategy is Strategy.fsdp2 and config.quant.keep_dequantized is Choice.always:
        raise ConfigError(
            "quant.keep_dequantized: wanted auto or never with hardware.strategy=fsdp2, which shares the weights out; "
            "found always.",
            param="quant.keep_dequantized",
        )
    if config.quant.kind is QuantKind.none and config.quant.double:
        raise ConfigError("quant.double: wanted false with quant.kind=none, found true. Use quant=none.", param="quant")


def to_plain(config: TrainConfig) -> dict[str, object]:
    """Return a configuration as plain values, as config.yaml holds them."""
    return dict(yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(config))))
