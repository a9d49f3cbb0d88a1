"""The best trials are what no other beats in both; the same trials give the same report."""

import re
from collections.abc import Sequence
from pathlib import Path

from evaluation.pareto import TrialResult, draw, find_best, lay_out, to_table, to_values
from evaluation.report import render_svg, write_report
from evaluation.resampling import Interval

SHARED = {"n": 40, "concurrency": 4, "store": "docs", "train": None}


def make_results(*reached: tuple[float, float]) -> list[TrialResult]:
    return [
        TrialResult(number, {"k": number + 1, "dense_weight": 0.5}, Interval(right, right / 2, 1.0, 40, 0.95), seconds)
        for number, (right, seconds) in enumerate(reached)
    ]


def list_numbers(results: Sequence[TrialResult]) -> list[int]:
    return [one.number for one in results]


def test_the_best_are_those_that_nothing_beats_in_both() -> None:
    results = make_results((0.5, 2.0), (0.7, 3.0), (0.6, 3.0), (0.7, 4.0), (0.2, 1.0), (0.1, 1.5))
    assert list_numbers(find_best(results)) == [4, 0, 1]
    alike = make_results((0.5, 2.0), (0.5, 2.0))
    assert list_numbers(find_best(alike)) == [0, 1]  # neither beats the other


def test_a_report_holds_every_trial_and_is_the_same_each_time(tmp_path: Path) -> None:
    results = make_results((0.5, 2.0), (0.7, 3.0), (0.6, 3.5))
    for name in ("a", "b"):
        write_report(tmp_path / name, "Sweep", lay_out(results, SHARED), to_values(results, SHARED), to_table(results))
    for file in ("report.html", "report.json", "scores.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Most right answers: 70% (35% to 100%), by trial 1 with k 2, dense_weight 0.5." in page
    assert "Of 3 trials on the same 40 questions" in page
    assert "with 4 questions at a time" in page
    assert page.count("not beaten</td>") == 2
    lines = (tmp_path / "a" / "scores.csv").read_text().splitlines()
    assert lines[0] == "trial,k,dense_weight,right,low,high,median_s,is_best"
    assert lines[3] == "2,3,0.5,0.6,0.3,1.0,3.5,0"
    assert to_values(results, SHARED)["best"] == [0, 1]


def test_the_plot_names_every_trial() -> None:
    svg = render_svg(draw(make_results((0.5, 2.0), (0.7, 3.0), (0.6, 3.5))), salt="x")
    texts = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"0", "1", "2", "right answers", "beaten", "not beaten in both"} <= set(texts)
    only = re.findall(r"<text[^>]*>([^<]+)</text>", render_svg(draw(make_results((0.5, 2.0))), salt="x"))
    assert "beaten" not in only
