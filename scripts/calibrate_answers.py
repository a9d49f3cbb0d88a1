"""Calibrate what answers rest on, on labelled questions: python scripts/calibrate_answers.py [DATASET] [--plot PATH].

Two questions, both without a language model, on passages that are ingested into a throw-away data directory:

- Citations. From each question and its answer a claim is made («Who proclaimed the embargo?» and «OAPEC» become
  «proclaimed the embargo OAPEC.»): people's rewording of the passage. It must be cited to a passage that holds the
  answer. The same claim with another question's answer of the same kind, from another article or from the
  same passage, must not be cited. Every pair of thresholds is tried; the one with the most right citations among those
  of the precision that `--precision` wants is recommended.
- Silence. The best passage's score decides whether an answer is tried at all. How many questions with an answer are
  declined, and how many without one are let through, at each threshold: questions that were written against the same
  passages and are not answered by them (`unanswerable.jsonl`), and questions about something else (other sets).

Does not know how a model answers.
"""

from core.entry import begin_program

begin_program()

import argparse
import json
import random
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import run_command
from core.errors import NotFound
from core.layout import default_data_dir
from core.logs import configure_logging
from retrieval.beir import Collection, read_collection
from retrieval.config import EmbedderConfig, SearchConfig
from retrieval.searcher import Hit, Searcher
from scripts.bench_retrieval import STORE, BenchConfig, ingest_passages, link_models
from serve.citing import CALIBRATED, Source, Thresholds, choose_source, find_candidates

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
K = 3
"""Passages that an assistant reads unless it is told otherwise."""
COVERAGES = [round(value, 2) for value in np.arange(0.3, 1.0, 0.05).tolist()]
SIMILARITIES = [round(value, 2) for value in np.arange(0.0, 0.75, 0.05).tolist()]
QUESTION_WORDS = re.compile(r"\b(?:who|whom|whose|what|which|when|where|why|how|did|does|do)\b", re.IGNORECASE)
KINDS = ("right", "other article", "same passage")
LEAST_PRECISION = 0.9


@dataclass(frozen=True, slots=True)
class Question:
    """A question with what answers it.

    Attributes:
        text: The question.
        answers: Accepted answers; empty where nothing answers it.
        passage: Id of the passage that it was written against.
    """

    text: str
    answers: tuple[str, ...]
    passage: str

    @property
    def article(self) -> str:
        """The article that its passage is of."""
        return self.passage.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, and how the retrieved passages support it.

    Attributes:
        kind: One of KINDS.
        coverages: Share of its words that each source holds, -1 where it lacks a number or a name; (sources,).
        similarities: Cosine with each source; (sources,).
        is_right: Whether each source holds the answer; (sources,) bool.
    """

    kind: str
    coverages: NDArray[np.float64]
    similarities: NDArray[np.float64]
    is_right: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pair of thresholds comes to.

    Attributes:
        thresholds: The pair.
        right: True claims that are cited to a passage that holds the answer.
        misplaced: True claims that are cited to another one.
        citable: True claims with such a passage among those retrieved.
        false: Cited claims by kind, of those that must not be.
        claims: All claims by kind.
    """

    thresholds: Thresholds
    right: int
    misplaced: int
    citable: int
    false: dict[str, int]
    claims: dict[str, int]

    @property
    def recall(self) -> float:
        """Right citations among the claims that could have one."""
        return self.right / max(1, self.citable)

    @property
    def precision(self) -> float:
        """Right citations among all, with as many false claims from other articles as true ones."""
        return self.right / max(1, self.right + self.misplaced + self.false["other article"])


