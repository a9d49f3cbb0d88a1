"""Training a reranker or an embedder on questions and passages, by sentence-transformers' trainers.

    question sets → candidates of our own search → examples → train, with checkpoints → models/<name>, with a manifest

A run that was interrupted goes on from its last checkpoint when the same command is given again. The weights of a
weighted interaction are learned without a trainer (weighing.py), in too short a time for checkpoints. Weights are
safetensors; only a run's own checkpoints hold more, in a folder that is removed when the run is done. Does not print;
it reports through a callback. Does not know stores.

Source: Khattab & Zaharia, «ColBERT», 2020, https://arxiv.org/abs/2004.12832, section 3, for late interaction; Henderson
et al., 2017, https://arxiv.org/abs/1705.00652, section 4.4, for the other questions' passages as negatives.
"""

import json
import logging
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

from core.errors import Conflict, NotFound
from core.layout import DataDir, sha256_bytes, write_folder, write_json
from core.manifest import MODEL_MANIFEST, ModelKind, ModelManifest, hash_files, refuse_code_bearing
from core.next_command import write_next_command
from retrieval.config import Dtype, EmbedderConfig, LearningConfig, RerankerKind
from retrieval.interaction import Weighting, write_weighting
from retrieval.mining import Example, RankedQuestion
from retrieval.rerank import Reranker
from retrieval.weighing import learn_weighting

logger = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
RECORD_FILE = "training.json"
SCALE = 20.0
"""What cosines are multiplied by before the softmax: sentence-transformers' own default."""
WARMUP_SHARE = 0.1
KEPT_PASSAGES = 8192
"""Passages that are read once only while a model is learned and judged; 120 kB each."""

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much is done, and of how much."""


class Target(Enum):
    """What is trained."""

    weighted_interaction = "weighted_interaction"
    cross_encoder = "cross_encoder"
    late_interaction = "late_interaction"
    embedder = "embedder"

    @classmethod
    def of(cls, kind: RerankerKind) -> "Target":
        """Return the target of a kind of reranker."""
        return cls(kind.value)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides what is trained; a checkpoint of another plan is not gone on from.

    Attributes:
        target: What is trained.
        base: Name of the encoder that it begins with.
        base_sha256: Over the encoder's files.
        examples_sha256: Over the examples, in their order.
        options: The configuration group `learning`.
    """

    target: str
    base: str
    base_sha256: str
    examples_sha256: str
    options: dict[str, Any]


def check_base(data: DataDir, base: str, output_model: str) -> Path:
    """Return the encoder's folder, and refuse a name that is taken.

    Raises:
        NotFound: There is no such encoder.
        InvalidFile: It holds weights in a format that can carry code.
        Conflict: A model of the new name exists.
    """
    folder = data.model(base)
    if not (folder / "config.json").is_file():
        command = write_next_command("scripts/models.py", "get", base, data_dir=data.root)
        raise NotFound(f"base: wanted an encoder in {folder}, found none. Run: {command}", param="base")
    refuse_code_bearing(folder)
    if data.model(output_model).exists():
        raise Conflict(
            f"output_model: {data.model(output_model)} exists already. Choose another name, or remove the folder.",
            param="output_model",
        )
    return folder


