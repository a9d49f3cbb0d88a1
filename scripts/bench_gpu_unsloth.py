"""Unsloth's arm of scripts/bench_gpu.py: a program for an environment of its own, in which only Unsloth is installed.

    .venv-unsloth/bin/python scripts/bench_gpu_unsloth.py JOB.json

Reads rows of token ids, trains LoRA on them as Unsloth's documentation shows, and prints one line of JSON.
Imports nothing of Loam.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def main(path: Path) -> None:
    """Train and print the speed."""
    job = json.loads(path.read_text(encoding="utf-8"))
    from unsloth import FastLanguageModel  # isort: skip  (before what it patches)
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    model, tokenizer = FastLanguageModel.from_pretrained(
        job["model"], max_seq_length=job["length"], load_in_4bit=False, dtype=torch.bfloat16, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=job["rank"], lora_alpha=2 * job["rank"], use_gradient_checkpointing=False
    )
    tokens: list[int] = []
    ends: list[float] = []

    class Watch(TrainerCallback):
        """Notes when each optimizer step has ended."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    arguments = SFTConfig(
        output_dir=job["folder"],
        max_steps=job["steps"],
        max_length=job["length"],
        packing=job["packing"],
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        dataset_kwargs={"skip_prepare_dataset": False},
        save_strategy="no",
        report_to="none",
        bf16=True,
    )
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, args=arguments, train_dataset=Dataset.from_list(job["rows"])
    )
    collate = trainer.data_collator

    def count(examples: list[Any]) -> Any:
        tokens.append(sum(len(example["input_ids"]) for example in examples))
        return collate(examples)

    trainer.data_collator = count
    trainer.add_callback(Watch())
    trainer.train()
    # One batch a step; they come ahead of it, in its order.
    speeds = [tokens[step] / (ends[step] - ends[step - 1]) for step in range(job["warm_up"], len(ends))]
    print(json.dumps({"tokens_per_s": statistics.median(speeds)}))


if __name__ == "__main__" and len(sys.argv) > 1:
    main(Path(sys.argv[1]))
