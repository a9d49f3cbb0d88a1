"""Rerankers and embedders are trained through the real trainers, go on after Ctrl-C, and learn."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.config import Device
from core.errors import ConfigError, Conflict, NotFound
from core.layout import DataDir
from core.manifest import ModelKind, ModelManifest, verify_files
from retrieval.config import EmbedderConfig, EncoderEngine, LearningConfig, RerankerKind, SearchConfig
from retrieval.embedding import SentenceEmbedder
from retrieval.interaction import Weighting, read_weighting
from retrieval.learning import Target, train_model
from retrieval.lesson import Lesson, Outcome, teach
from retrieval.mining import Example
from retrieval.rerank import Reranker
from tests.fakes.tiny_reranker import write_tiny_encoder

COLOURS = ("red", "blue", "green", "black", "white", "grey")
THINGS = ("pump", "valve", "filter", "light", "desk", "pond")
WORDS = " ".join((*COLOURS, *THINGS, "what of the is colour has a month year duck eats grass"))
CONFIG = LearningConfig(steps=8, batch_size=4, negatives=2, learning_rate=1e-3, save_steps=100)
EXAMPLES = [
    Example(
        f"colour of the {thing}", f"the {thing} is {colour}", (f"duck eats {colour} grass", f"the {other} has a year")
    )
    for colour in COLOURS
    for thing, other in zip(THINGS, THINGS[::-1], strict=True)
]


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    data = DataDir(tmp_path / "data")
    write_tiny_encoder(data.models / "tiny", WORDS)
    return data


def write_set(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS][:count]
    passages = [{"_id": f"p{n}", "title": "", "text": f"the {t} is {c}"} for n, (c, t) in enumerate(pairs)]
    questions = [{"_id": f"q{n}", "text": f"what is the {c} {t}"} for n, (c, t) in enumerate(pairs)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    judged = "".join(f"q{n}\tp{n}\t1\n" for n in range(len(pairs)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


def test_a_lesson_mines_and_judges_in_its_language(data: DataDir, tmp_path: Path) -> None:
    """By words alone: «Haus» finds «Häuser» only where both are German."""
    pairs = {"Haus": "Häuser", "Garten": "Gärten", "Baum": "Bäume", "Stadt": "Städte", "Wald": "Wälder", "Rad": "Räder"}
    folder = tmp_path / "set"
    folder.mkdir()
    passages = [{"_id": f"p{n}", "text": f"alte {many}"} for n, many in enumerate(pairs.values())]
    questions = [{"_id": f"q{n}", "text": one} for n, one in enumerate(pairs)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\tp{n}\t1\n" for n in range(6)))
    before = {}
    for language in ("german", "english"):
        lesson = Lesson(Target.weighted_interaction, [folder], [folder], "tiny", f"new-{language}", language)
        outcome = teach(
            data,
            lesson,
            embedder=EmbedderConfig("tiny", device=Device.cpu),
            search=SearchConfig(dense_weight=0.0),
            learning=replace(CONFIG, steps=2),
        )
        before[language] = outcome.gains[0].before
    assert before["german"] == 1.0
    assert before["english"] < 1.0


def learn(data: DataDir, target: Target, folder: Path, name: str = "new", steps: int = 8) -> Outcome:
    train, valid = (write_set(folder / part, count) for part, count in (("train", 30), ("valid", 36)))
    return teach(
        data,
        Lesson(target, [train], [valid], "tiny", name),
        embedder=EmbedderConfig("tiny", device=Device.cpu),
        search=SearchConfig(),
        learning=replace(CONFIG, steps=steps),
    )


@pytest.mark.parametrize("target", list(Target), ids=lambda target: target.value)
def test_a_lesson_ends_in_a_model_that_loads_and_is_judged(data: DataDir, target: Target, tmp_path: Path) -> None:
    outcome = learn(data, target, tmp_path)
    manifest = ModelManifest.read(outcome.folder)
    verify_files(outcome.folder, manifest.files)
    assert manifest.kind is (ModelKind.EMBEDDER if target is Target.embedder else ModelKind.RERANKER)
    assert manifest.source == "trained from tiny"
    assert outcome.examples == 30
    (gain,) = outcome.gains
    assert (gain.dataset, gain.questions) == ("valid", 36)
    assert 0 < gain.before <= 1
    assert gain.low <= gain.after - gain.before <= gain.high
    assert not data.run("new.training").exists()
    if target is Target.embedder:
        assert SentenceEmbedder(outcome.folder, EmbedderConfig("new", device=Device.cpu)).max_tokens == 62
    else:
        assert Reranker(outcome.folder, EmbedderConfig(device=Device.cpu)).score(
            "pump", [(None, "the pump is red " * 60)]
        ).shape == (1,)


@pytest.mark.parametrize(
    "kind", [RerankerKind.cross_encoder, RerankerKind.late_interaction], ids=lambda kind: kind.value
)
def test_a_reranker_learns_what_it_is_taught(data: DataDir, kind: RerankerKind) -> None:
    config = replace(CONFIG, steps=60, batch_size=8)
    folder = train_model(data, Target.of(kind), EXAMPLES, base="tiny", output_model="new", config=config)
    reranker, by_torch = (
        Reranker(folder, EmbedderConfig(device=Device.cpu, engine=engine))
        for engine in (EncoderEngine.auto, EncoderEngine.torch)
    )
    right = 0
    for example in EXAMPLES:
        passages = [(None, text) for text in (example.positive, *example.negatives)]
        scores = reranker.score(example.question, passages)
        assert np.allclose(scores, by_torch.score(example.question, passages), atol=0.02)
        right += int(scores.argmax() == 0)
    assert right / len(EXAMPLES) >= 0.9


def test_after_ctrl_c_the_same_command_ends_with_the_same_weights(data: DataDir) -> None:
    options = {"base": "tiny", "config": CONFIG}
    whole = train_model(data, Target.late_interaction, EXAMPLES, output_model="whole", **options)  # type: ignore[arg-type]

    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_model(
            data,
            Target.late_interaction,
            EXAMPLES,
            output_model="cut",
            progress=interrupt,
            **options,  # type: ignore[arg-type]
        )
    assert (data.run("cut.training") / "checkpoint-4").is_dir() or (data.run("cut.training") / "checkpoint-3").is_dir()
    assert not data.model("cut").exists()
    seen: list[int] = []
    cut = train_model(
        data, Target.late_interaction, EXAMPLES, output_model="cut",
        progress=lambda _stage, done, _total: seen.append(done), **options,  # type: ignore[arg-type]
    )  # fmt: skip
    assert seen[0] in (4, 5)
    assert seen[-1] == CONFIG.steps
    files = [ModelManifest.read(folder).files["model.safetensors"] for folder in (whole, cut)]
    assert files[0] == files[1]


def test_a_checkpoint_of_another_plan_is_not_gone_on_from(data: DataDir) -> None:
    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"base": "tiny", "output_model": "new"}
    with pytest.raises(KeyboardInterrupt):
        train_model(data, Target.embedder, EXAMPLES, config=CONFIG, progress=interrupt, **options)
    seen: list[int] = []
    train_model(
        data, Target.embedder, EXAMPLES[::-1], config=CONFIG,
        progress=lambda _stage, done, _total: seen.append(done), **options,
    )  # fmt: skip
    assert seen[0] == 1


def test_faults_are_told_before_anything_costly(data: DataDir, tmp_path: Path) -> None:
    valid = write_set(tmp_path / "valid", 36)
    keywords = {"embedder": EmbedderConfig("tiny"), "search": SearchConfig(), "learning": CONFIG}

    def attempt(train: list[Path], base: str = "tiny", name: str = "new") -> None:
        teach(data, Lesson(Target.embedder, train, [valid], base, name), **keywords)  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match="train: wanted at least one folder"):
        attempt([])
    with pytest.raises(NotFound, match="base: wanted an encoder"):
        attempt([valid], base="none")
    with pytest.raises(Conflict, match=r"output_model: .* exists already"):
        attempt([valid], name="tiny")
    with pytest.raises(NotFound, match=r"found no corpus\.jsonl"):
        attempt([tmp_path])
    with pytest.raises(ConfigError, match=r"wanted at least learning\.batch_size=4 questions"):
        attempt([write_set(tmp_path / "few", 2)])


def test_what_a_question_turns_on_is_learned_and_a_passage_is_read_once(data: DataDir, tmp_path: Path) -> None:
    outcome = learn(data, Target.weighted_interaction, tmp_path)
    weighting = read_weighting(outcome.folder)
    assert weighting is not None
    assert (weighting.rarity > 0).all()
    reranker = Reranker(outcome.folder, EmbedderConfig(device=Device.cpu), kept_passages=2)
    assert reranker.settle_weight(None) == weighting.rerank_weight
    assert reranker.settle_weight(0.1) == 0.1
    passages: list[tuple[str | None, str]] = [(None, "the pump is red"), ("desk", "the desk is blue " * 40)]
    scores = reranker.score("what is the red pump", passages)
    assert ((scores > 0) & (scores <= 1)).all()
    assert_likeness_counts(reranker, weighting, passages)
    read: list[str] = []
    model = reranker._model
    encode = model.encode_document

    def encode_and_note(texts: list[str], **options: object) -> object:
        read.extend(texts)
        return encode(texts, **options)

    model.encode_document = encode_and_note
    assert reranker.score("what is the red pump", passages).tolist() == scores.tolist()
    assert read == []
    reranker.score("what is the red pump", [(None, "the pond is white"), passages[0]])
    assert read == ["the pond is white"]
    reranker.score("what is the red pump", passages)
    assert len(read) > 2  # the long one had to go


def assert_likeness_counts(reranker: Reranker, weighting: Weighting, passages: list[tuple[str | None, str]]) -> None:
    """What was learned about likeness counts with any weight above 0, whoever has set it."""
    fused = np.array([1, 0.5], dtype=np.float32)
    for feedback in (0.0, 0.25):
        reranker.take_weighting(replace(weighting, feedback=feedback))
        means = reranker.average(passages)
        near = np.full(2, means[0] @ means[1], dtype=np.float32)
        for weight in (None, 0.0, 0.3):
            mixed, scores = reranker.rank("what is the red pump", passages, fused, weight)
            share = weighting.rerank_weight if weight is None else weight
            rest = fused if weight == 0 else (1 - feedback) * fused + feedback * near
            assert mixed == pytest.approx((1 - share) * rest + share * scores, abs=1e-5)
    reranker.take_weighting(weighting)