def train_model(
    data: DataDir,
    target: Target,
    examples: Sequence[Example],
    *,
    base: str,
    output_model: str,
    config: LearningConfig,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Path:
    """Train a model and publish it whole under models/.

    Args:
        data: The data directory.
        target: What is trained.
        examples: What it learns from, in order.
        base: Name of the encoder that it begins with.
        output_model: The new model's name.
        config: How it is trained.
        progress: Called after each step.

    Returns:
        The new model's folder.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came; the step under way was ended and saved.
    """
    folder = check_base(data, base, output_model)
    plan = _make_plan(target, folder, [asdict(example) for example in examples], config)
    run = data.run(f"{output_model}.training")
    checkpoint = _prepare_run(run, plan)
    model = _make_model(target, folder)
    longest, model.max_seq_length = model.max_seq_length, min(model.max_seq_length, config.max_tokens)
    trainer = _make_trainer(target, model, examples, config, run)
    watcher = _make_watcher(config.steps, progress)
    trainer.add_callback(watcher)
    with _listen(watcher):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if watcher.is_stopped:
        raise KeyboardInterrupt
    model.max_seq_length = longest
    _publish(data, target, model, plan, output_model, folder)
    shutil.rmtree(run)
    return data.model(output_model)


def weigh_tokens(
    data: DataDir,
    sets: Sequence[Sequence[RankedQuestion]],
    *,
    base: str,
    output_model: str,
    embedder: EmbedderConfig,
    config: LearningConfig,
    progress: Progress = lambda _stage, _done, _total: None,
) -> Path:
    """Learn the weights of tokens and scores, and publish the encoder and those whole under models/.

    Takes a minute or two and keeps no checkpoints: interrupted, it leaves nothing and begins anew.

    Args:
        data: The data directory.
        sets: Ranked questions by set.
        base: Name of the encoder, which stays as it is.
        output_model: The new model's name.
        embedder: Device, engine and dtype that the encoder runs with.
        config: How the questions were drawn, for the record.
        progress: Called after each question that is read.

    Returns:
        The new model's folder.
    """
    folder = check_base(data, base, output_model)
    rows = [[one.question, one.passages, one.relevant.tolist()] for questions in sets for one in questions]
    plan = _make_plan(Target.weighted_interaction, folder, rows, config)
    run = data.run(f"{output_model}.training")
    shutil.rmtree(run, ignore_errors=True)
    model = _make_model(Target.late_interaction, folder)
    model.save_pretrained(str(run / "encoder"), create_model_card=False)
    reader = Reranker(run / "encoder", embedder, kept_passages=KEPT_PASSAGES)
    weighting = learn_weighting(sets, reader, lambda done, total: progress("reading questions", done, total))
    _publish(data, Target.weighted_interaction, model, plan, output_model, folder, weighting)
    shutil.rmtree(run)
    return data.model(output_model)


def _make_plan(target: Target, base: Path, examples: Sequence[Any], config: LearningConfig) -> Plan:
    options = {key: value.value if isinstance(value, Enum) else value for key, value in asdict(config).items()}
    contents = json.dumps(examples, ensure_ascii=False).encode()
    files = json.dumps(hash_files(base), sort_keys=True).encode()
    return Plan(target.value, base.name, sha256_bytes(files), sha256_bytes(contents), options)


def _prepare_run(run: Path, plan: Plan) -> Path | None:
    """Make the run's folder and return its last whole checkpoint; one of another plan is begun anew."""
    if (run / PLAN_FILE).is_file() and json.loads((run / PLAN_FILE).read_text(encoding="utf-8")) == asdict(plan):
        whole = [path for path in run.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    shutil.rmtree(run, ignore_errors=True)
    write_json(run / PLAN_FILE, asdict(plan))
    return None


def _make_model(target: Target, base: Path) -> Any:
    """Return the untrained model around an encoder."""
    import transformers
    from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # that the new head has no weights yet is no news
    transformers.set_seed(0)
    if target is Target.cross_encoder:
        return CrossEncoder(str(base), num_labels=1, local_files_only=True)
    embedder = SentenceTransformer(str(base), local_files_only=True)
    if target is Target.embedder:
        return embedder
    tokenizer = embedder.tokenizer
    marks = [token for token in (tokenizer.cls_token, tokenizer.sep_token) if token]
    mask = MultiVectorMask(skiplist_words=marks, skiplist_tasks=["query", "document"])
    modules = [embedder[0], mask, Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=modules, similarity_fn_name="meanmaxsim")


def _make_trainer(target: Target, model: Any, examples: Sequence[Example], config: LearningConfig, run: Path) -> Any:
    """Return sentence-transformers' trainer of a model, with its loss."""
    import sentence_transformers as library
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
    from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import PrinterCallback

    if target is Target.cross_encoder:
        import torch

        loss: Any = BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(config.negatives)))
        names: tuple[str, str] = ("CrossEncoderTrainer", "CrossEncoderTrainingArguments")
    elif target is Target.late_interaction:
        loss = MultiVectorMultipleNegativesRankingLoss(model, scale=SCALE, similarity_fct=mean_colbert_scores)
        names = ("MultiVectorEncoderTrainer", "MultiVectorEncoderTrainingArguments")
    else:
        loss = MultipleNegativesRankingLoss(model, scale=SCALE)
        names = ("SentenceTransformerTrainer", "SentenceTransformerTrainingArguments")
    make_trainer, make_arguments = (getattr(library, name) for name in names)
    trainer = make_trainer(
        model=model,
        args=make_arguments(**_choose_arguments(target, config, run)),
        train_dataset=_make_dataset(target, examples),
        loss=loss,
    )
    for talkative in (PrinterCallback, trainer.model_card_callback_class):
        trainer.remove_callback(talkative)
    return trainer


