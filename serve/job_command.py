"""From a job to the command line that trains it: what a person would type, as a list of arguments.

`auto` is the profile's value: conf/trainer/sft.yaml, conf/method/dpo.yaml and conf/lora/r16.yaml, changed by the
operator's `jobs.overrides`. Does not start anything (job_runner.py does).
"""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core.config import CONF_DIR
from core.errors import ConfigError
from core.layout import DataDir
from core.next_command import quote_value
from serve.engine_command import LORA_RANKS, EngineConfig
from serve.jobs import Job

PROGRAM = (sys.executable, str(CONF_DIR.parent / "train" / "run.py"))
OWNED_OVERRIDES = (
    "run_id", "resume", "check_only", "output", "experiment", "model", "method", "data.train", "data.valid",
    "paths.data_dir", "trainer.seed", "trainer.save_every", "trainer.eval_every", "trainer.keep_checkpoints", "hydra",
)  # fmt: skip
"""Options of train/run.py that a job sets itself."""
LEARNING_RATES = (1e-8, 1.0)
"""What `trainer.learning_rate` may be in train/config.py: with another one a job would end as its trainer starts."""


class GpuUse(Enum):
    """Who has the card while a job trains."""

    auto = "auto"
    stop = "stop"
    share = "share"
    dedicated = "dedicated"


@dataclass(slots=True)
class JobsConfig:
    """What stands under `jobs`.

    Attributes:
        gpu: `stop` stops vLLM while a job trains and starts it again after; `share` lets trainers have what vLLM leaves
            them (`engine.trainer_gib`); `dedicated` gives them `cards` of their own; `auto` is `share` on a CPU and
            where `engine.trainer_gib` is set, else `stop`.
        cards: Numbers of the cards that trainers have, as CUDA_VISIBLE_DEVICES takes them; of `dedicated` only.
        drain_s: What running answers get before vLLM is stopped for a job.
        overrides: Options of train/run.py for every job, as they are typed there.
        save_every: Most optimizer steps between two checkpoints; a job saves at the end of each epoch at least.
        keep_checkpoints: Checkpoints of a finished job that are models.
        max_unfinished: Jobs that one owner may have waiting and running.
        max_restarts: Times that a trainer may die without having got further before its job fails.
        stop_timeout_s: What a trainer gets to save a checkpoint when the gateway stops or its job is paused.
    """

    gpu: GpuUse = GpuUse.auto
    cards: str | None = None
    drain_s: float = 30.0
    overrides: list[str] = field(default_factory=list)
    save_every: int = 50
    keep_checkpoints: int = 3
    max_unfinished: int = 100
    max_restarts: int = 3
    stop_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        """Check every range."""
        faults = [
            f"jobs.{name}: wanted at least {least}, found {value}"
            for name, least, value in (
                ("save_every", 1, self.save_every),
                ("keep_checkpoints", 1, self.keep_checkpoints),
                ("max_unfinished", 1, self.max_unfinished),
                ("max_restarts", 0, self.max_restarts),
                ("drain_s", 0, self.drain_s),
                ("stop_timeout_s", 0, self.stop_timeout_s),
            )
            if value < least
        ]
        if (self.gpu is GpuUse.dedicated) != (self.cards is not None):
            faults.append(
                f"jobs.cards: wanted card numbers with jobs.gpu=dedicated and none otherwise, found {self.cards!r} "
                f"with jobs.gpu={self.gpu.value}"
            )
        elif self.cards is not None and not re.fullmatch(r"\d+(,\d+)*", self.cards):
            faults.append(f"jobs.cards: wanted numbers such as 1 or 2,3; found {self.cards!r}")
        for override in self.overrides:
            key = override.lstrip("+~").partition("=")[0].partition("@")[0]
            if "=" not in override or override.startswith("-"):
                faults.append(f"jobs.overrides: wanted KEY=VALUE as train/run.py takes it, found {override!r}")
            elif key != "method.beta" and any(f"{key}.".startswith(f"{owned}.") for owned in OWNED_OVERRIDES):
                faults.append(f"jobs.overrides: {key} is set by each job. Leave it out")
        if faults:
            raise ConfigError("; ".join(faults), param="jobs")


