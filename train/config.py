"""What a training run can be told: the schema, the defaults and the ranges of conf/train.yaml and its groups.

Plain Python, so that a wrong value is refused before anything heavy is imported. Does not know what the machine has;
hardware.py resolves every `auto`.
"""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from core.config import Device, PathsConfig, check_ranges
from core.errors import ConfigError
from core.formats import Columns, DataFormat, check_columns
from core.layout import check_name

PROJECT_DIR = Path(__file__).resolve().parent.parent
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""LoRA ranks that vLLM can be started for (its `--max-lora-rank`)."""
OWNED_OPTIONS = frozenset(
    {
        "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
        "per_device_eval_batch_size", "learning_rate", "lr_scheduler_type", "warmup_steps", "warmup_ratio",
        "weight_decay", "max_grad_norm", "max_length", "train_sampling_strategy", "seed", "data_seed", "eval_strategy",
        "eval_steps", "save_strategy", "save_steps", "save_total_limit", "bf16", "fp16", "use_cpu", "packing",
        "gradient_checkpointing", "assistant_only_loss", "completion_only_loss", "logging_steps", "logging_strategy",
        "disable_tqdm", "report_to", "logging_dir", "eval_on_start", "load_best_model_at_end", "metric_for_best_model",
        "greater_is_better", "beta", "remove_unused_columns", "precompute_ref_log_probs", "sync_ref_model",
        "push_to_hub", "trust_remote_code", "chat_template_path", "dataset_kwargs", "logging_nan_inf_filter",
        "dataloader_pin_memory", "accelerator_config", "prediction_loss_only", "ddp_find_unused_parameters", "fsdp",
        "fsdp_config",
    }
)  # fmt: skip
"""Keys of TRL's SFTConfig and DPOConfig that Loam sets from its own configuration: they have one home."""


class Dtype(Enum):
    """What matrix products run in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Choice(Enum):
    """Whether to do a thing: by the machine's memory, always, or never."""

    auto = "auto"
    always = "always"
    never = "never"


class QuantKind(Enum):
    """How the frozen base is held."""

    nf4 = "nf4"
    none = "none"


class Schedule(Enum):
    """How the learning rate moves after the warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Strategy(Enum):
    """How several processes share a run."""

    ddp = "ddp"
    fsdp2 = "fsdp2"


class MethodKind(Enum):
    """What is learned from."""

    sft = "sft"
    dpo = "dpo"


class FlatAttention(Enum):
    """Who attends in the hand-written layers; `auto` takes the first that runs right on this machine, in this order."""

    auto = "auto"
    flash4 = "flash4"
    flash2 = "flash2"
    varlen = "varlen"
    flex = "flex"
    sdpa = "sdpa"
    blocks = "blocks"


class Keep(Enum):
    """Which adapter is published: the one with the lowest held-out loss, or the last."""

    best = "best"
    last = "last"


class Resume(Enum):
    """Whether to go on with an earlier run of the same name."""

    never = "never"
    auto = "auto"


class Output(Enum):
    """Who reads what a check prints: people, or a program."""

    text = "text"
    json = "json"


@dataclass(slots=True)
class ModelConfig:
    """Which base model.

    Attributes:
        name: Name of its folder under models/.
    """

    name: str = "llama-3.2-3b-instruct"

    def __post_init__(self) -> None:
        """Check the name."""
        check_name(self.name, "model.name")


@dataclass(slots=True)
class QuantConfig:
    """How the frozen base is held in memory.

    Attributes:
        kind: `nf4` is QLoRA; `none` is plain LoRA.
        double: Quantize the quantization constants too.
        keep_dequantized: Keep the 4-bit weights' exact values in the compute dtype, which trades memory for speed.
    """

    kind: QuantKind = QuantKind.nf4
    double: bool = True
    keep_dequantized: Choice = Choice.auto


@dataclass(slots=True)
class LoraConfig:
    """The adapter.

    Attributes:
        rank: Rank of each pair of matrices; one that vLLM can serve.
        alpha: Scale: the adapter is multiplied by alpha / rank.
        dropout: Share of the adapter's inputs dropped in training, 0 to 1.
        rslora: Scale by alpha / sqrt(rank) instead.
        targets: Names of the linear layers, or `all-linear` for all but the head.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    rslora: bool = False
    targets: list[str] = field(default_factory=lambda: ["all-linear"])

    def __post_init__(self) -> None:
        """Refuse what vLLM would refuse, before training."""
        if self.rank not in SERVED_RANKS:
            ranks = ", ".join(map(str, SERVED_RANKS))
            raise ConfigError(f"lora.rank: wanted one that vLLM serves ({ranks}), found {self.rank}", param="lora.rank")
        check_ranges("lora", {"alpha": (self.alpha, 1, 4096), "dropout": (self.dropout, 0, 0.9)})
        if not self.targets or "lm_head" in self.targets or ("all-linear" in self.targets and len(self.targets) > 1):
            raise ConfigError(
                f"lora.targets: wanted [all-linear] or names of linear layers, the head not among them; found "
                f"{self.targets}",
                param="lora.targets",
            )


