"""A whole training run in the small, in this process: a random Llama of two layers that reads bytes, under TRL."""

from pathlib import Path
from typing import Any

import torch

from core.events import EventWriter, read_events
from tests.fakes.byte_tokenizer import make_byte_tokenizer
from train.config import HardwareConfig, MethodConfig, MethodKind, TrainConfig, TrainerConfig
from train.encoding import Encoded
from train.hardware import Machine
from train.memory import MemoryPlan
from train.recorder import EventCallback, Result
from train.samples import Prompt
from train.trainer import build_arguments, build_trainer, train
from train.validation import plan_validation

TOKENIZER: Any = make_byte_tokenizer()
PLAN = MemoryPlan(0, 0, 0, 0, 0, keep_dequantized=True, gradient_checkpointing=False)


def make_model(seed: int = 0) -> Any:
    """Return a random float32 Llama with a fresh adapter."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,  # a head that can tell tokens apart
    )
    base: Any = LlamaForCausalLM(config)
    base.requires_grad_(requires_grad=False)
    base.name_or_path = "small"
    return peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))


class SmallRun:
    """What a run left behind."""

    def __init__(self, model: Any, result: Result, folder: Path) -> None:
        """Keep it."""
        self.model, self.result, self.folder = model, result, folder

    def read(self, kind: str) -> list[dict[str, Any]]:
        """Return the run's events of one type."""
        return [event for event in read_events(self.folder / "events.jsonl") if event["type"] == kind]


def run_small(
    folder: Path,
    learned: Encoded,
    held_out: Encoded | None,
    options: TrainerConfig,
    *,
    beta: float | None = None,
    hardware: HardwareConfig | None = None,
) -> SmallRun:
    """Train the small model as train/run.py would, answering one prompt.

    Args:
        folder: Plays runs/<run_id>.
        learned: What to learn.
        held_out: What to evaluate, or None.
        options: The trainer group.
        beta: Of DPO; None for SFT.
        hardware: The hardware group.
    """
    method = MethodConfig() if beta is None else MethodConfig(MethodKind.dpo, beta)
    config = TrainConfig(trainer=options, method=method, hardware=hardware or HardwareConfig(micro_batch=4))
    machine = Machine(torch.device("cpu"), "cpu", torch.float32, 0, 1)
    model = make_model()
    with EventWriter(folder / "events.jsonl") as events:
        callback = EventCallback(events, [])
        arguments = build_arguments(config, machine, PLAN, folder / "checkpoints", has_valid=held_out is not None)
        trainer = build_trainer(model, TOKENIZER, learned, held_out, arguments, callback, config.hardware)
        stop = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
        prompts = [Prompt("abc", [10, 11, 12], "def"), Prompt("a", [10], None)]
        best = folder / "checkpoints" / "best"
        trainer.validation = plan_validation(options, prompts, stop, best, [], callback)
        return SmallRun(model, train(trainer, callback, None), folder)