def main() -> None:
    """Measure, print and draw."""
    configure_logging(level="WARNING")
    arguments = parse_arguments()
    check_models(arguments.data_dir)
    collection = read_collection(arguments.dataset)
    answerable, unanswerable = read_questions(arguments.dataset, collection)
    foreign = read_foreign(arguments.dataset.parent)
    with tempfile.TemporaryDirectory(prefix="loam-calibrate-") as folder:
        data = link_models(arguments.data_dir, Path(folder) / "data")
        ingest_passages(BenchConfig(), data, collection.passages, Path(folder) / "source")
        searcher = Searcher(data, EmbedderConfig(), SearchConfig(reranker=arguments.reranker))
        try:
            searcher.warm_up([STORE])
            ids = {f"{number:07d}.md": passage.id for number, passage in enumerate(collection.passages)}
            outcomes = try_thresholds(make_claims(searcher, answerable[: arguments.claims], ids))
            sides = {
                "answerable": answerable[: arguments.questions],
                "unanswerable, same passages": spread(unanswerable, arguments.questions),
                "unanswerable, other subjects": spread(foreign, arguments.questions),
            }
            scores = {name: score_questions(searcher, side) for name, side in sides.items()}
        finally:
            searcher.close()
    chosen = choose_outcome(outcomes, arguments.precision)
    print(render(outcomes, chosen, scores))
    if arguments.plot is not None:
        draw(outcomes, chosen, scores, arguments.plot)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", nargs="?", type=Path, default=DATA / "squad_dev_a", metavar="DATASET")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default_data_dir(),
        help="where the models are; default: LOAM_DATA_DIR, else data",
    )
    parser.add_argument("--reranker", metavar="NAME", help="a cross-encoder under models/")
    parser.add_argument("--claims", type=int, default=1500, help="questions that claims are made of")
    parser.add_argument("--questions", type=int, default=1500, help="questions of each side")
    parser.add_argument("--precision", type=float, default=LEAST_PRECISION, help="least precision of citations")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="where to draw the trade-offs")
    return parser.parse_args()


def check_models(root: Path) -> None:
    """Refuse a data directory without the embedder: the throw-away one only links to its models.

    Raises:
        NotFound: There is none.
    """
    name = EmbedderConfig().name
    if not (root / "models" / name / "config.json").is_file():
        raise NotFound(
            f"data_dir: wanted the model {name} in {root / 'models'}, found none. Name another by --data-dir or "
            f"LOAM_DATA_DIR, or run: python scripts/models.py --data-dir {root} get {name}",
            param="data_dir",
        )


def read_questions(folder: Path, collection: Collection) -> tuple[list[Question], list[Question]]:
    """Return the questions that the passages answer, shuffled, and those that they do not."""
    gold = {query: max(judged, key=lambda name: judged[name]) for query, judged in collection.judged.items()}
    rows = list(read_rows(folder / "queries.jsonl"))
    answerable = [Question(row["text"], tuple(row["answers"]), gold[row["_id"]]) for row in rows if row["_id"] in gold]
    random.Random(0).shuffle(answerable)  # noqa: S311  (the file is sorted by article)
    unanswerable = [Question(row["text"], (), row["passage_id"]) for row in read_rows(folder / "unanswerable.jsonl")]
    return answerable, unanswerable


def read_foreign(folder: Path) -> list[Question]:
    """Return questions about something else: of the other sets beside this one."""
    found = []
    for name in ("hotpotqa_100", "cranfield"):
        found += [Question(row["text"], (), "") for row in read_rows(folder / name / "queries.jsonl")]
    return [*found, *(Question(row["text"], (), "") for row in islice(read_rows(folder / "intents_valid.jsonl"), 300))]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield a file's JSON objects."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def spread(questions: Sequence[Question], count: int) -> list[Question]:
    """Return so many questions, evenly spread over all."""
    step = max(1.0, len(questions) / count)
    return [questions[int(place * step)] for place in range(min(count, len(questions)))]


def make_claims(searcher: Searcher, questions: Sequence[Question], ids: dict[str, str]) -> list[Claim]:
    """Return three claims of each question: with its answer, and with two that are not."""
    chance = random.Random(1)  # noqa: S311
    by_kind: dict[str, list[Question]] = {}
    by_passage: dict[str, list[Question]] = {}
    for question in questions:
        by_kind.setdefault(tell_kind(question.answers[0]), []).append(question)
        by_passage.setdefault(question.passage, []).append(question)
    claims = []
    for question in questions:
        hits = searcher.search([STORE], question.text, K).hits
        sources = [Source(n, hit.file, hit.heading, hit.chunk_id, hit.text) for n, hit in enumerate(hits, start=1)]
        vectors = searcher.embed_texts([source.text for source in sources])
        gold = np.array([ids[hit.file] == question.passage for hit in hits])
        for kind, answer in pick_answers(question, by_kind, by_passage, chance):
            claims.append(
                make_claim(kind, write_claim(question.text, answer), question, sources, vectors, gold, searcher)
            )
    return claims


