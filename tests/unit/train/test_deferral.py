"""A step's figures are TRL's though they are read late, and a loss that is no number ends the run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import ConfigError
from core.events import EventWriter
from tests.fakes.small_run import PLAN, TOKENIZER, make_model, run_small
from tests.unit.train.test_trainer import ragged_rows
from train import trainer as trainers
from train.config import Choice, HardwareConfig, MethodConfig, MethodKind, TrainConfig, TrainerConfig
from train.deferral import DeferringChats, DeferringPairs
from train.hardware import Machine
from train.packing import pack_rows
from train.recorder import EventCallback


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Collect what TRL logs."""
    found: list[dict[str, Any]] = []
    on_log = EventCallback.on_log

    def collect(self: EventCallback, args: Any, state: Any, control: Any, **named: Any) -> None:
        found.append({key: value for key, value in named["logs"].items() if not key.endswith(("_second", "runtime"))})
        on_log(self, args, state, control, **named)

    monkeypatch.setattr(EventCallback, "on_log", collect)
    return found


KINDS: dict[str, dict[str, Any]] = {
    "rows": {},
    "packs": {"packing": True},
    "dynamic": {"options": {"loss_type": "dft"}},
    "pairs": {"beta": 0.1},
}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_bit_equal_to_those_of_trl(
    kind: str, tmp_path: Path, logged: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict(KINDS[kind])
    beta = asked.pop("beta", None)
    options = TrainerConfig(batch_size=4, max_steps=3, eval_every=2, learning_rate=1e-2, max_length=64, **asked)
    learned = pack_rows(ragged_rows(20), TrainConfig(trainer=options), tmp_path)
    hardware = HardwareConfig(micro_batch=2)
    run_small(tmp_path / "late", learned, ragged_rows(4), options, beta=beta, hardware=hardware)
    late = list(logged)
    logged.clear()
    for mixin in (DeferringChats, DeferringPairs):
        monkeypatch.setattr(mixin, "_is_loss_plain", lambda _: False)  # TRL's own way
    run_small(tmp_path / "soon", learned, ragged_rows(4), options, beta=beta, hardware=hardware)
    assert late == logged
    steps = [one for one in late if "loss" in one]
    assert len(steps) == 3
    assert all(0 <= one["mean_token_accuracy"] <= 1 and one["entropy"] > 0 for one in steps)
    assert steps[0]["num_tokens"] < steps[1]["num_tokens"] < steps[2]["num_tokens"]


PLAIN: dict[str, dict[str, Any]] = {
    "of chats": {},
    "of chats, dynamic": {"loss_type": "dft"},
    "of pairs": {"beta": 0.1},
}
OTHERS: dict[str, dict[str, Any]] = {
    "smoothed": {"label_smoothing_factor": 0.1},
    "another loss": {"beta": 0.1, "loss_type": "ipo"},
    "two losses": {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "half a loss": {"beta": 0.1, "loss_weights": [0.5]},
    "another divergence": {"beta": 0.1, "f_divergence_type": "js_divergence"},
    "shortened": {"beta": 0.1, "ld_alpha": 0.5},
    "weighted": {"beta": 0.1, "use_weighting": True},
}


@pytest.mark.filterwarnings("ignore:`label_smoothing_factor` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", PLAIN | OTHERS)
def test_options_that_change_the_loss_are_left_to_trl(kind: str, tmp_path: Path) -> None:
    extra = dict((PLAIN | OTHERS)[kind])
    beta = extra.pop("beta", None)
    assert build_small(tmp_path, beta, extra)._is_loss_plain() == (kind in PLAIN)


def build_small(folder: Path, beta: float | None, options: dict[str, Any]) -> Any:
    """Return a trainer of chats or pairs with options of TRL's."""
    method = MethodConfig() if beta is None else MethodConfig(MethodKind.dpo, beta)
    config = TrainConfig(trainer=TrainerConfig(batch_size=4, max_steps=1, options=options), method=method)
    machine = Machine(torch.device("cpu"), "cpu", torch.float32, 0, 1)
    arguments = trainers.build_arguments(config, machine, PLAN, folder, has_valid=False)
    with EventWriter(folder / "events.jsonl") as events:
        callback = EventCallback(events, [])
        return trainers.build_trainer(
            make_model(), TOKENIZER, ragged_rows(8), None, arguments, callback, config.hardware
        )


def test_pairs_may_be_weighted(tmp_path: Path) -> None:
    """TRL's own head sums the squares that weights are made from; ours does not, and steps aside."""
    options = TrainerConfig(batch_size=4, max_steps=1, options={"use_weighting": True})
    assert run_small(tmp_path, ragged_rows(8), None, options, beta=0.1).result.steps == 1


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(model: Any, *parts: Any) -> Any:
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.constant_(parameter, float("nan"))
        return original(model, *parts)

    original = trainers.build_trainer
    monkeypatch.setattr("tests.fakes.small_run.build_trainer", build)
    with pytest.raises(ConfigError, match="the loss of step 1 is nan"):
        run_small(tmp_path, ragged_rows(4), None, TrainerConfig(batch_size=4, max_steps=2))


def test_a_batch_carries_its_layout_to_the_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is laid out in the forward pass: on a card that would wait for it."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("laid out in the forward pass")

    monkeypatch.setattr("train.head.lay_out", refuse)
    for beta in (None, 0.1):
        options = TrainerConfig(batch_size=4, max_steps=1, eval_every=1)
        run = run_small(tmp_path / str(beta), ragged_rows(8), ragged_rows(4), options, beta=beta)
        assert run.result.steps == 1


def test_a_model_with_layers_of_its_own_gets_no_layout() -> None:
    model = make_model()
    arguments: Any = type("Arguments", (), {"use_cpu": True, "gradient_checkpointing": False, "bf16": False})
    hardware = HardwareConfig(fused_layers=Choice.never)
    assert trainers.use_own_kernels(model.get_base_model(), arguments, hardware) is None
