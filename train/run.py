"""Fine-tune a base model with QLoRA: config → checks → model → train → save → report.

    python train/run.py data.train=chats.jsonl
    python train/run.py data.train=chats.jsonl check_only=true [output=json]
    python train/run.py experiment=acme_cpu
    python train/run.py model=smollm2_135m hardware=cpu data.train=X.jsonl data.valid=Y.jsonl run_id=mine

Ends with runs/<run_id>/adapter/ and report.md. `--cfg job` prints every key; conf/train.yaml is where they come from.
"""

from core.entry import begin_program

begin_program()

import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from core.config import load_config, run_app
from core.events import EventWriter
from core.logs import configure_logging
from core.manifest import AdapterManifest, BaseIdentity
from train.checks import CheckedRun, check_run, to_plain
from train.config import Output, Resume, TrainConfig, fill_micro_batch
from train.folder import claim_folder, open_events, read_evaluations, read_steps, record_failure
from train.launch import is_launched, is_main, launch, let_segments_grow, show_one_card
from train.scratch import hold_scratch
from train.sweep import is_sweep, run_job

logger = logging.getLogger("train")


def main(composed: DictConfig) -> None:
    """Check a run and do it."""
    configure_logging()
    # Threads that wait give their core up soon: beside another busy process a step is many times quicker.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # until training listens itself
    if is_sweep():  # the job's own process checks what it is told
        run_job(composed.run_id, Path(composed.paths.data_dir), is_resumed=composed.resume == Resume.auto.value)
        return
    config = load_config(composed, TrainConfig)
    let_segments_grow(config.hardware.device)
    show_one_card(config.hardware)
    checked = check_run(config)
    if config.check_only:
        check(config, checked)
        return
    if config.hardware.world > 1 and not is_launched():
        launch(config.hardware, checked.run_id)
    with (
        claim_folder(checked.folder, to_plain(config), checked.inputs),
        open_events(checked.folder) as events,
        record_failure(events),
        hold_scratch(checked.folder / "tokens") as tokens,
    ):
        if not checked.is_published:
            train(config, checked, events, tokens)
        elif is_main():
            finish_report(config, checked, events, tokens)


def check(config: TrainConfig, checked: CheckedRun) -> None:
    """Show what the tokenizer makes of the data, and end without a trace."""
    from train import check_report, duration, encoding, estimate, footprint, hardware, model, packing

    machine = hardware.find_machine(config.hardware)
    if config.trainer.options or config.trainer.report_to:
        from train import trainer  # and with it TRL, which takes seconds: only where it is asked something

        trainer.check_options(config, machine.device)
    tokenizer = model.load_tokenizer(checked.model_folder)
    with tempfile.TemporaryDirectory(prefix="loam-check-") as folder:
        learned, held_out = encoding.encode_all(
            checked.train, checked.valid, tokenizer, checked.template, config, Path(folder)
        )
        shape = footprint.read_shape(checked.model_folder)
        packed = packing.pack_rows(learned, config, Path(folder))
        fill_micro_batch(config, packed.longest)
        if config.output is Output.json:
            print(json.dumps(estimate.estimate_needs(config, shape, packed, machine)))
            return
        parts = [(checked.train, learned), *([(checked.valid, held_out)] if checked.valid and held_out else [])]
        findings = check_report.compare_files(checked.train, checked.valid)
        check_report.show_check(check_report.open_console(), parts, findings, tokenizer)
        print("\n".join(duration.estimate_run(config, shape, packed, machine)[1]))
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("check_only=")]
    print(f"nothing stands against this run\nnext: {shlex.join(['python', 'train/run.py', *arguments])}")


