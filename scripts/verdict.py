"""RAG, fine-tuning or both: python scripts/verdict.py questions=Q.jsonl store=NAME run=ID [raft_run=ID].

The base model, the base model with long instructions, RAG, the fine-tuned model and the hybrid answer the same
questions in turn, through the endpoint that users meet; `reports/verdict-NAME/` then says which to use, how sure that
is and what it costs, and holds every answer. The same command goes on where it was stopped. Keys stand in
conf/verdict.yaml; docs/verdict.md explains the result. Does not decide: evaluation/decision.py does.
"""

from core.entry import begin_program

begin_program()

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core.config import load_config, run_app
from core.errors import EngineError, EngineUnavailable
from core.layout import DataDir
from core.lines import LineWriter
from core.logs import configure_logging
from evaluation.answers import FORMAT, Answer, Arm, AskConfig, Passage, ask_all, read_answers, read_saved
from evaluation.questions import Question, read_questions, spread
from evaluation.report import write_report
from evaluation.updates import Change, UpdateFinding, judge_update, read_changes
from evaluation.verdict import Evidence, Result, reach_verdict
from evaluation.verdict_page import make_sections, make_table, make_values
from scripts.server_process import run_server
from scripts.verdict_plan import (
    NEAREST,
    Plan,
    VerdictConfig,
    list_serve_options,
    make_plan,
    read_corpus,
    read_training,
    read_trainings,
)
from scripts.verdict_update import UpdatedStore, update_store
from serve.progress import CountProgress, say

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def main(composed: DictConfig) -> None:
    """Check, ask, decide, write and show."""
    configure_logging(level="WARNING")
    config = load_config(composed, VerdictConfig)
    data = DataDir(Path(config.paths.data_dir))
    plan = make_plan(config, data)
    every = read_questions(Path(config.questions))
    changes: list[Change] = []
    if config.changes and config.documents:
        changes = read_changes(Path(config.changes), {one.id: one for one in every}, Path(config.documents))
    folder = data.reports / f"verdict-{plan.name}"
    folder.mkdir(parents=True, exist_ok=True)
    for arm, reason in plan.left_out.items():
        say(f"left out     {arm}: {reason}")
    updated = update_store(config, folder, changes) if changes and plan.searches else None
    passes = list_passes(config, plan, spread(every, config.limit), changes, updated)
    with ExitStack() as stack:
        url = config.url or ""
        if config.url is None and any(one.is_open(folder) for one in passes):
            options = list_serve_options(config, plan, updated.store if updated else None)
            url = stack.enter_context(run_server(options, data.root / "logs" / "verdict-serve.log"))
        found = {one.name: one.run(config, url, folder) for one in passes}
    result = reach_verdict(
        gather(config, data, plan, found, spread(every, config.limit), changes, updated),
        config.decision, config.cost, config.situation,
    )  # fmt: skip
    settings = describe_settings(config, plan)
    title = f"Verdict: {plan.name}"
    write_report(
        folder, title, make_sections(result, settings), make_values(result, settings), make_table(result.scored)
    )
    show(result)
    console.print(f"wrote {folder}\nnext: python scripts/advise.py --verdict {folder / 'report.json'}", soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Pass:
    """Some questions asked of some arms, and the file that keeps the answers.

    Attributes:
        name: Of the file, without its ending.
        questions: What is asked.
        arms: Of whom; none: of the nearest passage.
        concurrency: Questions at the same time.
    """

    name: str
    questions: Sequence[Question]
    arms: Sequence[Arm]
    concurrency: int

    def is_open(self, folder: Path) -> bool:
        """Tell whether something of it is not answered yet."""
        path = folder / f"{self.name}.jsonl"
        answers = read_answers(path) if path.is_file() else []
        done = {answer.key for answer in answers if answer.error is None}
        names = [arm.name for arm in self.arms] or [NEAREST]
        return any((name, question.id) not in done for name in names for question in self.questions)

    def run(self, config: VerdictConfig, url: str, folder: Path) -> list[Answer]:
        """Ask what is open, and return all answers."""
        path, base = folder / f"{self.name}.jsonl", url.rstrip("/").removesuffix("/v1")
        if not self.arms:
            return ask_nearest(config, base, path, self.questions)
        settings = AskConfig(
            url=f"{base or 'http://nobody'}/v1",
            max_tokens=config.max_tokens,
            concurrency=self.concurrency,
            timeout_s=config.timeout_s,
        )
        total = len(self.questions) * len(self.arms)
        progress = CountProgress(f"asking       {self.name}, {len(self.arms)} arms", total)
        return ask_all(self.questions, self.arms, settings, path, lambda _: progress.advance())


def list_passes(
    config: VerdictConfig,
    plan: Plan,
    questions: Sequence[Question],
    changes: Sequence[Change],
    updated: UpdatedStore | None,
) -> list[Pass]:
    """Return what has to be asked, in order."""
    few = spread(list(questions), config.latency_questions) if config.latency_questions else []
    passes = [Pass("answers", questions, plan.arms, config.concurrency)]
    if plan.nearest is not None:
        passes.append(Pass(NEAREST, questions, (), 1))
    if few:
        passes.append(Pass("alone", few, plan.arms, 1))
    if changes:
        after = plan.arms_after(config, has_updated_store=updated is not None)
        asked = {question.id for question in questions}
        if unasked := [change.question for change in changes if change.question.id not in asked]:
            passes.append(Pass("before", unasked, plan.arms, config.concurrency))
        passes.append(Pass("after", [change.question_after for change in changes], after, config.concurrency))
    return passes


def gather(
    config: VerdictConfig,
    data: DataDir,
    plan: Plan,
    found: Mapping[str, list[Answer]],
    questions: Sequence[Question],
    changes: Sequence[Change],
    updated: UpdatedStore | None,
) -> Evidence:
    """Return all that the verdict is made from.

    Args:
        config: The configuration.
        data: The data directory.
        plan: The arms.
        found: Answers by pass.
        questions: In the order of the file.
        changes: Of the update test.
        updated: The store with the changes, or None.
    """
    nearest = found.get(NEAREST, [])
    answers = [*found["answers"], *nearest]
    return Evidence(
        questions=questions,
        answers=answers,
        alone=[*found.get("alone", []), *nearest],
        concurrency=config.concurrency,
        trainings=read_trainings(plan, data),
        corpus=read_corpus(config, data, plan, answers, updated),
        updates=judge_updates(config, data, plan, found, changes, updated),
        left_out=plan.left_out,
    )


def ask_nearest(config: VerdictConfig, base: str, path: Path, questions: Sequence[Question]) -> list[Answer]:
    """Answer each question with what the pattern finds in the best passage, without any model.

    Raises:
        EngineError: The endpoint does not list the store or refuses a search.
        EngineUnavailable: It does not answer; what was found is saved.
        Conflict: What is saved was found with another pattern, in another store, or for other questions.
    """
    settings = {"arms": {NEAREST: {"model": config.store, "pattern": config.nearest_pattern}}}
    saved = {answer.question_id: answer for answer in read_saved(path, settings, questions).values()}
    open_questions = [question for question in questions if question.id not in saved]
    if open_questions:
        key = os.environ.get("LOAM_API_KEY", "none")
        headers = {"authorization": f"Bearer {key}"}
        try:
            with (
                httpx.Client(base_url=base, headers=headers, timeout=config.timeout_s) as client,
                LineWriter(path) as writer,
            ):
                store = find_store(client, str(config.store))
                if writer.is_empty():
                    writer.write(json.dumps({"format": FORMAT, "settings": settings}))
                for question in open_questions:
                    answer = search_nearest(client, store, config, question)
                    writer.write(json.dumps(asdict(answer), ensure_ascii=False))
                    saved[question.id] = answer
        except httpx.HTTPError as error:
            raise EngineUnavailable(
                f"{base}: wanted an endpoint that searches, found none that answers ({error}). Start serve/run.py and "
                "give the same command again: it goes on."
            ) from error
    return [saved[question.id] for question in questions]


def find_store(client: httpx.Client, name: str) -> str:
    """Return the id of a store by its name, from the endpoint's list."""
    after: dict[str, str] = {}
    while True:
        answer = client.get("/v1/vector_stores", params={"limit": 100, **after})
        if answer.status_code != httpx.codes.OK:
            raise EngineError(
                f"vector stores: wanted their list, found status {answer.status_code}: {answer.text[:200]}"
            )
        page = answer.json()
        for store in page["data"]:
            if name in (store["name"], store["id"]):
                return str(store["id"])
        if not page["has_more"]:
            raise EngineError(f"store: wanted {name} among the endpoint's vector stores, found none of that name.")
        after = {"after": page["last_id"]}


def search_nearest(client: httpx.Client, store: str, config: VerdictConfig, question: Question) -> Answer:
    """Return what the pattern finds in the best passage, as an answer."""
    name = str(config.store)
    asked_at, start = time.time(), time.monotonic()
    answer = client.post(f"/v1/vector_stores/{store}/search", json={"query": question.question, "max_num_results": 1})
    latency = time.monotonic() - start
    if answer.status_code != httpx.codes.OK:
        raise EngineError(f"search: wanted passages, found status {answer.status_code}: {answer.text[:200]}")
    hits = []
    for n, hit in enumerate(answer.json()["data"], start=1):
        text = "\n".join(part["text"] for part in hit["content"])
        hits.append(Passage(n, name, hit["filename"], None, None, hit["file_id"], hit["score"], 0, len(text), text))
    found = re.search(config.nearest_pattern or "", hits[0].text) if hits else None
    said = ((found[1] if found.groups() else found[0]) or "").strip() if found else ""
    return Answer(
        arm=NEAREST,
        question_id=question.id,
        question=question.question,
        model=name,
        text=said,
        citations=(1,) if said else (),
        hits=tuple(hits),
        searched=True,
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
        ttft_s=latency,
        latency_s=latency,
        asked_at=asked_at,
    )


def judge_updates(
    config: VerdictConfig,
    data: DataDir,
    plan: Plan,
    found: Mapping[str, list[Answer]],
    changes: Sequence[Change],
    updated: UpdatedStore | None,
) -> list[UpdateFinding]:
    """Return how each arm took the changes, and what was done for it."""
    training = read_training(data, config.updated_run) if config.updated_run else None
    findings = []
    for arm in plan.arms if changes else []:
        before = _pick([*found["answers"], *found.get("before", [])], arm.name)
        done = plan.describe_update(
            arm.name, len(changes), updated.sync_s if updated else None, training.seconds if training else None
        )
        findings.append(judge_update(arm.name, changes, before, _pick(found["after"], arm.name), *done))
    return findings


def _pick(answers: Sequence[Answer], arm: str) -> Mapping[str, Answer]:
    return {answer.question_id: answer for answer in answers if answer.arm == arm}


def describe_settings(config: VerdictConfig, plan: Plan) -> dict[str, Any]:
    """Return what the run was told, for the report: names, never paths."""
    return {
        "questions": Path(config.questions).name,
        "limit": config.limit,
        "base": plan.base,
        "store": config.store,
        "run": config.run,
        "raft_run": config.raft_run,
        "updated_run": config.updated_run,
        "instructions": plan.instructions,
        "k": config.k,
        "max_tokens": config.max_tokens,
        "concurrency": config.concurrency,
        "temperature": 0,
        "level": config.decision.level,
        "margin": config.decision.margin,
        "order": config.decision.order.value,
        "kind_weights": dict(config.decision.kind_weights),
        "resamples": config.decision.resamples,
        "seed": config.decision.seed,
    }


def show(result: Result) -> None:
    """Print the verdict."""
    table = Table("arm", "right", "interval", "median s", "USD a month", "")
    volume = result.cost.monthly_answers
    usd = {one.arm: one.local.monthly_usd(volume) for one in result.costs}
    speeds = make_values(result, {})["latency"]
    for arm in result.arms:
        mean = result.verdict.means[arm]
        median = speeds[arm]["median_s"]
        state = result.verdict.name_state(arm)
        table.add_row(arm, f"{mean.mean:.1%}", f"{mean.low:.1%} to {mean.high:.1%}",
                      "–" if median is None else f"{median:.2f}", f"{usd[arm]:,.2f}", state)  # fmt: skip
    console.print(table)
    for doubt in result.doubts:
        console.print(f"doubt        {escape(doubt)}")
    console.print(f"[bold]{escape(result.wording.headline)}[/bold]")
    for sentence in (result.wording.advice, *result.wording.reasons, result.agreement):
        if sentence:
            console.print(f"  {escape(sentence)}")
    for change in result.wording.would_change[:6]:
        console.print(f"  would change it: {escape(change)}")


if __name__ == "__main__":
    run_app("verdict", main)
