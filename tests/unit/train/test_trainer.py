"""The configuration and the data reach TRL as meant."""

from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.sft_config import SFTConfig

from core.errors import ConfigError, MissingDependency
from tests.fakes.small_run import make_model, run_small
from train.config import OWNED_OPTIONS, HardwareConfig, Schedule, Strategy, TrainConfig, TrainerConfig
from train.encoding import Encoded
from train.hardware import Machine
from train.memory import MemoryPlan
from train.packing import pack_rows
from train.tokens import IGNORED
from train.trainer import build_arguments, check_options

CPU = torch.device("cpu")
PLAN = MemoryPlan(0, 0, 0, 0, 0, keep_dequantized=True, gradient_checkpointing=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_configuration_reaches_trl(tmp_path: Path, dtype: torch.dtype) -> None:
    trainer = TrainerConfig(batch_size=8, max_steps=5, eval_every=2, save_every=3, options={"adam_beta2": 0.95})
    config = TrainConfig(trainer=trainer, hardware=HardwareConfig(micro_batch=2))
    machine = Machine(torch.device("cpu"), "cpu", dtype, 0, 2)
    arguments = build_arguments(config, machine, PLAN, tmp_path, has_valid=True)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 4)
    assert (arguments.max_steps, arguments.eval_steps, arguments.save_steps) == (5, 2, 3)
    assert (arguments.bf16, arguments.use_cpu, arguments.gradient_checkpointing) == (
        dtype is torch.bfloat16,
        True,
        False,
    )
    assert arguments.adam_beta2 == 0.95
    assert not arguments.push_to_hub


def ragged_rows(count: int, learned_from: int = 3) -> Encoded:
    """Return rows of 6 to 30 tokens, of which very different shares are learned."""
    examples: Any = []
    for row in range(count):
        ids = [(7 * row + 3 * place) % 250 for place in range(6 + 8 * (row % 4))]
        labels = [token if place >= learned_from + 5 * (row % 4) else IGNORED for place, token in enumerate(ids)]
        examples.append({"input_ids": ids, "labels": labels})
    return Encoded(examples=examples)


