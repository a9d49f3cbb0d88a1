"""The loss on a CPU: the head reads only the positions that are learned.

TRL's fused head leaves out prompt tokens on GPUs only; on a CPU it multiplies every position with the whole
vocabulary, and once more in the backward pass. Here each learned position is multiplied twice in all, because the
gradient of a frozen head is known as soon as its logits are. Same numbers as torch's cross entropy (proven in the
tests). Does not know where the hidden states come from.
"""

import functools
import types
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

CHUNK_LOGITS = 2**24
"""Logits at once: 64 MiB in float32."""


class FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probability of each label under a frozen head, with the gradient of the hidden states computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute log-probabilities, entropies and hits, chunk by chunk.

        Args:
            ctx: For the backward pass.
            hidden: (N, D).
            weight: Of the head, (V, D), frozen.
            labels: (N,) in [0, V).

        Returns:
            Log-probabilities (N,) float32, entropies (N,) float32, whether the label is the most likely token (N,).
        """
        log_probs = hidden.new_empty(len(labels), dtype=torch.float32)
        entropy, is_top1 = torch.empty_like(log_probs), torch.empty_like(labels, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            label = labels[part].unsqueeze(1)  # (n, 1)
            logits = (hidden[part] @ weight.T).float()  # (n, V)
            is_top1[part] = logits.argmax(1) == labels[part]
            log_p = torch.log_softmax(logits, dim=1)
            log_probs[part] = log_p.gather(1, label).squeeze(1)
            p = log_p.exp()
            entropy[part] = -log_p.mul_(p).sum(1)
            if gradient is not None:
                # d log p(label) / d hidden = (onehot(label) - p) W
                p.neg_().scatter_add_(1, label, torch.ones_like(label, dtype=p.dtype))
                gradient[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, is_top1)
        return log_probs, entropy, is_top1

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Scale the stored gradient by what arrives for each log-probability."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1).to(gradient.dtype), None, None


def score_trained_tokens(model: Any) -> None:
    """Replace TRL's fused head on a causal language model by one that reads learned positions only.

    Args:
        model: The base model inside the adapter (what TRL patched), with a frozen head without bias.
    """
    forward_with_logits = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head or labels is None:
            kwargs |= {} if labels is None else {"labels": labels}
            return forward_with_logits(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]  # (B, T-1, D)
        labels = labels[:, 1:]
        mask = labels != -100
        head: nn.Linear = self.get_output_embeddings()
        scores = FrozenHeadLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden[mask].to(head.weight.dtype), head.weight, labels[mask]
        )
        log_probs, entropy, is_top1 = (
            score.new_zeros(mask.shape).masked_scatter(mask, score)  # (B, T-1)
            for score in scores
        )
        loss = -log_probs.sum() / mask.sum().clamp(min=1)
        return FusedCausalLMOutput(loss=loss, log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)

    model.forward = types.MethodType(forward, model)


def can_score_trained_tokens(model: Any) -> bool:
    """Whether the model's head is what `score_trained_tokens` wants: frozen, plain, without bias or scaling."""
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scaled = any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    is_plain = isinstance(head, nn.Linear) and getattr(head, "bias", None) is None
    return is_plain and not head.weight.requires_grad and not scaled
