"""TRL's trainers for chats (SFT) and for pairs (DPO), told what Loam's configuration says.

TRL owns the loop, the optimizer and the loss; we own what goes in, recorder.py what is recorded, and validation.py what
held-out rows are for. Does not know where the model came from.
"""

import logging
import math
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers.integrations.integration_utils import get_available_reporting_integrations
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils.import_utils import is_liger_kernel_available
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from core.errors import ConfigError, MissingDependency
from train.config import Choice, HardwareConfig, Schedule, TrainConfig, micro_batch_of
from train.decoder import Decoder, find_obstacle
from train.deferral import DeferringChats, DeferringPairs
from train.encoding import Encoded
from train.exactness import ExactTrainer
from train.flat_batch import LayingOut
from train.hardware import Machine
from train.head import can_score_trained_tokens, score_trained_tokens
from train.kernels import Widths, choose_kernels
from train.memory import MemoryPlan
from train.model import fuse_with_liger, restore_float32
from train.pairs import PairCollator, pair_up
from train.recorder import EventCallback, Result, open_tensorboard
from train.sampler import LengthGroupedBatches
from train.sharding import build_options, gather_trained, is_sharded, shard_on_cpu
from train.tokens import IGNORED, measure_rows, to_dataset
from train.validation import ValidatedTrainer

logger = logging.getLogger(__name__)


class OrderedTrainer:
    """Mixin, to stand left of one of TRL's trainers: another order of rows, and sharding on CPUs too."""

    args: Any
    model: Any
    train_dataset: Any
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """Make the accelerator; on CPUs it is told by hand that the run is sharded."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        shard_on_cpu(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter; of a sharded one the shards are brought together first, by all processes."""
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        weights = gather_trained(self.model)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)  # type: ignore[attr-defined]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Group rows by length where the configuration says so."""
        if self.args.train_sampling_strategy != "group_by_length":
            sampler: Sampler[int] | None = super()._get_train_sampler(train_dataset)  # type: ignore[misc]
            return sampler
        lengths = measure_rows(train_dataset or self.train_dataset).tolist()
        if self.args.world_size > 1:
            lengths.pop()  # the filler
        return LengthGroupedBatches(lengths, self.args.train_batch_size, self.args.seed, self.args.world_size)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Any:
        """Take held-out rows from long to short: batches of like length, and memory that runs out does so at once."""
        lengths = measure_rows(eval_dataset).tolist()
        return sorted(range(len(lengths)), key=lambda row: -int(lengths[row]))


class ChatTrainer(ValidatedTrainer, ExactTrainer, OrderedTrainer, DeferringChats, SFTTrainer):
    """TRL's trainer for chats; the loss is TRL's."""