def test_a_step_is_the_same_however_its_rows_are_split(tmp_path: Path) -> None:
    runs = [
        run_small(
            tmp_path / str(rows), ragged_rows(8), None, TrainerConfig(batch_size=8, micro_batch=rows, max_steps=3)
        )
        for rows in (1, 4)
    ]
    ones, fours = (run.read("step") for run in runs)
    for one, four in zip(ones, fours, strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(four["grad_norm"], rel=1e-4)


def test_the_loss_is_a_mean_over_learned_tokens(tmp_path: Path) -> None:
    learned = ragged_rows(8)
    run = run_small(tmp_path, learned, None, TrainerConfig(batch_size=8, micro_batch=2, max_steps=1))
    losses = []
    model = make_model()
    for example in learned.examples:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
        wanted = torch.tensor(example["labels"][1:])
        losses.append(torch.nn.functional.cross_entropy(logits, wanted, reduction="none")[wanted != IGNORED])
    assert run.read("step")[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_packed_rows_are_learned_as_they_are_apart(tmp_path: Path) -> None:
    rows = ragged_rows(8)
    options = TrainerConfig(batch_size=8, max_steps=3, group_by_length=False, warmup=0)
    apart = run_small(tmp_path / "apart", rows, rows, options)
    options.packing, options.max_length = True, 64
    config = TrainConfig(trainer=options)
    packs = pack_rows(rows, config, tmp_path)
    assert len(packs.examples) == 3  # 144 tokens
    options.batch_size = 3
    packed = run_small(tmp_path / "packed", packs, rows, options)
    # All rows stand in one batch either way: the same step, token for token.
    for name, tolerance in (("loss", 1e-5), ("grad_norm", 1e-4)):
        found = [event[name] for event in packed.read("step")]
        assert found == pytest.approx([event[name] for event in apart.read("step")], rel=tolerance)
    assert [event["tokens"] for event in packed.read("step")] == [event["tokens"] for event in apart.read("step")]
    losses = [[event["loss"] for event in run.read("eval")] for run in (apart, packed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        (Schedule.constant, 0.5, [0, 0.5, 1, 1]),
        (Schedule.cosine, 1, [0, 0.25, 0.5, 0.75]),
    ],
)
def test_the_learning_rate_rises_over_its_share_of_the_steps(
    schedule: Schedule, warmup: float, rates: list[float], tmp_path: Path
) -> None:
    options = TrainerConfig(
        batch_size=8, epochs=4, learning_rate=1e-3, schedule=schedule, warmup=warmup, sample_tokens=1
    )
    run = run_small(tmp_path, ragged_rows(8), None, options)
    assert [event["learning_rate"] for event in run.read("step")] == pytest.approx([1e-3 * rate for rate in rates])


@pytest.mark.parametrize(("most", "steps"), [(100, 4), (3, 3)])
def test_a_run_ends_with_its_epochs_or_earlier(most: int, steps: int, tmp_path: Path) -> None:
    options = TrainerConfig(batch_size=4, epochs=2, max_steps=most, warmup=0, schedule=Schedule.linear, sample_tokens=1)
    run = run_small(tmp_path, ragged_rows(8), None, options)
    rates = [event["learning_rate"] / options.learning_rate for event in run.read("step")]
    assert rates == pytest.approx([1 - step / steps for step in range(steps)]), "it falls over the steps that come"


def test_noise_in_the_embeddings_leaves_the_layers_to_the_model(tmp_path: Path) -> None:
    losses = []
    for alpha in (None, 5.0):
        options = TrainerConfig(batch_size=8, max_steps=1, sample_tokens=1, options={"neftune_noise_alpha": alpha})
        losses.append(run_small(tmp_path / str(alpha), ragged_rows(8), None, options).read("step")[0]["loss"])
    assert 0 < abs(losses[0] - losses[1]) < 1


def test_options_that_trl_does_not_take_are_refused_by_name(tmp_path: Path) -> None:
    asked = TrainerConfig(options={"foo": 1, "adam_beta2": 0.9}, report_to=["no_such_tracker"])
    with pytest.raises(
        ConfigError, match=r"options\.foo: wanted an option of TRL's SFTConfig; .*found no_such_tracker"
    ):
        check_options(TrainConfig(trainer=asked), CPU)
    for compiling in ({"torch_compile": True}, {"torch_compile_mode": "default"}):
        with pytest.raises(ConfigError, match="fused_layers=never hardware"):
            check_options(TrainConfig(trainer=TrainerConfig(options=compiling)), CPU)
    check_options(TrainConfig(trainer=TrainerConfig(options={"adam_beta2": 0.9}, report_to=["tensorboard"])), CPU)
    config = TrainConfig(trainer=TrainerConfig(options={"optim": "no_such_optimizer"}))
    machine = Machine(torch.device("cpu"), "cpu", torch.float32, 0, 2)
    with pytest.raises(ConfigError, match=r"trainer\.options: .*no_such_optimizer"):
        build_arguments(config, machine, PLAN, tmp_path, has_valid=False)


def test_options_that_this_machine_cannot_follow_are_refused_by_name() -> None:
    options = {"activation_offloading": True, "use_liger_kernel": True}
    with pytest.raises(
        ConfigError, match=r"activation_offloading: wanted a card .*; .*use_liger_kernel: wanted a card"
    ):
        check_options(TrainConfig(trainer=TrainerConfig(options=options)), CPU)
    check_options(TrainConfig(trainer=TrainerConfig(options=dict.fromkeys(options, False))), CPU)
    check_options(TrainConfig(trainer=TrainerConfig(options={"activation_offloading": True})), torch.device("cuda"))


def test_an_option_whose_package_is_missing_says_which(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="galore_torch"):
        run_small(tmp_path, ragged_rows(8), None, TrainerConfig(max_steps=1, options={"optim": "galore_adamw"}))
    config = TrainConfig(trainer=TrainerConfig(options={"deepspeed": str(tmp_path / "none.json")}))
    with pytest.raises(MissingDependency, match="deepspeed"):
        build_arguments(config, Machine(CPU, "cpu", torch.float32, 0, 2), PLAN, tmp_path, has_valid=False)


@pytest.mark.parametrize("strategy", Strategy)
def test_what_the_configuration_sets_is_no_option(tmp_path: Path, strategy: Strategy) -> None:
    """Else two values would meet in one call."""
    machine = Machine(CPU, "cpu", torch.float32, 0, 2)
    set_here: set[str] = set()

    class Noting(SFTConfig):
        def __init__(self, **values: Any) -> None:
            set_here.update(values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("train.trainer.SFTConfig", Noting)
        config = TrainConfig(hardware=HardwareConfig(strategy=strategy, processes=2))
        build_arguments(config, machine, PLAN, tmp_path, has_valid=True)
    assert set_here <= OWNED_OPTIONS


def test_a_run_without_a_batch_is_refused(tmp_path: Path) -> None:
    options = TrainerConfig(batch_size=8, max_steps=1, options={"dataloader_drop_last": True})
    hardware = HardwareConfig(micro_batch=8)
    with pytest.raises(ConfigError, match="wanted at least one batch, found 3 rows"):
        run_small(tmp_path, ragged_rows(3), None, options, hardware=hardware)