def _choose_arguments(target: Target, config: LearningConfig, run: Path) -> dict[str, Any]:
    """Return what the trainer is told."""
    import torch

    from retrieval.embedding import pick_dtype

    is_cuda = torch.cuda.is_available()
    dtype = pick_dtype(is_cuda=is_cuda)
    is_pairs = target is Target.cross_encoder
    return {
        "output_dir": str(run),
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size * (1 + config.negatives if is_pairs else 1),
        "learning_rate": config.learning_rate,
        "warmup_steps": max(1, int(config.steps * WARMUP_SHARE)),
        "weight_decay": 0.01,
        "bf16": dtype is Dtype.bfloat16,
        "fp16": dtype is Dtype.float16,
        "use_cpu": not is_cuda,
        "save_steps": config.save_steps,
        "save_total_limit": 2,
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": is_cuda,
        "seed": config.seed,
        # a passage that answers two questions of a batch would be held against itself
        "batch_sampler": "batch_sampler" if is_pairs else "no_duplicates",
    }


def _make_dataset(target: Target, examples: Sequence[Example]) -> Any:
    """Return the examples as rows: labelled pairs for a cross-encoder, one row a question for the others."""
    from datasets import Dataset

    if target is Target.cross_encoder:
        pairs = [
            {"question": example.question, "passage": passage, "label": float(place == 0)}
            for example in examples
            for place, passage in enumerate((example.positive, *example.negatives))
        ]
        return Dataset.from_list(pairs)
    return Dataset.from_list(
        [
            {
                "question": example.question,
                "positive": example.positive,
                **{f"negative_{place}": text for place, text in enumerate(example.negatives)},
            }
            for example in examples
        ]
    )


def _make_watcher(steps: int, progress: Progress) -> Any:
    """Return a callback that reports each step and, after a signal, saves and stops."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        """Follows a run."""

        is_stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002  (its name)
            """Report, and end the run in good order once a signal has come."""
            progress("training", state.global_step, steps)
            if self.is_stopped:
                control.should_save = control.should_training_stop = True

    return Watcher()


@contextmanager
def _listen(watcher: Any) -> Iterator[None]:
    """Note Ctrl-C and SIGTERM while the body runs; a second one ends it at once."""

    def note(number: int, _frame: FrameType | None) -> None:
        if watcher.is_stopped:
            raise KeyboardInterrupt
        watcher.is_stopped = True
        logger.warning("%s: ending after this step, with a checkpoint", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _publish(
    data: DataDir,
    target: Target,
    model: Any,
    plan: Plan,
    output_model: str,
    base: Path,
    weighting: Weighting | None = None,
) -> None:
    """Write the model's folder whole, with what it was trained on and a manifest."""
    licence = ModelManifest.read(base).licence if (base / MODEL_MANIFEST).is_file() else "unknown: see the base model"
    kind = ModelKind.EMBEDDER if target is Target.embedder else ModelKind.RERANKER
    with write_folder(data.model(output_model)) as partial:
        model.save_pretrained(str(partial), create_model_card=False)
        if weighting is not None:
            write_weighting(partial, weighting)
        write_json(partial / RECORD_FILE, asdict(plan))
        manifest = ModelManifest(output_model, kind, f"trained from {plan.base}", None, licence, hash_files(partial))
        manifest.write(partial)
