"""The loss on a CPU: only what is learned is multiplied with the vocabulary, and the decoder runs by hand.

TRL's fused head leaves out prompt tokens on GPUs only; on a CPU it multiplies every position with the whole
vocabulary, and once more in the backward pass. Here each learned position is multiplied twice in all, because the
gradient of a frozen head is known as soon as its logits are. Same numbers as torch's cross entropy (proven in the
tests). Where the model allows it, the hidden states come from decoder.py; else from the model's own forward pass.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.utils import FusedCausalLMOutput

from train.decoder import Decoder
from train.flat_batch import FlatBatch, flatten_batch, flatten_packs
from train.tokens import IGNORED

CHUNK_LOGITS = 2**23
"""Logits at once: 32 MiB in float32."""
BORDERS = frozenset({"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
"""What TRL says about packed documents, several times over; the first says it all."""
DECODER_INPUTS = BORDERS | {"input_ids", "attention_mask", "use_cache", "return_dict"}
"""What the decoder understands; a call with more goes through the model's own forward pass."""


class FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probability of each label under a frozen head, with the gradient of the hidden states computed on the way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute log-probabilities, entropies, mean logits and hits, chunk by chunk.

        Args:
            ctx: For the backward pass.
            hidden: (N, D).
            weight: Of the head, (V, D), frozen.
            labels: (N,) in [0, V).

        Returns:
            Log-probabilities, entropies and mean logits, (N,) float32 each, and whether the label is the most likely
            token, (N,).
        """
        log_probs = hidden.new_empty(len(labels), dtype=torch.float32)
        entropy, mean = torch.empty_like(log_probs), torch.empty_like(log_probs)
        is_top1 = torch.empty_like(labels, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            label = labels[part].unsqueeze(1)  # (n, 1)
            logits = (hidden[part] @ weight.T).float()  # (n, V)
            best, best_at = logits.max(1, keepdim=True)
            p = torch.softmax(logits, dim=1)
            # The most likely token has a probability of at least 1 / V, so its logarithm is exact.
            log_sum = best - p.gather(1, best_at).log_()  # (n, 1)
            log_probs[part] = (logits.gather(1, label) - log_sum).squeeze(1)
            entropy[part] = log_sum.squeeze(1) - torch.linalg.vecdot(p, logits)
            mean[part] = logits.mean(1)
            is_top1[part] = (best_at == label).squeeze(1)
            if gradient is not None:
                # d log p(label) / d hidden = (onehot(label) - p) W
                p.neg_().scatter_add_(1, label, torch.ones_like(label, dtype=p.dtype))
                gradient[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, mean, is_top1)
        return log_probs, entropy, mean, is_top1

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Scale the stored gradient by what arrives for each log-probability."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1).to(gradient.dtype), None, None


def score_trained_tokens(model: Any, decoder: Decoder | None = None, *, share_prefix: bool = True) -> None:
    """Replace TRL's fused head on a causal language model by one that reads learned positions only.

    Args:
        model: The base model inside the adapter (what TRL patched), with a frozen head without bias.
        decoder: Computes the hidden states; None leaves them to the model's own forward pass.
        share_prefix: Let the decoder compute what all rows of a micro-batch begin with once.
    """
    forward_with_logits = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head or labels is None:
            kwargs |= {} if labels is None else {"labels": labels}
            return forward_with_logits(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        mask = labels[:, 1:] != IGNORED  # (B, T - 1)
        given = {name for name, value in kwargs.items() if value is not None}  # PEFT hands on every name it knows
        if decoder is not None and not args and given <= DECODER_INPUTS:
            batch = _flatten(kwargs, labels, share=share_prefix)
            hidden, learned, places = decoder.run(kwargs["input_ids"], batch), batch.labels, batch.scored_from
        else:
            states = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]  # (B, T-1, D)
            hidden, learned = states[mask], labels[:, 1:][mask]
            rows, columns = mask.nonzero(as_tuple=True)
            places = rows * labels.shape[1] + columns
        weight = self.get_output_embeddings().weight
        scores = FrozenHeadLogProbs.apply(hidden.to(weight.dtype), weight, learned)  # type: ignore[no-untyped-call]
        log_probs, entropy, mean, is_top1 = (
            score.new_zeros(labels.numel()).index_put((places,), score).view(labels.shape)[:, :-1] for score in scores
        )
        loss = -log_probs.sum() / mask.sum().clamp(min=1)
        return FusedCausalLMOutput(
            loss=loss, log_probs=log_probs, entropy=entropy, mean_logits=mean, is_top1=is_top1, label_mask=mask
        )

    model.forward = types.MethodType(forward, model)


def _flatten(inputs: dict[str, Any], labels: Tensor, *, share: bool) -> FlatBatch:
    """Find a flat place for every token of what a collator made, padded or packed."""
    if inputs.get("position_ids") is not None:
        return flatten_packs(inputs["input_ids"], inputs["position_ids"], labels, share=share)
    return flatten_batch(inputs["input_ids"], inputs.get("attention_mask"), labels, share=share)


def can_score_trained_tokens(model: Any) -> bool:
    """Whether the model's head is what `score_trained_tokens` wants: frozen, plain, without bias or scaling."""
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scaled = any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    is_plain = isinstance(head, nn.Linear) and getattr(head, "bias", None) is None
    return is_plain and not head.weight.requires_grad and not scaled
