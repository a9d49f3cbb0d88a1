"""What would wait for a card is refused on a CPU too, and the line that asked for it is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core.layout import DataDir
from scripts import bench_gpu_peers, bench_gpu_train
from scripts.bench_gpu_steps import Setting, Wrong
from scripts.bench_gpu_waits import WouldWait, forbid_waits, name_waits
from train import trainer
from train.deferral import DeferringChats, DeferringPairs
from train.head import score_hidden

CPU = torch.device("cpu")
VALUES = torch.arange(6.0)
WAITING: dict[str, Callable[[], Any]] = {
    "item": lambda: VALUES.sum().item(),
    "bool": lambda: bool(VALUES.isnan().any()),
    "tolist": lambda: float(VALUES[2]),
    "nonzero": (VALUES > 2).nonzero,
    "mask": lambda: VALUES[VALUES > 2],
    "assignment by a mask": lambda: VALUES.clone().__setitem__(VALUES > 2, VALUES[:3]),
    "repetition": lambda: VALUES.repeat_interleave(torch.ones(6, dtype=torch.long)),
    "new from a list": lambda: torch.tensor([1, 2]),
    "equal": lambda: torch.equal(VALUES, VALUES),
    "unique": VALUES.unique,
}
FREE: dict[str, Callable[[], Any]] = {
    "indices": lambda: VALUES[torch.arange(2)],
    "slice": lambda: VALUES[1:4] * 2,
    "where": lambda: torch.where(VALUES > 2, VALUES, 0),
    "repetition of a known size": lambda: VALUES.repeat_interleave(VALUES.int().clamp(1, 1), output_size=6),
    "filled": lambda: VALUES.new_full((), 3),
}


@pytest.mark.parametrize("kind", WAITING)
def test_what_waits_is_refused(kind: str) -> None:
    with forbid_waits(CPU), pytest.raises(WouldWait):
        WAITING[kind]()


@pytest.mark.parametrize("kind", FREE)
def test_what_does_not_wait_runs(kind: str) -> None:
    with forbid_waits(CPU):
        found = FREE[kind]()
    assert torch.equal(found, FREE[kind]())


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size"), name_waits(), forbid_waits(CPU):
        VALUES @ VALUES[:2]


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(CPU, is_small=True, data=DataDir(tmp_path), folder=tmp_path)


def test_a_wait_in_the_layers_is_named(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def score_waiting(hidden: Any, *others: Any) -> Any:
        hidden.sum().item()
        return score_hidden(hidden, *others)

    monkeypatch.setattr("scripts.bench_gpu_train.score_hidden", score_waiting)
    with pytest.raises(Wrong, match=r"scripts/bench_gpu_train.py:\d+ waits for the card: aten._local_scalar_dense"):
        bench_gpu_train.prove_no_waits(setting)


def test_the_trainer_waits_where_trl_reads_figures(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, method in ((DeferringChats, None), (DeferringPairs, 0.1)):
        monkeypatch.setattr(kind, "_is_loss_plain", lambda _: False)
        with pytest.raises(Wrong, match=r"train/deferral.py:\d+ waits"):
            bench_gpu_peers.prove_trainer_waits_for_nothing(setting, beta=method)


def test_the_trainer_waits_where_the_forward_pass_lays_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LayingOut", lambda collate, share: collate)  # noqa: ARG005
    with pytest.raises(Wrong, match=r"train/flat_batch.py:\d+ waits for the card: aten.nonzero"):
        bench_gpu_peers.prove_trainer_waits_for_nothing(setting)