def decide_gpu(jobs: JobsConfig, engine: EngineConfig) -> JobsConfig:
    """Return the settings with `jobs.gpu: auto` decided by the machine.

    Args:
        jobs: As configured.
        engine: Filled up by the hardware's profile; `trainer_gib` is what vLLM leaves to trainers on a card.

    Raises:
        ConfigError: A card is to be shared of which vLLM leaves nothing, or to be taken from servers of others.
    """
    if engine.urls:
        if jobs.gpu is GpuUse.stop:
            raise ConfigError(
                "jobs.gpu: wanted share or dedicated with engine.urls, found stop: others' servers cannot be stopped.",
                param="jobs.gpu",
            )
        return dataclasses.replace(jobs, gpu=GpuUse.share) if jobs.gpu is GpuUse.auto else jobs
    is_cpu, has_room = engine.device == "cpu", engine.trainer_gib > 0
    if jobs.gpu is GpuUse.auto:
        return dataclasses.replace(jobs, gpu=GpuUse.share if is_cpu or has_room else GpuUse.stop)
    if jobs.gpu is GpuUse.share and not is_cpu and not has_room:
        raise ConfigError(
            "jobs.gpu: wanted engine.trainer_gib above 0 with share, found 0: vLLM would leave trainers nothing. "
            "Set it, or use jobs.gpu=stop.",
            param="jobs.gpu",
        )
    return jobs


