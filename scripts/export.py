"""Merge a run's adapter into its base and write a whole model: `python scripts/export.py run=ID [onto=original|nf4]`.

First measures, on the run's held-out chats, the adapter as trained, merged onto the base's original weights and merged
onto the NF4-rounded ones, and prints the three side by side; then writes models/<output>/: safetensors, tokenizer,
chat template and Loam's manifest, whole or not at all. The choice between the two is explained in
docs/training.md. Keys stand in conf/export.yaml. Does not know how to train or serve.
"""

from core.entry import begin_program

begin_program()

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import MISSING, DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from core.config import PathsConfig, load_config, run_app
from core.errors import ConfigError, Conflict, LoamError, NotFound, StorageFull
from core.layout import DataDir, check_name, write_folder
from core.logs import configure_logging
from core.manifest import (
    AdapterManifest,
    BaseIdentity,
    ModelKind,
    ModelManifest,
    check_adapter,
    hash_files,
    verify_files,
)
from core.next_command import write_next_command
from train.config import SERVED_RANKS, HardwareConfig, QuantConfig, QuantKind, TrainConfig, resolve_path
from train.data import check_data
from train.template import find_template

if TYPE_CHECKING:  # torch takes seconds to import, and a wrong key is refused before
    from train.encoding import Encoded
    from train.hardware import Machine
    from train.held_out import Prediction
    from train.merge import Delta, Rounding

logger = logging.getLogger("export")
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)

AS_TRAINED = "adapter as trained"


class Onto(Enum):
    """Which weights an adapter is merged into."""

    original = "original"
    nf4 = "nf4"