@dataclass(slots=True)
class DataConfig:
    """What is learned from.

    Attributes:
        train: Path of the training rows (JSONL, CSV or Parquet).
        valid: Path of the held-out rows, or None.
        format: What the rows look like; `auto` is told by their keys.
        prompt_column: Column that holds the question, where it is not called `prompt`.
        completion_column: Column that holds the answer to learn, where it is not called `completion`.
        system_column: Column that holds the system message, where it is not called `system`.
        chosen_column: Column that holds the better answer, where it is not called `chosen`.
        rejected_column: Column that holds the worse answer, where it is not called `rejected`.
        system_file: A text file that is the system message of the rows that have none.
        sample_prompts: A text file, a prompt a line, to answer at each evaluation instead of the first held-out rows.
        template_date: The date that Llama 3 templates print.
    """

    train: str | None = None
    valid: str | None = None
    format: DataFormat = DataFormat.auto
    prompt_column: str | None = None
    completion_column: str | None = None
    system_column: str | None = None
    chosen_column: str | None = None
    rejected_column: str | None = None
    system_file: str | None = None
    sample_prompts: str | None = None
    template_date: str = "26 Jul 2024"

    def __post_init__(self) -> None:
        """Check that the named columns are those of one format, and of the one that is asked for."""
        check_columns(self.format, self.columns)

    @property
    def columns(self) -> Columns:
        """The named columns."""
        return Columns(
            self.prompt_column, self.completion_column, self.system_column, self.chosen_column, self.rejected_column
        )


@dataclass(slots=True)
class MethodConfig:
    """Supervised fine-tuning or direct preference optimization.

    Attributes:
        kind: `sft` learns from chats, `dpo` from pairs of a better and a worse answer.
        beta: How closely DPO stays by the base model; higher stays closer.
    """

    kind: MethodKind = MethodKind.sft
    beta: float | None = None

    def __post_init__(self) -> None:
        """Check that beta is given where it is used, and only there."""
        check_ranges("method", {"beta": (self.beta, 1e-4, 2)})
        if self.kind is MethodKind.dpo and self.beta is None:
            raise ConfigError("method.beta: wanted 0.0001 to 2 for dpo, found null. Use 0.1.", param="method.beta")
        if self.kind is MethodKind.sft and self.beta is not None:
            raise ConfigError(
                f"method.beta: sft has none, found {self.beta:g}. Leave it out, or use method=dpo.", param="method.beta"
            )

    @property
    def is_dpo(self) -> bool:
        """Whether it learns from pairs."""
        return self.kind is MethodKind.dpo


