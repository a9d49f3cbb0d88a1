"""What a training step tells of itself is read when it is logged, so that no step waits for its card.

TRL reads entropy, token accuracy and the number of tokens off the device after every forward pass: the backward pass is
handed to a card only once it has run dry. Here they stay where they were computed until the step is logged, when its
loss is read anyway. Same loss, same figures (held to TRL's in the tests). Does not know what the model computes.
"""

from typing import Any

import torch
from torch import Tensor


class DeferringTrainer:
    """Mixin, to stand left of TRL's SFTTrainer."""

    args: Any
    model: Any
    accelerator: Any
    _metrics: Any
    _total_train_tokens: int
    _pending: list[Tensor] | None = None

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss as TRL does; in training its figures are left on their device."""
        if return_outputs or not self.model.training or not self._is_loss_plain():
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        inputs["use_cache"] = False
        outputs = model(**inputs, fused_lm_head=True)
        learned = outputs.label_mask.sum()
        divisor = learned if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        loss = (-outputs.log_probs).sum() / divisor.clamp(min=1)  # in this order: bit-equal
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which divides it again
        tokens = count_tokens(inputs)
        parts = (learned, outputs.entropy.detach().sum(), outputs.is_top1.sum(), tokens)
        learned, entropy, hits, tokens = (self.accelerator.gather_for_metrics(part).sum() for part in parts)
        means = [torch.where(learned > 0, total / learned, 0) for total in (entropy, hits)]
        self._pending = [*(self._pending or []), torch.stack([value.double() for value in (*means, tokens)])]
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read what the steps since the last time have left, then log."""
        figures = self._metrics["train"]
        for entropy, accuracy, tokens in torch.stack(self._pending).tolist() if self._pending else []:
            figures["entropy"].append(entropy)
            figures["mean_token_accuracy"].append(accuracy)
            self._total_train_tokens += int(tokens)
            figures["num_tokens"] = [self._total_train_tokens]
        self._pending = None
        super().log(logs, start_time)  # type: ignore[misc]

    def _is_loss_plain(self) -> bool:
        """Whether the loss is the mean over learned tokens, and nothing that options may ask TRL for beside it."""
        asked: Any = self
        return (
            self.args.loss_type == "nll"
            and asked.compute_loss_func is None
            and asked.label_smoother is None
            and not asked.aux_loss_enabled
            and self.accelerator.parallelism_config is None
        )


def count_tokens(inputs: dict[str, Any]) -> Tensor:
    """Return the non-padding tokens of a micro-batch, on its device: (), int64."""
    if "attention_mask" in inputs:
        count: Tensor = inputs["attention_mask"].sum()
        return count
    places: Tensor = inputs["position_ids"]
    return places.new_full((), places.shape[1])