class PairTrainer(ValidatedTrainer, ExactTrainer, OrderedTrainer, DeferringPairs, DPOTrainer):
    """TRL's trainer for pairs; the loss is TRL's, what is scored is ours."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """Take the rows as they are: pairs.py has tokenized them."""
        return dataset


LoamTrainer = ChatTrainer | PairTrainer


def train(trainer: LoamTrainer, callback: EventCallback, checkpoint: Path | None) -> Result:
    """Train and, where there are held-out rows, evaluate at the end; the model ends with the adapter to publish.

    Args:
        trainer: From `build_trainer`.
        callback: The one that the trainer was built with.
        checkpoint: Where to go on from, or None.

    Returns:
        What the run came to.

    Raises:
        SystemExit: Ctrl-C or SIGTERM came; a checkpoint was written.
        ConfigError: There is no batch, the loss is no longer a number, or the card's memory was too small after all.
        MissingDependency: An option wants a package that is not installed.
    """
    if checkpoint is not None:
        trainer.args.eval_on_start = False
    with callback.stop.watch():
        try:
            if trainer.eval_dataset is None and checkpoint is None:
                trainer.answer_prompts()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if callback.stop.received is None:
                _end(trainer, callback)
            if callback.stop.received is not None:
                trainer.save_unsaved()
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                "hardware: the card's memory was not enough after all. What would help: trainer.micro_batch=1, "
                "hardware.gradient_checkpointing=always, or a smaller trainer.max_length.",
                param="trainer.micro_batch",
            ) from error
        except ImportError as error:
            raise miss_package(error) from error
    if callback.stop.received is not None:
        sys.exit(128 + callback.stop.received)
    return callback.result


def _end(trainer: LoamTrainer, callback: EventCallback) -> None:
    """Look at the held-out rows once more and put the best adapter into the model."""
    validation = trainer.validation
    if trainer.eval_dataset is None:
        trainer.answer_prompts()
    elif validation is None or validation.evaluated_step != trainer.state.global_step:
        trainer.evaluate()
    if validation is not None and trainer.restore_best():
        callback.take_back(validation.best.step)


def build_trainer(
    model: Any,
    tokenizer: Any,
    train: Encoded,
    valid: Encoded | None,
    arguments: SFTConfig | DPOConfig,
    callback: EventCallback,
    hardware: HardwareConfig,
) -> LoamTrainer:
    """Build TRL's trainer for a run.

    Args:
        model: The base with its adapter.
        tokenizer: For padding.
        train: What is learned from.
        valid: What is held out, or None.
        arguments: From `build_arguments`; their kind is the method.
        callback: Writes the events.
        hardware: Says which of our own kernels to use.

    Returns:
        The trainer, ready for `train()`.
    """
    parts: dict[str, Any] = {"model": model, "processing_class": tokenizer, "args": arguments, "callbacks": [callback]}
    trainer: LoamTrainer
    if isinstance(arguments, DPOConfig):
        trainer = PairTrainer(
            **parts,
            data_collator=PairCollator(tokenizer.pad_token_id),
            train_dataset=Dataset.from_dict(pair_up(train.examples)),
            eval_dataset=Dataset.from_dict(pair_up(valid.examples)) if valid else None,
        )
        model.delete_adapter("ref")  # TRL's copy of a fresh adapter; without it, the reference is the bare base
    else:
        rows = to_dataset(train.examples)
        trainer = ChatTrainer(
            **parts,
            train_dataset=add_filler(rows) if needs_filler(arguments) else rows,
            eval_dataset=to_dataset(valid.examples) if valid else None,
        )
    trainer.batches = callback.batches
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)  # the event callback logs each step
    if arguments.should_save:
        trainer.add_callback(open_tensorboard(Path(str(arguments.output_dir)).parent, callback.result.steps))
    restore_float32(model)
    decoder = use_own_kernels(model.get_base_model(), arguments, hardware)
    if decoder is not None:
        shares = hardware.share_prefix and decoder.kernels.shares_prefix
        trainer.data_collator = LayingOut(trainer.data_collator, share=shares)
    return trainer


def use_own_kernels(base: Any, arguments: SFTConfig | DPOConfig, hardware: HardwareConfig) -> Decoder | None:
    """Let a model's forward pass in training go through our head and our layers, where the configuration lets it.

    On a card where the layers cannot take the model, Liger's kernels go into its own layers, if they are installed.

    Args:
        base: The base model inside the adapter.
        arguments: Of the trainer.
        hardware: Says which of our own kernels to use.

    Returns:
        Our layers, or None where the model's own run.
    """
    decoder = None
    wants_more = getattr(arguments, "use_weighting", False)  # of TRL's head: sums of squares, for weighted pairs
    if hardware.fused_head and can_score_trained_tokens(base) and not wants_more:
        decoder = make_decoder(base, arguments, hardware)
        if decoder is not None or arguments.use_cpu:
            score_trained_tokens(base, decoder, share_prefix=hardware.share_prefix)
    if decoder is None and not arguments.use_cpu and hardware.fused_layers is not Choice.never:
        logger.info("%s", fuse_with_liger(base))
    return decoder


def make_decoder(base: Any, arguments: SFTConfig | DPOConfig, hardware: HardwareConfig) -> Decoder | None:
    """Return the hand-written layers for a model, or None where its own are to be used.

    Raises:
        ConfigError: They are wanted always, and the model cannot go through them.
    """
    wanted, is_recomputed = hardware.fused_layers, bool(arguments.gradient_checkpointing)
    obstacle = find_obstacle(base, is_card=not arguments.use_cpu, is_recomputed=is_recomputed)
    if getattr(arguments, "neftune_noise_alpha", None) is not None:
        obstacle = "trainer.options.neftune_noise_alpha wants embeddings in rows"
    if wanted is Choice.never:
        obstacle = "hardware.fused_layers=never"
    if obstacle is None and is_sharded(hardware):
        obstacle = "hardware.strategy=fsdp2 shares the weights out"
    if obstacle is None:
        dtype = torch.bfloat16 if arguments.bf16 else torch.float32
        kernels = choose_kernels(hardware.flat_attention.value, Widths.of_model(base), arguments.device, dtype)
        logger.info("%s", kernels.describe())
        return Decoder(base, kernels, is_recomputed=is_recomputed)
    if wanted is Choice.always:
        raise ConfigError(
            f"hardware.fused_layers: wanted the fused layers, but {obstacle}. Use hardware.fused_layers=auto.",
            param="hardware.fused_layers",
        )
    logger.info("layers: the model's own (%s)", obstacle)
    return None


def needs_filler(arguments: SFTConfig) -> bool:
    """Whether several processes take turns with batches of like length: an uneven last turn is then filled up."""
    return arguments.world_size > 1 and arguments.train_sampling_strategy == "group_by_length"


def add_filler(dataset: Dataset) -> Dataset:
    """Return a dataset with one more row, in which nothing is to be learned."""
    filler = {"input_ids": [[0, 0]], "labels": [[IGNORED, IGNORED]], "seq_lengths": [[2]]}
    filler = {name: values for name, values in filler.items() if name in dataset.column_names}
    return concatenate_datasets([dataset, Dataset.from_dict(filler, features=dataset.features)])


def check_options(config: TrainConfig, device: torch.device) -> None:
    """Refuse, before a model loads, options that TRL does not have or not here, and trackers that are not installed.

    Args:
        config: Of the run.
        device: What it trains on.

    Raises:
        ConfigError: There are some; each is named.
    """
    kind = DPOConfig if config.method.is_dpo else SFTConfig
    unknown = config.trainer.options.keys() - {one.name for one in fields(kind)}
    faults = [f"trainer.options.{name}: wanted an option of TRL's {kind.__name__}" for name in sorted(unknown)]
    has_own = config.hardware.fused_head or config.hardware.fused_layers is not Choice.never
    wanted = "hardware.fused_layers=never hardware.fused_head=false"
    faults += [
        f"trainer.options.{name}: wanted {wanted} with it: torch does not trace what they switch on"
        for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")  # each of them switches it on
        if has_own and config.trainer.options.get(name)
    ]
    if config.trainer.options.get("activation_offloading") and device.type == "cpu":
        faults.append("trainer.options.activation_offloading: wanted a card whose memory it frees, found the CPU")
    if config.trainer.options.get("use_liger_kernel") and (device.type == "cpu" or not is_liger_kernel_available()):
        wanted = "a card and the package liger-kernel, which comes with the CUDA set"
        faults.append(f"trainer.options.use_liger_kernel: wanted {wanted}, found one missing. Leave it out")
    installed = get_available_reporting_integrations()
    faults += [
        f"trainer.report_to: wanted trackers that are installed ({', '.join(installed)}), found {name}"
        for name in config.trainer.report_to
        if name not in {*installed, "all", "none"}
    ]
    if faults:
        raise ConfigError("; ".join(faults), param="trainer")


def build_arguments(
    config: TrainConfig, machine: Machine, plan: MemoryPlan, output_dir: Path, *, has_valid: bool
) -> SFTConfig | DPOConfig:
    """Translate the run's configuration into TRL's: an SFTConfig, or a DPOConfig where the method is DPO.

    bfloat16 is mixed precision: the adapter and its optimizer stay in float32.

    Raises:
        ConfigError: TRL does not take an option's value.
        MissingDependency: An option wants a package that is not installed.
    """
    options = config.trainer
    rows = micro_batch_of(config)
    is_bfloat16 = machine.dtype is torch.bfloat16
    sharding = build_options(config.hardware, is_recomputed=plan.gradient_checkpointing)
    is_grouped = options.group_by_length and not (config.method.is_dpo and config.hardware.world > 1)
    shared: dict[str, Any] = dict(
        output_dir=str(output_dir),
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        per_device_train_batch_size=rows,
        per_device_eval_batch_size=rows,
        gradient_accumulation_steps=options.batch_size // config.hardware.world // rows,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant_with_warmup" if options.schedule is Schedule.constant else options.schedule.value,
        warmup_steps=min(options.warmup, math.nextafter(1, 0)),  # below 1: a share of all steps; 1 would be one step
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        max_length=None,  # data.py and pairs.py have cut the rows already
        train_sampling_strategy="group_by_length" if is_grouped else "random",
        seed=options.seed,
        eval_strategy="steps" if has_valid and options.eval_every else "no",
        eval_steps=options.eval_every,
        eval_on_start=has_valid and options.eval_first,
        prediction_loss_only=True,
        save_strategy="steps" if options.save_every else "no",
        save_steps=options.save_every or 500,
        save_total_limit=None,  # checkpoint.py removes older ones, once a newer one is whole
        logging_steps=1,
        logging_nan_inf_filter=False,  # it waits for every loss and hides it; recorder.py ends such a run
        disable_tqdm=True,
        report_to=options.report_to or "none",
        use_cpu=machine.device.type == "cpu",
        ddp_find_unused_parameters=False if config.hardware.world > 1 else None,
        bf16=is_bfloat16,
        gradient_checkpointing=plan.gradient_checkpointing and not sharding,
        **sharding,
        dataloader_pin_memory=machine.device.type == "cuda",
        accelerator_config={"non_blocking": machine.device.type == "cuda"},
        **options.options,
    )
    try:
        if config.method.beta is not None:  # DPO
            return DPOConfig(**shared, beta=config.method.beta, remove_unused_columns=False)
        return SFTConfig(**shared, dataset_kwargs={"skip_prepare_dataset": True}, packing=options.packing)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer.options: TRL does not take them: {error}", param="trainer.options") from error
    except ImportError as error:
        raise miss_package(error) from error


def miss_package(error: ImportError) -> MissingDependency:
    """Return a library's complaint about a package that one of its options wants, as an error of ours."""
    return MissingDependency(
        f"trainer.options: wanted a package that is not installed ({error}). Install it, or leave the option out.",
        param="trainer.options",
    )
