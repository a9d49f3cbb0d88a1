"""What scripts/verdict.py will ask: its configuration, the arms that are possible, and how they are served.

Every fault is named before anything starts. Does not ask or decide.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml
from omegaconf import MISSING
from tokenizers import Tokenizer

from core.config import PathsConfig
from core.errors import ConfigError, NotFound
from core.events import read_events
from core.layout import DataDir, check_name
from evaluation.answers import Answer, Arm
from evaluation.cost import CostConfig
from evaluation.decision import DOCUMENT_ARMS, TUNED_ARMS, DecisionConfig
from evaluation.rules import Situation
from evaluation.verdict import Corpus, Training
from retrieval.database import open_database
from retrieval.status import list_stores
from scripts.server_process import quote_override
from scripts.verdict_update import UpdatedStore

NEAREST = "nearest"
MAX_TEXT_BYTES = 64 * 1024
ASSISTANTS = {"rag": "verdict_rag", "hybrid": "verdict_hybrid", "raft-hybrid": "verdict_raft"}
"""What the arms that search are called at the endpoint."""


@dataclass(slots=True)
class VerdictConfig:
    """What scripts/verdict.py can be told.

    Attributes:
        questions: JSON lines of questions with what a right answer must meet (docs/verdict.md).
        name: Of the report, `reports/verdict-NAME/`; null: the name of the question file.
        store: The store that the arms with documents search; null: those arms are left out.
        run: Id of the fine-tuned run; null: the arms with it are left out.
        raft_run: Id of a run trained to read retrieved passages; null: no such arm.
        base: Name of the base model; null: the run's.
        url: Of a served system to measure; null: serve/run.py is started for as long as it takes.
        arms: With `url`: the model name of each arm there. Arms: base, base-long, rag, fine-tuned, hybrid, raft-hybrid.
        instructions: File with the system message over the passages; null: the server's own.
        long_instructions: File with the system message of the arm base-long; null: no such arm.
        nearest_pattern: Regular expression: what of the best passage is the answer of the arm `nearest` (its first
            group, or all that it matches); null: no such arm.
        k: Passages that an answer is made from.
        limit: Take so many questions, spread evenly over the file; null takes all.
        max_tokens: Most tokens of an answer.
        concurrency: Questions at the same time, for quality.
        latency_questions: So many questions are asked once more, one at a time, for latency; 0: none.
        timeout_s: Longest wait for one answer.
        serve: More overrides of serve/run.py.
        changes: File of changed facts, for the knowledge update test; null: no such test.
        documents: Folder that the store was made from; needed with `changes`.
        updated_run: Id of a run trained on the changed facts; null: fine-tuned arms are not trained again.
        decision: What the verdict must meet.
        cost: Prices and volume.
        situation: For the written rules.
        paths: Where the data directory is.
    """

    questions: str = MISSING
    name: str | None = None
    store: str | None = None
    run: str | None = None
    raft_run: str | None = None
    base: str | None = None
    url: str | None = None
    arms: dict[str, str] = field(default_factory=dict)
    instructions: str | None = None
    long_instructions: str | None = None
    nearest_pattern: str | None = None
    k: int = 3
    limit: int | None = None
    max_tokens: int = 256
    concurrency: int = 8
    latency_questions: int = 10
    timeout_s: float = 600.0
    serve: list[str] = field(default_factory=list)
    changes: str | None = None
    documents: str | None = None
    updated_run: str | None = None
    decision: DecisionConfig = field(default_factory=DecisionConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    situation: Situation = field(default_factory=Situation)
    paths: PathsConfig = field(default_factory=PathsConfig)

    def __post_init__(self) -> None:
        """Check ranges, and what one key alone cannot tell."""
        faults = [
            f"{name}: wanted {wanted}, found {value!r}"
            for name, is_good, wanted, value in (
                ("k", 1 <= self.k <= 50, "1 to 50", self.k),
                ("limit", self.limit is None or self.limit >= 1, "at least 1", self.limit),
                ("max_tokens", self.max_tokens >= 1, "at least 1", self.max_tokens),
                ("concurrency", 1 <= self.concurrency <= 256, "1 to 256", self.concurrency),
                ("latency_questions", self.latency_questions >= 0, "at least 0", self.latency_questions),
                ("timeout_s", self.timeout_s > 0, "above 0", self.timeout_s),
            )
            if not is_good
        ]
        known = (*ASSISTANTS, "base", "base-long", "fine-tuned")
        if unknown := [arm for arm in self.arms if arm not in known]:
            faults.append(f"arms: wanted some of {', '.join(known)}; found {', '.join(unknown)}")
        if self.url is not None and not self.arms:
            faults.append(
                "arms: wanted the model name of each arm at url, found none. Add +arms.base=NAME +arms.rag=NAME"
            )
        if self.url is None and self.arms:
            faults.append("arms: wanted with url only; without it the arms follow from store, run and raft_run")
        if self.changes is not None and self.url is not None:
            faults.append("changes: wanted without url: the store of a system that runs elsewhere is left alone")
        if self.changes is not None and (self.documents is None or self.store is None):
            faults.append("changes: wanted with store and documents, the folder that the store was made from")
        if self.nearest_pattern is not None and self.store is None:
            faults.append("nearest_pattern: wanted with a store to search")
        if faults:
            raise ConfigError("; ".join(faults))


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be asked.

    Attributes:
        name: Of the report.
        base: The base model's name.
        arms: In the order in which they are asked.
        nearest: The pattern of the arm that answers without a model; None where there is none.
        left_out: Arms that are not run, with the reason.
        runs: The run behind each fine-tuned arm.
        instructions: The system message over the passages; None for the server's own.
        updated_run: The run trained on the changed facts, or None.
    """

    name: str
    base: str
    arms: list[Arm]
    nearest: str | None
    left_out: dict[str, str]
    runs: dict[str, str]
    instructions: str | None
    updated_run: str | None = None

    @property
    def searches(self) -> bool:
        """Tell whether some arm searches a store."""
        return self.nearest is not None or any(arm.name in DOCUMENT_ARMS for arm in self.arms)

    def arms_after(self, config: VerdictConfig, *, has_updated_store: bool = True) -> list[Arm]:
        """Return the arms after the facts changed: over the new store, and trained again where they were."""
        after = []
        for arm in self.arms:
            if arm.name in ASSISTANTS and has_updated_store:
                after.append(replace(arm, model=f"{ASSISTANTS[arm.name]}_updated"))
            elif arm.name == "fine-tuned" and config.updated_run:
                after.append(replace(arm, model=config.updated_run))
            else:
                after.append(arm)
        return after

    def describe_update(
        self, arm: str, changes: int, sync_s: float | None, training_s: float | None = None
    ) -> tuple[str, float | None]:
        """Return what was done for an arm when facts changed, and the seconds that it took; None for nothing."""
        parts, seconds = [], []
        if arm in DOCUMENT_ARMS and sync_s is not None:
            parts.append(f"{changes} changed documents ingested again")
            seconds.append(sync_s)
        if arm in ("fine-tuned", "hybrid") and self.updated_run is not None:
            parts.append("trained again")
            seconds.append(training_s or 0.0)
        elif arm in TUNED_ARMS:
            parts.append("not trained again")
        return ", ".join(parts) or "nothing to do", sum(seconds) if seconds else None


