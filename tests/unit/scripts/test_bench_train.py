"""The bench compares like with like, and says how sure a ratio is."""

import itertools
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ContractError
from scripts.bench_train import BenchConfig, Measured, Output, Worker, bootstrap, prove_equal, show
from scripts.bench_train_arms import ARMS, FLOAT32, LADDER, PACKING, PEERS, REFERENCE, TUNING


class Answered:
    """What a worker has said, without its process."""

    def __init__(self, arm: str, loss: float, folder: Path, gradient: torch.Tensor) -> None:
        """Write the gradients where a worker would."""
        path = folder / f"{arm}.st"
        save_file({"a": gradient}, path)
        self.arm, self.proof = arm, {"loss": loss, "gradients": str(path)}


def prove(folder: Path, arms: dict[str, tuple[float, torch.Tensor]]) -> dict[str, float]:
    answered: Any = [Answered(arm, loss, folder, gradient) for arm, (loss, gradient) in arms.items()]
    return prove_equal(cast("list[Worker]", answered[:-1]), cast("Worker", answered[-1]))


def test_a_ratio_lies_in_its_interval() -> None:
    median, low, high = bootstrap([1.9, 2.0, 2.1, 2.0, 3.0])
    assert (median, low <= median <= high) == (2.0, True)
    assert bootstrap([1.5] * 5) == (1.5, 1.5, 1.5)


def test_distances_are_taken_from_float32(tmp_path: Path) -> None:
    exact = torch.ones(4)
    gaps = prove(
        tmp_path, {"loam": (2.0, exact * 1.01), "trl_tuned": (2.001, exact * 1.02), "trl_float32": (2.0, exact)}
    )
    assert gaps == pytest.approx({"loam": 0.01, "trl_tuned": 0.02}, abs=1e-6)


@pytest.mark.parametrize(("loss", "factor"), [(2.5, 1.0), (2.0, 1.5)], ids=["loss", "gradients"])
def test_an_arm_that_computes_something_else_is_refused(tmp_path: Path, loss: float, factor: float) -> None:
    exact = torch.ones(4)
    with pytest.raises(ContractError, match="loam"):
        prove(
            tmp_path,
            {"loam": (loss, exact * factor), "trl_tuned": (2.0, exact * 1.01), "trl_float32": (2.0, exact)},
        )


def test_every_set_names_arms_that_exist() -> None:
    assert {*PEERS, *FLOAT32, *LADDER, *PACKING, *TUNING} == set(ARMS)
    assert PEERS[0] == FLOAT32[0] == LADDER[0] == PACKING[0] == "loam"
    assert ARMS[REFERENCE].is_float32


def test_each_rung_leaves_out_one_thing_more() -> None:
    overrides = [ARMS[name].overrides for name in LADDER]
    for above, below in itertools.pairwise(overrides):
        assert above is not None
        assert below is not None
        assert (below[: len(above)], len(below)) == (above, len(above) + 1)


def test_the_figures_come_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    show({"full": [Measured("loam", 900.0, 1.0, 1.0, 1.0, 1500, 2.7, 0.05, 2.5)]}, BenchConfig(output=Output.json))
    printed = json.loads(capsys.readouterr().out)
    assert printed["data"]["full"][0]["tokens_per_s"] == 900.0
    assert printed["versions"]["trl"]
