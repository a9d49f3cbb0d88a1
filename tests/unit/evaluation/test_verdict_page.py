"""Every number of the page leads to an answer that is on it; the same answers and seed give the same page."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

from evaluation.cost import CostConfig
from evaluation.decision import DecisionConfig
from evaluation.report import Link, render_html, write_report
from evaluation.rules import Situation
from evaluation.updates import UpdateFinding
from evaluation.verdict import Result, reach_verdict
from evaluation.verdict_page import make_sections, make_table, make_values
from tests.fakes.saved_answers import make_evidence

SETTINGS = {"run": "mine", "seed": 0}
SHARES = {"base": 0.05, "base-long": 0.1, "rag": 0.8, "fine-tuned": 0.2, "hybrid": 0.6}


def make_result() -> Result:

    evidence = make_evidence(SHARES, n=40)
    updates = [UpdateFinding("rag", 10, 8, 7, 1, "10 changed documents ingested again", 3.2)]
    evidence = dataclasses.replace(evidence, updates=updates, left_out={"raft-hybrid": "it needs raft_run and store"})
    return reach_verdict(evidence, DecisionConfig(resamples=1000), CostConfig(), Situation())


def test_every_number_of_quality_and_cost_leads_to_an_answer_on_the_page() -> None:
    sections = make_sections(make_result(), SETTINGS)
    anchors = {anchor for section in sections for anchor in section.anchors}
    assert len(anchors) == 5 * 40
    links = [cell for section in sections for row in section.rows for cell in row if isinstance(cell, Link)]
    assert len(links) > 50
    assert {link.anchor for link in links} <= anchors
    for title, columns in (("Quality", 1), ("By kind of question", 2), ("Each arm against each", 2)):
        section = next(one for one in sections if one.title == title)
        assert section.rows
        assert all(isinstance(row[columns], Link) for row in section.rows)


def test_of_arms_that_are_alike_none_is_said_to_lead_alone() -> None:
    alike = {"knowledge": 1.0, "style": 0.0, "unanswerable": 0.0}
    shares: dict[str, float | Mapping[str, float]] = {"base": 0.0, "rag": 1.0, "hybrid": alike}
    result = reach_verdict(make_evidence(shares, n=40), DecisionConfig(resamples=1000), CostConfig(), Situation())
    section = next(one for one in make_sections(result, SETTINGS) if one.title == "By kind of question")
    notes = {(row[0], row[1]): row[-1] for row in section.rows}
    assert notes["knowledge", "rag"] == notes["knowledge", "hybrid"] == "leads, with others"
    assert (notes["style", "rag"], notes["style", "hybrid"], notes["style", "base"]) == ("leads", "", "")


def test_every_answer_and_every_part_is_on_the_page() -> None:
    result = make_result()
    page = render_html("T", make_sections(result, SETTINGS))
    for words in (
        "Do not fine-tune",
        "raft-hybrid: it needs raft_run",
        "10 changed documents",
        "break-even",
        "Holm",
        "by Holm",
    ):
        assert words.lower() in page.lower()
    assert page.count("<svg") == 2
    assert all(one.answer.text.split("[")[0].strip()[:20] in page for one in result.scored[:20])


def test_the_same_answers_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        result = make_result()
        values, table = make_values(result, SETTINGS), make_table(result.scored)
        write_report(tmp_path / name, "T", make_sections(result, SETTINGS), values, table)
    for file in ("report.html", "report.json", "scores.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    read = json.loads((tmp_path / "a" / "report.json").read_text())
    assert read["format"] == "loam-verdict-1"
    assert read["verdict"]["arm"] == "rag"
    assert read["verdict"]["outcome"] in {"decided", "undecided"}
    assert {one["arm"] for one in read["costs"]} == {"base", "base-long", "rag", "fine-tuned", "hybrid"}
    assert not re.search(r"\d\.\d{7}", json.dumps(read)), "numbers are rounded"
    assert len((tmp_path / "a" / "scores.csv").read_text().splitlines()) == 1 + 5 * 40