def make_plan(config: VerdictConfig, data: DataDir) -> Plan:
    """Find out which arms are possible.

    Raises:
        ConfigError: A run has another base, a pattern cannot be read, or no arm is left.
        NotFound: A run, or a file of instructions, does not exist.
    """
    name = check_name(config.name or Path(config.questions).stem, "name")
    instructions = read_text(config.instructions, "instructions")
    long_instructions = read_text(config.long_instructions, "long_instructions")
    if config.nearest_pattern is not None:
        _check_pattern(config.nearest_pattern)
    if config.url is not None:
        arms = [
            Arm(arm, model, long_instructions if arm == "base-long" else None) for arm, model in config.arms.items()
        ]
        return Plan(name, config.arms.get("base", ""), arms, config.nearest_pattern, {}, {}, instructions)
    runs = {"run": config.run, "raft_run": config.raft_run, "updated_run": config.updated_run}
    bases = {run: read_base(data, run, key) for key, run in runs.items() if run is not None}
    base = config.base or next(iter(bases.values()), None)
    if base is None:
        raise ConfigError("base: wanted the base model's name, or a run to take it from; found neither.", param="base")
    if foreign := [f"{run} ({of})" for run, of in bases.items() if of != base]:
        raise ConfigError(f"base: wanted runs of {base}, found {', '.join(foreign)}.", param="base")
    if not (data.model(base) / "config.json").is_file():
        raise NotFound(f"base: wanted a model in {data.model(base)}, found none. See ls {data.models}", param="base")
    left_out = {
        arm: reason
        for arm, is_missing, reason in (
            ("base-long", long_instructions is None, "long_instructions names no file"),
            ("rag", config.store is None, "store names none"),
            ("fine-tuned", config.run is None, "run names none"),
            ("hybrid", config.run is None or config.store is None, "it needs run and store"),
            ("raft-hybrid", config.raft_run is None or config.store is None, "it needs raft_run and store"),
        )
        if is_missing
    }
    models = {
        "base": Arm("base", base),
        "base-long": Arm("base-long", base, long_instructions),
        "rag": Arm("rag", ASSISTANTS["rag"]),
        "fine-tuned": Arm("fine-tuned", config.run or ""),
        "hybrid": Arm("hybrid", ASSISTANTS["hybrid"]),
        "raft-hybrid": Arm("raft-hybrid", ASSISTANTS["raft-hybrid"]),
    }
    arms = [arm for key, arm in models.items() if key not in left_out]
    tuned = {"fine-tuned": config.run, "hybrid": config.run, "raft-hybrid": config.raft_run}
    used = {arm.name: str(tuned[arm.name]) for arm in arms if arm.name in TUNED_ARMS}
    return Plan(name, base, arms, config.nearest_pattern, left_out, used, instructions, config.updated_run)