@dataclass(slots=True)
class TrainerConfig:
    """How it is learned; the defaults and comments stand in conf/trainer/sft.yaml.

    Attributes:
        epochs: Passes over the training rows.
        max_steps: Optimizer steps after which the run ends even earlier.
        batch_size: Rows behind one optimizer step, over all processes.
        micro_batch: Rows at once in one process; None takes the hardware's, `auto` tries what this machine takes.
        learning_rate: The highest.
        schedule: How it falls afterwards.
        warmup: Share of the steps over which it rises.
        weight_decay: Of AdamW.
        max_grad_norm: Gradients are scaled down to this norm.
        max_length: Tokens of a row; the rest is cut off.
        group_by_length: Make batches of rows of like length.
        packing: Join short rows into packs of up to max_length tokens, each of which counts as a row of a batch.
        seed: Of the adapter's first values and of the order of rows.
        eval_every: Steps between evaluations; None evaluates at the end only.
        eval_first: Evaluate the base model before the first step too.
        early_stopping: Evaluations without a better held-out loss after which the run ends; None goes on to the end.
        min_delta: By how much a held-out loss must be lower to count as better for early stopping.
        keep: Publish the adapter of the best evaluation, or the last one.
        samples: First held-out rows whose prompts are answered at each evaluation; 0 answers none.
        sample_tokens: Tokens after which such an answer is cut.
        report_to: Trackers beside TensorBoard, as transformers names them, such as `wandb`; they may use the network.
        save_every: Steps between checkpoints; None saves none.
        keep_checkpoints: Whole checkpoints that stay, the best one apart; None keeps all.
        options: More of TRL's SFTConfig (or DPOConfig), passed through.
    """

    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    micro_batch: int | str | None = None
    learning_rate: float = 2e-4
    schedule: Schedule = Schedule.cosine
    warmup: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int = 2048
    group_by_length: bool = True
    packing: bool = False
    seed: int = 17
    eval_every: int | None = None
    eval_first: bool = True
    early_stopping: int | None = None
    min_delta: float = 0.0
    keep: Keep = Keep.best
    samples: int = 3
    sample_tokens: int = 64
    report_to: list[str] = field(default_factory=list)
    save_every: int | None = None
    keep_checkpoints: int | None = 2
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every range; all faults at once."""
        ranges: list[tuple[str, float | None, float, float]] = [
            ("epochs", self.epochs, 0.001, 1000),
            ("max_steps", self.max_steps, 1, 10**7),
            ("batch_size", self.batch_size, 1, 65536),
            ("micro_batch", None if isinstance(self.micro_batch, str) else self.micro_batch, 1, 4096),
            ("learning_rate", self.learning_rate, 1e-8, 1),
            ("warmup", self.warmup, 0, 1),
            ("weight_decay", self.weight_decay, 0, 1),
            ("max_grad_norm", self.max_grad_norm, 1e-6, 1e6),
            ("max_length", self.max_length, 8, 1_048_576),
            ("seed", self.seed, 0, 2**32 - 1),
            ("eval_every", self.eval_every, 1, 10**7),
            ("early_stopping", self.early_stopping, 1, 10**6),
            ("min_delta", self.min_delta, 0, 100),
            ("samples", self.samples, 0, 100),
            ("sample_tokens", self.sample_tokens, 1, 4096),
            ("save_every", self.save_every, 1, 10**7),
            ("keep_checkpoints", self.keep_checkpoints, 1, 10**6),
        ]
        faults = [
            f"trainer.{key}: wanted {low:g} to {high:g}, found {value:g}"
            for key, value, low, high in ranges
            if value is not None and not low <= value <= high
        ]
        if isinstance(self.micro_batch, str) and self.micro_batch != "auto":
            faults.append(f"trainer.micro_batch: wanted a number of rows, null or auto; found {self.micro_batch!r}")
        faults += [
            f"trainer.options.{key}: Loam sets this from its own configuration; see conf/trainer/sft.yaml"
            for key in sorted(OWNED_OPTIONS & self.options.keys())
        ]
        if self.early_stopping is not None and self.eval_every is None:
            faults.append("trainer.early_stopping: wanted evaluations on the way, found trainer.eval_every=null")
        if faults:
            raise ConfigError("; ".join(faults), param="trainer")


@dataclass(slots=True)
class HardwareConfig:
    """What it runs on; other programs read the same group.

    Attributes:
        name: Of the profile.
        device: `auto` takes a CUDA card where torch sees one.
        dtype: What matrix products run in; `auto` takes bfloat16 where the processor has arithmetic for it.
        attention: Attention implementation, as transformers names it.
        gradient_checkpointing: Recompute activations instead of keeping them; `auto` only where memory asks for it.
        fused_head: Multiply only the positions that are learned with the vocabulary.
        fused_layers: Run the layers by hand-written passes; `auto` where the model allows it.
        flat_attention: Who attends in the fused layers: a library's kernel, or blocks of matrix products; `auto` tries.
        share_prefix: Compute what all rows of a micro-batch begin with only once (with fused layers, by blocks).
        micro_batch: Rows at once in one process.
        micro_tokens: Tokens at once in one process, in rows of the longest's length; takes the place of micro_batch.
        processes: Training processes on each machine, one a GPU.
        strategy: `ddp` gives each process the whole base model; `fsdp2` shares the weights out over all of them.
        nodes: Machines that train together; each starts the same command.
        node_rank: Which of them this one is, from 0.
        rendezvous: HOST:PORT of the first machine, where the others can reach it; null finds it in a Slurm job.
    """

    name: str = "auto"
    device: Device = Device.auto
    dtype: Dtype = Dtype.auto
    attention: str = "sdpa"
    gradient_checkpointing: Choice = Choice.auto
    fused_head: bool = True
    fused_layers: Choice = Choice.auto
    flat_attention: FlatAttention = FlatAttention.auto
    share_prefix: bool = True
    micro_batch: int = 4
    micro_tokens: int | None = None
    processes: int = 1
    strategy: Strategy = Strategy.ddp
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None

    @property
    def world(self) -> int:
        """Processes of the whole run."""
        return self.processes * self.nodes

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(
            "hardware",
            {
                "micro_batch": (self.micro_batch, 1, 4096),
                "micro_tokens": (self.micro_tokens, 64, 2**24),
                "processes": (self.processes, 1, 1024),
                "nodes": (self.nodes, 1, 4096),
                "node_rank": (self.node_rank, 0, self.nodes - 1),
            },
        )
        if self.rendezvous is not None and not re.fullmatch(r"[^\s:]+:\d{1,5}", self.rendezvous):
            raise ConfigError(
                f"hardware.rendezvous: wanted HOST:PORT, found {self.rendezvous!r}", param="hardware.rendezvous"
            )


@dataclass(slots=True)
class TrainConfig:
    """Everything that a training run is told.

    Attributes:
        run_id: Name of the run's folder; null takes date, time and a short random part.
        resume: Whether to go on with an earlier run of this name.
        check_only: Check the run and its data, show what the tokenizer sees, and end.
        output: What check_only prints: `text` for people; `json` what the run will take, as one object.
    """

    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    run_id: str | None = None
    resume: Resume = Resume.never
    check_only: bool = False
    output: Output = Output.text

    def __post_init__(self) -> None:
        """Check what one group alone cannot."""
        if self.run_id is not None:
            check_name(self.run_id, "run_id")
        if self.method.is_dpo and self.trainer.micro_batch == "auto":
            raise ConfigError(
                "trainer.micro_batch: auto is found by trying chats, not pairs. Give a number with method=dpo.",
                param="trainer.micro_batch",
            )
        if self.method.is_dpo and self.trainer.packing:
            raise ConfigError(
                "trainer.packing: pairs cannot be packed, found true with method=dpo. Use trainer.packing=false.",
                param="trainer.packing",
            )
        if self.resume is Resume.auto and self.run_id is None:
            raise ConfigError("resume=auto: wanted the run to go on with, found none. Add run_id=NAME.", param="run_id")
        if self.output is Output.json and not self.check_only:
            raise ConfigError("output=json: wanted check_only=true with it, found false. Add it.", param="output")


def fill_micro_batch(config: TrainConfig, longest: int) -> None:
    """Set the rows at once where the hardware group counts them in tokens, once the rows' lengths are known.

    Args:
        config: Of the run; `hardware.micro_batch` is changed.
        longest: Tokens of the longest row, or pack.
    """
    if config.hardware.micro_tokens is not None:
        config.hardware.micro_batch = min(4096, max(1, config.hardware.micro_tokens // max(1, longest)))


def micro_batch_of(config: TrainConfig) -> int:
    """Return the rows that one process takes at once: never more than its share of a batch, and dividing it.

    The largest number that is at most the wanted one and divides the process's share, so that the batch size that was
    asked for is the one that is used. One while `auto` is still to be found.
    """
    share = max(1, config.trainer.batch_size // config.hardware.world)
    given = config.trainer.micro_batch or config.hardware.micro_batch
    wanted = 1 if isinstance(given, str) else min(given, share)
    return next(rows for rows in range(wanted, 0, -1) if share % rows == 0)


def resolve_path(path: str) -> Path:
    """Return where a path of the configuration leads: as given, else below the project's folder.

    The second place lets the experiments in conf/ name the project's examples from any working directory.
    """
    given = Path(path).expanduser()
    shipped = PROJECT_DIR / given
    return shipped if not given.exists() and not given.is_absolute() and shipped.exists() else given