def make_claim(
    kind: str,
    text: str,
    question: Question,
    sources: list[Source],
    vectors: NDArray[np.float32],
    gold: NDArray[np.bool_],
    searcher: Searcher,
) -> Claim:
    """Return a claim with its support."""
    found = find_candidates(text, sources, Thresholds(0.0, -1.0))
    coverages = np.array([found.get(place, -1.0) for place in range(len(sources))])
    holds = [any(answer.casefold() in source.text.casefold() for answer in question.answers) for source in sources]
    is_right = (gold | np.array(holds)) if kind == "right" else np.zeros(len(sources), dtype=bool)
    return Claim(kind, coverages, (vectors @ searcher.embed_texts([text])[0]).astype(np.float64), is_right)


def pick_answers(
    question: Question,
    by_kind: dict[str, list[Question]],
    by_passage: dict[str, list[Question]],
    chance: random.Random,
) -> Iterator[tuple[str, str]]:
    """Yield kind and answer: the right one, one of another article, and one of the same passage where there is one."""
    yield "right", question.answers[0]
    kind = tell_kind(question.answers[0])
    others = [one for one in by_kind[kind] if one.article != question.article]
    if others:
        yield "other article", chance.choice(others).answers[0]
    mine = {answer.casefold() for answer in question.answers}
    near = [one for one in by_passage[question.passage] if tell_kind(one.answers[0]) == kind]
    near = [one for one in near if not mine & {answer.casefold() for answer in one.answers}]
    if near:
        yield "same passage", chance.choice(near).answers[0]


def tell_kind(answer: str) -> str:
    """Return what an answer is: a number, a name or something else."""
    if any(character.isdigit() for character in answer):
        return "number"
    return "name" if answer[:1].isupper() else "words"


def write_claim(question: str, answer: str) -> str:
    """Return a question and an answer as a claim."""
    words = QUESTION_WORDS.sub("", question.rstrip("? "))
    return f"{' '.join(words.split())} {answer}."


def try_thresholds(claims: Sequence[Claim]) -> list[Outcome]:
    """Return what each pair of thresholds comes to, with the function that the gateway itself asks."""
    places = [Source(n, "", None, "", "") for n in range(K)]
    pairs = [Thresholds(coverage, similarity) for coverage in COVERAGES for similarity in SIMILARITIES]
    return [try_pair(claims, pair, places) for pair in pairs]


def try_pair(claims: Sequence[Claim], thresholds: Thresholds, places: list[Source]) -> Outcome:
    """Return what a pair of thresholds comes to."""
    counts = dict.fromkeys(("right", "misplaced", "citable"), 0)
    false, of_kind = dict.fromkeys(KINDS[1:], 0), dict.fromkeys(KINDS, 0)
    for claim in claims:
        of_kind[claim.kind] += 1
        candidates = {
            place: float(share) for place, share in enumerate(claim.coverages) if share >= thresholds.coverage
        }
        chosen = choose_source(candidates, claim.similarities.tolist(), places, thresholds)
        if claim.kind != "right":
            false[claim.kind] += chosen is not None
            continue
        counts["citable"] += bool(claim.is_right.any())
        if chosen is not None:
            counts["right" if claim.is_right[chosen.n] else "misplaced"] += 1
    return Outcome(thresholds, **counts, false=false, claims=of_kind)


def choose_outcome(outcomes: Sequence[Outcome], precision: float) -> Outcome:
    """Return the pair with the most right citations among those that are precise enough, else the most precise."""
    good = [outcome for outcome in outcomes if outcome.precision >= precision]
    if good:
        return max(good, key=lambda outcome: (outcome.recall, outcome.precision))
    return max(outcomes, key=lambda outcome: (outcome.precision, outcome.recall))


def score_questions(searcher: Searcher, questions: Sequence[Question]) -> dict[str, NDArray[np.float64]]:
    """Return each question's best score by what it is taken from; each (questions,) float64."""
    found = [read_scores(searcher.search([STORE], question.text, K).hits) for question in questions]
    return {name: np.array([scores[name] for scores in found]) for name in found[0]}