def read_text(path: str | None, key: str) -> str | None:
    """Return a file's text, or None for no file."""
    if path is None:
        return None
    file = Path(path)
    if not file.is_file():
        raise NotFound(f"{key}: wanted a text file, found nothing at {file}. Check the path.", param=key)
    if file.stat().st_size > MAX_TEXT_BYTES:
        raise ConfigError(f"{key}: wanted at most {MAX_TEXT_BYTES:,} bytes, found {file.stat().st_size:,}.", param=key)
    return file.read_text(encoding="utf-8").strip() or None


def _check_pattern(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"nearest_pattern: wanted a regular expression, found {pattern!r} ({error}).") from error


def read_base(data: DataDir, run: str, key: str) -> str:
    """Return the name of a run's base model.

    Raises:
        NotFound: There is no such run, or it has published no adapter.
    """
    folder = data.run(run)
    if not (folder / "adapter" / "manifest.json").is_file():
        raise NotFound(f"{key}: wanted a finished run in {folder}, found no adapter. See ls {data.runs}", param=key)
    return str(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["model"]["name"])


def list_serve_options(config: VerdictConfig, plan: Plan, updated_store: str | None) -> list[str]:
    """Return what serve/run.py is told: base, adapters, and an assistant for each arm that searches."""
    runs = dict.fromkeys([*plan.runs.values(), *([config.updated_run] if config.updated_run else [])])
    models = {"rag": plan.base, "hybrid": config.run, "raft-hybrid": config.raft_run}
    updated_models = models | ({"hybrid": config.updated_run} if config.updated_run else {})
    options = [
        f"+model.name={quote_override(plan.base)}",
        f"adapters=[{','.join(map(quote_override, runs))}]",
        f"paths.data_dir={quote_override(str(Path(config.paths.data_dir).resolve()))}",
    ]
    for arm in plan.arms:
        if arm.name in ASSISTANTS:
            name = ASSISTANTS[arm.name]
            options.append(_list_assistant(name, str(models[arm.name]), str(config.store), config.k, plan.instructions))
            if updated_store is not None:
                model = str(updated_models[arm.name])
                options.append(_list_assistant(f"{name}_updated", model, updated_store, config.k, plan.instructions))
    return [*options, *config.serve]


def _list_assistant(name: str, model: str, store: str, k: int, instructions: str | None) -> str:
    parts = [f"model: {quote_override(model)}", f"stores: [{quote_override(store)}]", f"k: {k}"]
    if instructions is not None:
        parts.append(f"instructions: {quote_override(instructions)}")
    return f"+assistants.{name}={{{', '.join(parts)}}}"


def read_trainings(plan: Plan, data: DataDir) -> dict[str, Training]:
    """Return what the training behind each fine-tuned arm took."""
    found = {arm: read_training(data, run) for arm, run in plan.runs.items()}
    return {arm: training for arm, training in found.items() if training is not None}


def read_training(data: DataDir, run: str) -> Training | None:
    """Return what a run's training took, from its own events; None where they do not say."""
    folder = data.run(run)
    done = [event for event in read_events(folder / "events.jsonl") if event["type"] == "done"]
    manifest = json.loads((folder / "adapter" / "manifest.json").read_text(encoding="utf-8"))
    rows = manifest.get("data", {}).get("train", {}).get("rows")
    return Training(float(done[-1]["tokens"]), float(done[-1]["seconds"]), rows) if done else None


def read_corpus(
    config: VerdictConfig, data: DataDir, plan: Plan, answers: Sequence[Answer], updated: UpdatedStore | None
) -> Corpus | None:
    """Return how much stands in the store: its chunks times the mean length of those that were read.

    Returns:
        None where nothing was searched, or the store is not on this machine.
    """
    if not plan.searches or config.store is None or config.url is not None:
        return None
    database = open_database(data.database)
    try:
        status = next((one for one in list_stores(database) if one.store == config.store), None)
    finally:
        database.dispose()
    if status is None:
        return None
    texts = list({hit.chunk_id: hit.text for answer in answers for hit in answer.hits}.values())
    tokenizer = Tokenizer.from_file(str(data.model(plan.base) / "tokenizer.json"))
    lengths = [len(encoded.ids) for encoded in tokenizer.encode_batch(texts, add_special_tokens=False)]
    mean = sum(lengths) / len(lengths) if lengths else 0.0
    return Corpus(status.chunks * mean, status.files, updated.ingest_s if updated else None)