@dataclass(frozen=True, slots=True)
class Profile:
    """What `auto` stands for.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows behind one optimizer step.
        learning_rate: That the multiplier multiplies.
        beta: Of DPO.
        rank: Of the adapter.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    beta: float
    rank: int


def read_profile(config: JobsConfig, method: str) -> Profile:
    """Return what `auto` stands for in jobs of a method.

    Args:
        config: The operator's overrides count.
        method: `supervised` or `dpo`.

    Raises:
        ConfigError: An override cannot be read.
    """
    parts = {
        "trainer": OmegaConf.load(CONF_DIR / "trainer" / "sft.yaml"),
        "lora": OmegaConf.load(CONF_DIR / "lora" / "r16.yaml"),
    }
    pairs = OmegaConf.load(CONF_DIR / "method" / "dpo.yaml")
    try:
        values = OmegaConf.merge(parts, pairs if method == "dpo" else {}, _read_dotted(config.overrides))
    except OmegaConfBaseException as error:
        raise ConfigError(f"jobs.overrides: cannot be read ({error}). Write KEY=VALUE.", param="jobs") from error
    trainer = values.trainer
    return Profile(
        epochs=float(trainer.epochs),
        batch_size=int(trainer.batch_size),
        learning_rate=float(trainer.learning_rate),
        beta=float(OmegaConf.select(values, "method.beta", default=pairs.method.beta) or pairs.method.beta),
        rank=int(values.lora.rank),
    )


def _read_dotted(overrides: list[str]) -> Any:
    """Return the overrides of single keys as a mapping; whole groups (`quant=none`) say nothing here."""
    keys = [override.lstrip("+") for override in overrides]
    return OmegaConf.from_dotlist([key for key in keys if "." in key.partition("=")[0]])


def settle_hyperparameters(asked: Mapping[str, Any], profile: Profile, method: str) -> dict[str, Any]:
    """Return a job's hyperparameters under OpenAI's names, `auto` replaced by the profile's values.

    A profile's broken number of epochs stays `auto`, because OpenAI's are whole.

    Raises:
        ConfigError: The trainer does not take the learning rate that comes of it.
    """
    epochs = int(profile.epochs) if float(profile.epochs).is_integer() else "auto"
    values: dict[str, Any] = {"n_epochs": epochs, "batch_size": profile.batch_size, "learning_rate_multiplier": 1.0}
    if method == "dpo":
        values["beta"] = profile.beta
    settled = {name: value if asked.get(name) in (None, "auto") else asked[name] for name, value in values.items()}
    multiplier, (least, most) = settled["learning_rate_multiplier"], LEARNING_RATES
    if not least <= multiplier * profile.learning_rate <= most:
        raise ConfigError(
            f"learning_rate_multiplier: wanted a learning rate of {least:g} to {most:g}, found {multiplier:g} times "
            f"the profile's {profile.learning_rate:g}.",
            param="learning_rate_multiplier",
        )
    return settled


@dataclass(frozen=True, slots=True)
class Option:
    """A note of `metadata` that changes how a job is trained.

    Attributes:
        key: What it is called on the trainer's command line.
        kind: What it is.
        low: Least value.
        high: Largest value.
    """

    key: str
    kind: type[int] | type[float]
    low: float
    high: float


OPTIONS = {
    "lora_rank": Option("lora.rank", int, 1, max(LORA_RANKS)),
    "lora_alpha": Option("lora.alpha", int, 1, 4096),
    "lora_dropout": Option("lora.dropout", float, 0, 0.9),
    "max_steps": Option("trainer.max_steps", int, 1, 10**7),
    "max_length": Option("trainer.max_length", int, 8, 1_048_576),
}
"""What OpenAI has no field for, by its key in `metadata`."""


def read_options(metadata: Mapping[str, str] | None, max_rank: int) -> dict[str, Any]:
    """Return what the notes of a job say about its training.

    Args:
        metadata: The notes; whatever is not an option is the owner's own.
        max_rank: Largest rank of an adapter that the engine was started for.

    Raises:
        ConfigError: A value is no number, or out of range.
    """
    found: dict[str, Any] = {}
    for name, raw in (metadata or {}).items():
        option = OPTIONS.get(name)
        if option is None:
            if name.startswith("lora_"):
                known = ", ".join(OPTIONS)
                raise ConfigError(f"metadata.{name}: no such option. There are: {known}.", param=f"metadata.{name}")
            continue
        found[name] = _read_number(name, raw, option)
    rank = found.get("lora_rank")
    if rank is not None and (rank not in LORA_RANKS or rank > max_rank):
        ranks = ", ".join(str(known) for known in LORA_RANKS if known <= max_rank)
        raise ConfigError(
            f"metadata.lora_rank: wanted one that is served here ({ranks}; engine.max_lora_rank), found {rank}.",
            param="metadata.lora_rank",
        )
    return found


def _read_number(name: str, raw: str, option: Option) -> int | float:
    try:
        value = option.kind(raw)
    except ValueError:
        value = math.nan
    if not option.low <= value <= option.high:
        raise ConfigError(
            f"metadata.{name}: wanted {option.low:g} to {option.high:g}, found {raw[:32]!r}.", param=f"metadata.{name}"
        )
    return value


def build_arguments(
    job: Job, config: JobsConfig, profile: Profile, data: DataDir, hardware: str, rows: int
) -> tuple[list[str], int]:
    """Return the options of train/run.py for a job, and how many optimizer steps that will be.

    They are kept with the job, so that it goes on with the same ones whatever the gateway is told later.

    Args:
        job: The job.
        config: Overrides and checkpoints.
        profile: What `auto` stands for.
        data: Where the files lie.
        hardware: Name of the hardware profile.
        rows: Of the training file.
    """
    asked = job.hyperparameters
    epochs = profile.epochs if asked["n_epochs"] == "auto" else asked["n_epochs"]
    batch = int(asked["batch_size"])
    epoch_steps = max(1, math.ceil(rows / batch))
    total = max(1, math.ceil(epoch_steps * epochs))
    total = min(total, job.options.get("max_steps", total))
    save_every = min(epoch_steps, config.save_every)
    arguments = [
        *([] if any(one.startswith("hardware=") for one in config.overrides) else [f"hardware={hardware}"]),
        *(["method=dpo", f"method.beta={asked['beta']}"] if job.method == "dpo" else []),
        *config.overrides,
        f"model.name={quote_value(job.model)}",
        f"data.train={quote_value(str(_find_file(data, job.training_file)))}",
        *([f"data.valid={quote_value(str(_find_file(data, job.validation_file)))}"] if job.validation_file else []),
        f"trainer.epochs={epochs:g}",
        f"trainer.batch_size={batch}",
        f"trainer.learning_rate={profile.learning_rate * asked['learning_rate_multiplier']:.6g}",
        f"trainer.seed={job.seed}",
        f"trainer.save_every={save_every}",
        f"trainer.keep_checkpoints={config.keep_checkpoints}",
        *([f"trainer.eval_every={save_every}"] if job.validation_file else []),
        *(f"{OPTIONS[name].key}={value}" for name, value in job.options.items()),
        f"run_id={job.id}",
        "resume=auto",
    ]
    return arguments, total


def _find_file(data: DataDir, file_id: str) -> Path:
    return (data.files / file_id).resolve()


def build_command(job: Job, data: DataDir, program: tuple[str, ...] = PROGRAM) -> list[str]:
    """Return the whole command line of a job whose files are checked.

    Args:
        job: The job.
        data: The data directory.
        program: What is run.
    """
    return [*program, *(job.arguments or []), f"paths.data_dir={quote_value(str(data.root.resolve()))}"]


def hide_paths(message: str, root: Path) -> str:
    """Return what a trainer says without this machine's paths: uploads are called by their ids.

    Args:
        message: Its words.
        root: The data directory.
    """
    for known in (root.resolve(), root):
        message = message.replace(f"{known}{os.sep}", "")
    return message.replace(f"files{os.sep}file-", "file-")