def read_scores(hits: Sequence[Hit]) -> dict[str, float]:
    """Return the best of each score among some hits."""
    scores = {
        "cosine": max(hit.dense_score for hit in hits),
        "best span": max(hit.span_score for hit in hits),
        "mean of both": max((hit.dense_score + hit.span_score) / 2 for hit in hits),
    }
    reranked = [hit.rerank_score for hit in hits if hit.rerank_score is not None]
    return {**scores, "reranker": max(reranked)} if reranked else scores


def separate(answerable: NDArray[np.float64], unanswerable: NDArray[np.float64]) -> float:
    """Return how often an answerable question scores above an unanswerable one (the area under the curve), 0 to 1."""
    ranks = np.searchsorted(np.sort(unanswerable), answerable, side="left")
    ties = np.searchsorted(np.sort(unanswerable), answerable, side="right")
    return float(((ranks + ties) / 2).mean() / len(unanswerable))


def render(outcomes: Sequence[Outcome], chosen: Outcome, scores: dict[str, dict[str, NDArray[np.float64]]]) -> str:
    """Return the figures as Markdown."""
    current = next(outcome for outcome in outcomes if outcome.thresholds == CALIBRATED)
    lines = [
        f"claims: {', '.join(f'{count} {kind}' for kind, count in current.claims.items())}; citable: {current.citable}",
        "",
        "| thresholds | coverage | similarity | precision | recall | misplaced | other article | same passage |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [("in use", current), ("recommended", chosen)]
    rows += [("", one) for one in outcomes if one.thresholds.similarity == chosen.thresholds.similarity]
    lines += [render_outcome(name, outcome) for name, outcome in rows]
    answerable = scores["answerable"]
    for name, side in islice(scores.items(), 1, None):
        lines += ["", f"{name}: {len(side['cosine'])} questions, beside {len(answerable['cosine'])} answerable", ""]
        lines += ["| score | separates | threshold | wrongly declined | wrongly let through |", "|---|---|---|---|---|"]
        for kind, values in side.items():
            area = separate(answerable[kind], values)
            for threshold in (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7):
                declined, passed = (answerable[kind] < threshold).mean(), (values >= threshold).mean()
                lines.append(f"| {kind} | {area:.3f} | {threshold} | {declined:.3f} | {passed:.3f} |")
    return "\n".join(lines)


def render_outcome(name: str, outcome: Outcome) -> str:
    """Return a pair of thresholds as a row."""
    pair, false, claims = outcome.thresholds, outcome.false, outcome.claims
    shares = [outcome.misplaced / claims["right"], *(false[kind] / max(1, claims[kind]) for kind in KINDS[1:])]
    cells = [
        name,
        f"{pair.coverage:.2f}",
        f"{pair.similarity:.2f}",
        f"{outcome.precision:.3f}",
        f"{outcome.recall:.3f}",
    ]
    return f"| {' | '.join([*cells, *(f'{share:.3f}' for share in shares)])} |"


def draw(
    outcomes: Sequence[Outcome], chosen: Outcome, scores: dict[str, dict[str, NDArray[np.float64]]], path: Path
) -> None:
    """Draw precision and recall of citations, and what silence costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for similarity in SIMILARITIES[::3]:
        row = [outcome for outcome in outcomes if outcome.thresholds.similarity == similarity]
        recalls, precisions = [one.recall for one in row], [one.precision for one in row]
        left.plot(recalls, precisions, marker=".", label=f"similarity {similarity:.2f}")
    left.plot(chosen.recall, chosen.precision, "k*", markersize=12, label="recommended")
    left.set(title="Citations, by coverage", xlabel="recall", ylabel="precision")
    answerable = scores["answerable"]
    thresholds = np.linspace(0, 1, 201)
    for name, side in islice(scores.items(), 1, None):
        for kind, values in side.items():
            declined = [(answerable[kind] < threshold).mean() for threshold in thresholds]
            passed = [(values >= threshold).mean() for threshold in thresholds]
            style = "-" if name.endswith("same passages") else "--"
            right.plot(declined, passed, style, label=f"{kind}; {name.removeprefix('unanswerable, ')}")
    right.set(title="Silence, by min_score", xlabel="wrongly declined", ylabel="wrongly let through")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    run_command(main)
