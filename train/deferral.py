"""What a training step tells of itself is read when it is logged, so that no step waits for its card.

TRL reads entropy, token accuracy, rewards and the number of tokens off the device after every forward pass: the
backward pass is handed to a card only once it has run dry. Here they stay where they were computed until the step is
logged, when its loss is read anyway. Same loss, same figures (held to TRL's in the tests). Does not know what the model
computes.

Left to TRL, with its waits: losses of pairs other than DPO's own, and label smoothing of chats. Smoothing wants the
gradient of a mean over the whole vocabulary, which train/head.py does not make; TRL has all logits for it from the
model's own layers, which ask the card themselves whether a mask is needed.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from train.tokens import IGNORED


class DeferringTrainer:
    """Mixin of the two below: keeps figures on their device until a step is logged."""

    figures: ClassVar[tuple[str, ...]]
    """What `_defer` is given before the number of tokens, by the names that TRL has for it."""
    args: Any
    model: Any
    accelerator: Any
    _metrics: Any
    _total_train_tokens: int
    _pending: list[Tensor] | None = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read what the steps since the last time have left, then log."""
        found = self._metrics["train"]
        for *values, tokens in torch.stack(self._pending).tolist() if self._pending else []:
            for name, value in zip(self.figures, values, strict=True):
                found[name].append(value)
            self._total_train_tokens += int(tokens)
            found["num_tokens"] = [self._total_train_tokens]
        self._pending = None
        super().log(logs, start_time)  # type: ignore[misc]

    def _defer(self, values: Sequence[Tensor]) -> None:
        """Keep the figures of a micro-batch, () each: those of `figures` in order, and its tokens."""
        self._pending = [*(self._pending or []), torch.stack([value.double() for value in values])]

    def _total(self, part: Tensor) -> Tensor:
        """Return the sum of a number over all processes, as TRL forms it."""
        total: Tensor = self.accelerator.gather_for_metrics(part).sum()
        return total


class DeferringChats(DeferringTrainer):
    """Mixin, to stand left of TRL's SFTTrainer."""

    figures = ("entropy", "mean_token_accuracy")

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
        losses = -outputs.log_probs
        if self.args.loss_type == "dft":
            losses = losses * outputs.log_probs.exp().detach()
        loss = losses.sum() / divisor.clamp(min=1)  # in this order: bit-equal
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which divides it again
        parts = (learned, outputs.entropy.detach().sum(), outputs.is_top1.sum(), count_tokens(inputs))
        learned, entropy, hits, tokens = map(self._total, parts)
        self._defer((find_mean(entropy, learned), find_mean(hits, learned), tokens))
        return loss

    def _is_loss_plain(self) -> bool:
        """Whether the loss is a sum over learned tokens, and nothing that options may ask TRL for beside it."""
        asked: Any = self
        return (
            self.args.loss_type in {"nll", "dft"}
            and asked.compute_loss_func is None
            and asked.label_smoother is None
            and not asked.aux_loss_enabled
            and self.accelerator.parallelism_config is None
        )


class DeferringPairs(DeferringTrainer):
    """Mixin, to stand left of TRL's DPOTrainer."""

    figures = (
        "logits/chosen", "logits/rejected", "entropy", "mean_token_accuracy", "rewards/chosen", "rewards/rejected",
        "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    )  # fmt: skip
    beta: float
    _unsummed: list[tuple[Tensor, Tensor]] | None = None

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Compute DPO's loss as TRL does; in training its figures are left on their device."""
        if return_outputs or not self.model.training or not self._is_loss_plain():
            return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[misc]
        completion = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(completion == 0, IGNORED)
        asked = {name: value for name, value in inputs.items() if name != "completion_mask"}
        asked |= {"labels": labels, "use_cache": False, "fused_lm_head": True}
        outputs = model(**asked)
        with (
            torch.no_grad(),
            disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            use_adapter(self.accelerator.unwrap_model(self.model), None),  # the bare base is the reference
        ):
            reference = self.model(**asked)
        logps = outputs.log_probs.sum(dim=1).chunk(2)  # (B,) of the chosen answers, and of the rejected ones
        ratios = [ours - bare for ours, bare in zip(logps, reference.log_probs.sum(dim=1).chunk(2), strict=True)]
        loss = -functional.logsigmoid(self.beta * (ratios[0] - ratios[1])).mean()
        with torch.no_grad():
            self._keep(outputs, completion[..., 1:], [self.beta * ratio for ratio in ratios], logps, inputs)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Sum the mean logits of the answers' tokens, then read the figures and log.

        How many tokens that are is not known before: TRL sums them without the others between them, and in another
        order a sum has other last digits.
        """
        for place, (logits, mask) in enumerate(self._unsummed or []):
            halves = zip(logits.chunk(2), mask.chunk(2), strict=True)
            sums = [(self._total(values[here.bool()].sum()), self._total(here.sum())) for values, here in halves]
            means = torch.stack([find_mean(total.double(), count) for total, count in sums])
            if self._pending is not None:
                self._pending[place] = torch.cat([means, self._pending[place]])
        self._unsummed = None
        super().log(logs, start_time)

    def _keep(
        self, outputs: Any, mask: Tensor, rewards: Sequence[Tensor], logps: Sequence[Tensor], inputs: Any
    ) -> None:
        """Keep what TRL tells of a micro-batch.

        Args:
            outputs: Of the model that trains.
            mask: Which of its tokens are scored, (2B, T - 1).
            rewards: Of chosen and rejected answers, (B,) each.
            logps: Their log-probabilities, (B,) each.
            inputs: What the model was given.
        """
        chosen = mask.chunk(2)[0]
        hits = (outputs.is_top1.chunk(2)[0] & chosen.bool()).sum()
        entropy, scored = self._total((outputs.entropy * mask).sum()), self._total(mask.sum())
        hits, answered = self._total(hits), self._total(chosen.sum())
        told = (*rewards, (rewards[0] > rewards[1]).float(), rewards[0] - rewards[1], *logps)
        means = [self.accelerator.gather(values.detach()).mean() for values in told]
        tokens = self._total(inputs["attention_mask"].sum())
        self._defer((find_mean(entropy, scored), find_mean(hits, answered), *means, tokens))
        self._unsummed = [*(self._unsummed or []), (outputs.mean_logits.detach(), mask)]

    def _is_loss_plain(self) -> bool:
        """Whether the loss is DPO's own against the bare base, and nothing that options may ask TRL for beside it."""
        asked: Any = self
        return (
            list(asked.loss_types) == ["sigmoid"]
            and list(asked.loss_weights) == [1.0]
            and asked.f_divergence_type == "reverse_kl"
            and asked.ld_alpha is None
            and not asked.use_weighting
            and not asked.aux_loss_enabled
            and not asked.precompute_ref_logps
            and asked.ref_model is None
            and "ref" not in self.accelerator.unwrap_model(self.model).peft_config
            and self.accelerator.parallelism_config is None
        )


def find_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return a sum over a number of tokens, 0 where there are none; () each."""
    return torch.where(count > 0, total / count, 0)


def count_tokens(inputs: dict[str, Any]) -> Tensor:
    """Return the non-padding tokens of a micro-batch, on its device: (), int64."""
    if "attention_mask" in inputs:
        count: Tensor = inputs["attention_mask"].sum()
        return count
    places: Tensor = inputs["position_ids"]
    return places.new_full((), places.shape[1])