def train(config: TrainConfig, checked: CheckedRun, events: EventWriter, tokens: Path) -> None:
    """Load, train, save and report.

    Args:
        config: The run's configuration.
        checked: What was found when it was checked.
        events: Where to record what happens.
        tokens: Folder for the rows as token ids, while the run lasts.
    """
    # torch, transformers and TRL take ten seconds to import: only now, when nothing stands against the run.
    from train import (
        check_report,
        checkpoint,
        duration,
        encoding,
        export,
        footprint,
        hardware,
        micro_batch,
        model,
        packing,
        recorder,
        samples,
        sharding,
        trainer,
        validation,
    )

    machine = hardware.find_machine(config.hardware)
    trainer.check_options(config, machine.device)
    # The data's last check needs the tokenizer; it comes before the model.
    tokenizer = model.load_tokenizer(checked.model_folder)
    learned, held_out = encoding.encode_all(checked.train, checked.valid, tokenizer, checked.template, config, tokens)
    prompts = samples.collect_prompts(config, checked.valid, tokenizer, checked.template)
    findings = check_report.compare_files(checked.train, checked.valid) if is_main() else check_report.Findings()
    for line in findings.describe():
        logger.warning("%s", line)
    shape = footprint.read_shape(checked.model_folder)
    packed = packing.pack_rows(learned, config, tokens)
    fill_micro_batch(config, packed.longest)
    plan, estimates = duration.estimate_run(config, shape, packed, machine)
    for line in (encoding.describe(checked.train, learned), *packing.describe(config, learned, packed), *estimates):
        logger.info("%s", line)
    shared, attention = sharding.is_sharded(config.hardware), config.hardware.attention
    base = model.load_base(checked.model_folder, config.quant, machine, attention, is_sharded=shared)
    if plan.keep_dequantized:
        model.keep_dequantized(base)
    adapted = model.add_adapter(base, config.lora, config.model.name, config.trainer.seed)
    logger.info("%s", model.describe(adapted))
    checkpoints = checked.folder / "checkpoints"
    last = checkpoint.choose_checkpoint(checkpoints, events) if config.resume is Resume.auto else None
    done = checkpoint.step_of(last) if last else 0
    callback = recorder.EventCallback(events, read_steps(checked.folder, done), read_evaluations(checked.folder))
    arguments = trainer.build_arguments(config, machine, plan, checkpoints, has_valid=held_out is not None)
    runner = trainer.build_trainer(adapted, tokenizer, packed, held_out, arguments, callback, config.hardware)
    runner.kept_checkpoints = config.trainer.keep_checkpoints
    runner.validation = validation.plan_validation(
        config.trainer,
        prompts,
        tokenizer.convert_tokens_to_ids(checked.template.stop_token),
        checkpoints / "best",
        read_evaluations(checked.folder, done),
        callback,
    )
    if config.trainer.micro_batch == "auto":
        candidates = micro_batch.list_candidates(config, shape, plan, packed.longest, machine)
        micro_batch.apply_rows(runner, config, micro_batch.find_rows(runner, packed, candidates))
        micro_batch.record_rows(events, checked.folder, config)
    result = trainer.train(runner, callback, last)
    weights = sharding.gather_trained(adapted)
    if not is_main():
        return

    data = findings.add_counts(encoding.summarize_all(checked.train, learned, checked.valid, held_out))
    manifest = describe_adapter(config, checked, machine, data, asdict(result), export.read_versions())
    export.publish_adapter(adapted, checked.folder / "adapter", manifest, weights)
    conclude(config, checked, events, manifest, encoding.measure_lengths(learned).tolist())


def finish_report(config: TrainConfig, checked: CheckedRun, events: EventWriter, tokens: Path) -> None:
    """Write what a run lacks that was killed between publishing its adapter and its report.

    Args:
        config: The run's configuration.
        checked: What was found when it was checked.
        events: Where to record that it is done.
        tokens: Folder for the rows as token ids, for a moment.
    """
    from train import encoding, model

    tokenizer = model.load_tokenizer(checked.model_folder)
    learned, _ = encoding.encode_all(checked.train, checked.valid, tokenizer, checked.template, config, tokens)
    events.write("log", message="the adapter stood already: its report is written")
    manifest = AdapterManifest.read(checked.folder / "adapter")
    conclude(config, checked, events, manifest, encoding.measure_lengths(learned).tolist())


def conclude(
    config: TrainConfig, checked: CheckedRun, events: EventWriter, manifest: AdapterManifest, lengths: list[int]
) -> None:
    """Report on a run whose adapter stands, and say that it is done."""
    from train import report

    hardware = str(manifest.hardware["name"])
    path = report.write_report(checked.folder, manifest, to_plain(config), sys.argv[1:], hardware, lengths)
    events.write("done", **manifest.metrics)
    following = report.next_command(checked.run_id, sys.argv[1:])
    print(f"adapter: {checked.folder / 'adapter'}\nreport:  {path}\nnext:    {following}")


def describe_adapter(
    config: TrainConfig,
    checked: CheckedRun,
    machine: Any,
    data: dict[str, Any],
    metrics: dict[str, Any],
    versions: dict[str, str],
) -> AdapterManifest:
    """Return the manifest of a finished run's adapter, all but the hashes of its files."""
    return AdapterManifest(
        run_id=checked.run_id,
        base=BaseIdentity.of(checked.model_folder),
        method=config.method.kind.value,
        lora=asdict(config.lora),
        quantization={"kind": config.quant.kind.value, "double": config.quant.double, "dtype": str(machine.dtype)},
        data=data,
        seed=config.trainer.seed,
        template_date=checked.template.date(config.data.template_date),
        metrics=metrics,
        versions=versions,
        created_at=int(time.time()),
        hardware={"name": machine.name, "threads": machine.threads, "processes": config.hardware.processes},
    )


if __name__ == "__main__":
    run_app("train", main)
