"""The table of sizes: it follows from the model and the card, and the pages show what the program prints."""

import sys

import pytest

from scripts.sizing import (
    CARDS,
    SHAPES,
    count_answer_rate,
    count_cache_tokens,
    count_training_rate,
    describe,
    describe_shared,
    main,
)
from tests.rules.checkout import REPO

SMALL, LARGE = SHAPES["Llama-3.2-3B"], SHAPES["Llama-3.3-70B"]
L4, H100, H200 = CARDS["L4 24 GB"], CARDS["H100 80 GB"], CARDS["H200 141 GB"]


def test_a_model_that_is_too_large_does_not_fit() -> None:
    assert describe(LARGE, L4) == "does not fit | does not fit"
    assert "does not fit" not in describe(SMALL, L4)
    assert describe_shared(LARGE, L4, 2).startswith("does not fit")


def test_speed_goes_with_the_cards_arithmetic_and_cache_with_its_memory() -> None:
    slow, quick = (count_training_rate(SMALL, card, is_recomputed=False) for card in (L4, H100))
    assert quick[0] / slow[0] == pytest.approx(H100.teraflops / L4.teraflops)
    assert slow[0] < slow[1]
    assert count_training_rate(SMALL, L4, is_recomputed=True)[0] < slow[0]
    assert count_cache_tokens(SMALL, H100) < count_cache_tokens(SMALL, H200)
    assert count_cache_tokens(LARGE, H100) < 0


def test_an_answer_is_bound_by_the_cards_memory() -> None:
    small, large = count_answer_rate(SMALL, L4), count_answer_rate(LARGE, L4)
    assert small == pytest.approx(300e9 / 6.4e9, rel=0.02)  # 3.2 billion weights of two bytes
    assert small / large == pytest.approx(70 / 3.2, rel=0.05)
    assert count_answer_rate(SMALL, H200) / small == pytest.approx(4800 / 300)


@pytest.mark.parametrize(("page", "words"), [("operations.md", []), ("scale.md", ["cards=4"])])
def test_the_pages_show_what_it_prints(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sizing.py", *words])
    main()
    assert capsys.readouterr().out in (REPO / "docs" / page).read_text(), f"docs/{page} is behind scripts/sizing.py"