@dataclass(slots=True)
class ExportConfig:
    """What scripts/export.py can be told.

    Attributes:
        run: Id of the finished run.
        onto: `original`: the base's own weights; `nf4`: the rounded ones that a QLoRA adapter was trained against.
        output: Name of the new model under models/; None: the run's id and `-merged` or `-merged-nf4`.
        measure: Measure all three on the run's held-out chats first.
        rows: At most so many held-out rows, the first ones; None takes all.
        paths: Where the data directory is.
        hardware: What it runs on.
    """

    run: str = MISSING
    onto: Onto = Onto.original
    output: str | None = None
    measure: bool = True
    rows: int | None = 500
    paths: PathsConfig = field(default_factory=PathsConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if self.output is not None:
            check_name(self.output, "output")
        if self.rows is not None and self.rows < 1:
            raise ConfigError(f"rows: wanted at least 1, found {self.rows}", param="rows")

    @property
    def output_name(self) -> str:
        """Name of the new model."""
        return self.output or f"{self.run}-merged{'-nf4' if self.onto is Onto.nf4 else ''}"


@dataclass(frozen=True, slots=True)
class CheckedExport:
    """A merge that nothing stands against.

    Attributes:
        run: The run's folder.
        base: The base model's folder.
        manifest: Of the adapter.
        licence: Of the base.
        target: The folder to write.
    """

    run: Path
    base: Path
    manifest: AdapterManifest
    licence: str
    target: Path


def check_export(config: ExportConfig) -> CheckedExport:
    """Check everything that can be known without torch.

    Raises:
        LoamError: The run is not there, does not fit its base, or the target cannot be written.
    """
    data = DataDir(Path(config.paths.data_dir))
    run = data.run(config.run)
    if not (run / "adapter" / "manifest.json").is_file():
        raise NotFound(f"run: wanted a finished run in {run}, found none. See which there are: ls {data.runs}")
    base = data.model(AdapterManifest.read(run / "adapter").base.name)
    base_manifest = ModelManifest.read(base)
    verify_files(base, base_manifest.files)
    manifest = check_adapter(run / "adapter", BaseIdentity.of(base), max(SERVED_RANKS))
    if config.onto is Onto.nf4 and manifest.quantization["kind"] != QuantKind.nf4.value:
        raise ConfigError(f"onto: {config.run} was trained on the base's own weights. Use onto=original.", param="onto")
    target = data.model(config.output_name)
    if target.exists():
        raise Conflict(f"output: {target} exists already. Choose another: output=NAME, or remove the folder.")
    needed = sum(path.stat().st_size for path in base.iterdir() if path.is_file())
    free = shutil.disk_usage(data.models).free
    if free < needed:
        raise StorageFull(f"{data.models}: wanted {needed / 2**30:.1f} GiB free, found {free / 2**30:.1f}. Free some.")
    return CheckedExport(run, base, manifest, base_manifest.licence, target)


def read_held_out(checked: CheckedExport, rows: int | None) -> "Encoded | None":
    """Return the run's held-out rows as training saw them, or None, with a line that says why."""
    from train.encoding import Encoded, encode_chats
    from train.model import load_tokenizer

    if checked.manifest.method != "sft":
        logger.info("not measured: the run's method is %s, whose held-out rows are pairs", checked.manifest.method)
        return None
    try:
        trained = load_config(DictConfig(OmegaConf.load(checked.run / "config.yaml")), TrainConfig)
        if trained.data.valid is None:
            logger.info("not measured: the run has no held-out rows (data.valid)")
            return None
        template = find_template(checked.base)
        file = check_data(resolve_path(trained.data.valid), trained.data, template, "data.valid")
        with tempfile.TemporaryDirectory() as folder:
            encoded = encode_chats(
                file,
                load_tokenizer(checked.base),
                template,
                max_length=trained.trainer.max_length,
                date=checked.manifest.template_date,
                path=Path(folder) / "valid.arrow",
            )
            examples = encoded.examples[:rows]
    except LoamError as error:
        logger.warning("not measured: the run's held-out rows cannot be read: %s", error.message)
        return None
    recorded = checked.manifest.data.get("valid")
    if recorded and recorded["sha256"] != file.sha256:
        logger.warning("%s has changed since the run: the figures are not those of its report", file.path)
    return Encoded(examples, encoded.tokens, encoded.trained_tokens)


def measure_ways(
    checked: CheckedExport, held_out: "Encoded", machine: "Machine", delta: "Delta", rounding: "Rounding | None"
) -> dict[str, "Prediction"]:
    """Return how well the adapter predicts the held-out rows as trained and merged in each way.

    One model is in memory at a time.
    """
    from train.held_out import measure_prediction
    from train.merge import merge_model, read_stored_dtype
    from train.model import load_base

    dtype = read_stored_dtype(checked.base)
    plain = QuantConfig(kind=QuantKind.none, double=False)
    found = {}
    ways: list[tuple[str, Rounding | None]] = [("merged onto the original weights", None)]
    ways += [("merged onto the NF4-rounded weights", rounding)] if rounding else []
    with follow(len(held_out.examples) * (len(ways) + 1)) as advance:
        model = load_as_trained(checked, machine)
        found[AS_TRAINED] = measure_prediction(model, held_out.examples, advance)
        del model
        for name, held in ways:
            merged = load_base(checked.base, plain, machine, "sdpa")
            merge_model(merged, delta, held, dtype)
            found[name] = measure_prediction(merged, held_out.examples, advance)
            del merged
    return found


def load_as_trained(checked: CheckedExport, machine: "Machine") -> Any:
    """Return the base as training held it, with the adapter on it."""
    from peft import PeftModel

    from train.model import keep_dequantized, load_base

    kind = QuantKind(checked.manifest.quantization["kind"])
    quant = QuantConfig(kind=kind, double=bool(checked.manifest.quantization.get("double")))
    base = load_base(checked.base, quant, machine, "sdpa")
    keep_dequantized(base)  # on a CPU, bitsandbytes answers by a coarser product than training uses
    return PeftModel.from_pretrained(base, checked.run / "adapter", local_files_only=True)


@contextmanager
def follow(total: int) -> Iterator[Any]:
    """Yield what to call after each row: a bar on a terminal, a plain line now and then elsewhere."""
    if sys.stderr.isatty():
        columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("measuring", total=total)
            yield lambda: bar.advance(task)
        return
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if done % max(1, total // 10) == 0:
            logger.info("measured %d of %d", done, total)

    yield count


def draw_ways(found: dict[str, "Prediction"]) -> Table:
    """Return the measured figures with each way's difference from the adapter as trained."""
    trained = found[AS_TRAINED]
    table = Table("weights", "loss", "difference", "token accuracy", "difference")
    for name, way in found.items():
        differences = (f"{way.loss - trained.loss:+.4f}", f"{way.token_accuracy - trained.token_accuracy:+.2%}")
        loss, accuracy = ("", "") if name == AS_TRAINED else differences
        table.add_row(name, f"{way.loss:.4f}", loss, f"{way.token_accuracy:.2%}", accuracy)
    return table


def explain(onto: Onto, kind: str) -> str:
    """Return in words what the chosen merge keeps and what it gives up."""
    if kind != QuantKind.nf4.value:
        return "The adapter was trained on the base's own weights: merging loses only the last rounding."
    if onto is Onto.original:
        return (
            "onto=original: the base's own weights and the adapter, as vLLM serves the adapter beside its base. The "
            "adapter was trained against NF4-rounded weights, so its answers can differ a little from training's; the "
            "rounding itself does not enter the model."
        )
    return (
        "onto=nf4: the NF4-rounded weights and the adapter, exactly what training saw. The rounding stays in the model "
        "for good, for every question, also where the adapter has learned nothing."
    )


def write_model(
    config: ExportConfig, checked: CheckedExport, delta: "Delta", rounding: "Rounding | None"
) -> ModelManifest:
    """Write the merged model and its manifest."""
    from train.merge import merge_files

    name = config.output_name
    source = f"run {config.run} merged onto {checked.base.name} ({config.onto.value})"
    with write_folder(checked.target) as partial:
        merge_files(checked.base, partial, delta, rounding, lambda done, of: logger.info("merged %d/%d", done, of))
        (partial / "model.json").unlink()  # the base's own manifest
        manifest = ModelManifest(name, ModelKind.LLM, source, None, checked.licence, hash_files(partial))
        manifest.write(partial)
    return manifest


def main(composed: DictConfig) -> None:
    """Check, measure, explain, merge, write."""
    configure_logging()
    config = load_config(composed, ExportConfig)
    checked = check_export(config)
    from train.hardware import find_machine
    from train.merge import Delta, Rounding, build_skeleton, list_rounded, name_dtype
    from train.model import quiet_libraries

    quiet_libraries()
    quantization = checked.manifest.quantization
    delta = Delta.read(checked.run / "adapter")
    rounding = None
    if quantization["kind"] == QuantKind.nf4.value:
        names = list_rounded(build_skeleton(checked.base))
        rounding = Rounding(names, double=bool(quantization["double"]), dtype=name_dtype(quantization["dtype"]))
    held_out = read_held_out(checked, config.rows) if config.measure else None
    if held_out is not None:
        found = measure_ways(checked, held_out, find_machine(config.hardware), delta, rounding)
        console.print(f"{len(held_out.examples)} held-out rows, {found[AS_TRAINED].tokens:,} learned tokens")
        console.print(draw_ways(found))
    console.print(explain(config.onto, quantization["kind"]))
    manifest = write_model(config, checked, delta, rounding if config.onto is Onto.nf4 else None)
    console.print(f"wrote {checked.target} (licence: {manifest.licence})", soft_wrap=True)
    words = (f"+model.name={manifest.name}", "adapters=[]")
    following = write_next_command("serve/run.py", *words, data_dir=config.paths.data_dir)
    console.print(f"next: {following}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    run_app("export", main)
