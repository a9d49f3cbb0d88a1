"""The loss: only what is learned is multiplied with the vocabulary, and the decoder runs by hand.

TRL's fused head leaves out prompt tokens on GPUs only, and multiplies once more in the backward pass. Here each learned
position is multiplied twice in all, because the gradient of a frozen head is known as soon as its logits are; logits
are never whole in memory, on a card as on a CPU. Same numbers as torch's cross entropy (proven in the tests). Where the
model allows it, the hidden states come from decoder.py; else from the model's own forward pass.
"""

import functools
import types
from typing import Any

import torch
from torch import Tensor, nn

from train.decoder import Decoder
from train.flat_batch import LAYOUT, lay_out
from train.passes import IN_PLACE, Passes
from train.tokens import IGNORED

CHUNK_LOGITS = 2**23
"""Logits at once on a CPU: 32 MiB in float32."""
CARD_CHUNK_LOGITS = {False: 2**26, True: 2**24}
"""The same on a card, where few rows at once leave it idle; fewer where layers are recomputed to save memory."""
BORDERS = frozenset({"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"})
"""What TRL says about packed documents, several times over; the first says it all."""
DECODER_INPUTS = BORDERS | {"input_ids", "attention_mask", "use_cache", "return_dict"}
"""What the decoder understands; a call with more goes through the model's own forward pass."""


class FrozenHeadLogProbs(torch.autograd.Function):
    """Log-probability of each label under a frozen head, with the gradient of the hidden states computed on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, passes: Passes = IN_PLACE, chunk_logits: int = 0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute log-probabilities, entropies, mean logits and hits, chunk by chunk.

        Args:
            ctx: For the backward pass.
            hidden: (N, D).
            weight: Of the head, (V, D), frozen.
            labels: (N,) in [0, V).
            passes: Who turns logits into scores.
            chunk_logits: Logits at once; 0 takes a CPU's number.

        Returns:
            Log-probabilities, entropies and mean logits, (N,) float32 each, and whether the label is the most likely
            token, (N,).
        """
        log_probs = hidden.new_empty(len(labels), dtype=torch.float32)
        entropy, mean = torch.empty_like(log_probs), torch.empty_like(log_probs)
        is_top1 = torch.empty_like(labels, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, (chunk_logits or CHUNK_LOGITS) // len(weight))
        for start in range(0, len(labels), rows):
            part = slice(start, start + rows)
            logits = hidden[part] @ weight.T  # (n, V)
            scores = passes.score(logits, labels[part], gradient is not None)
            log_probs[part], entropy[part], mean[part], is_top1[part], d_logits = scores
            if gradient is not None and d_logits is not None:
                gradient[part] = d_logits @ weight  # d log p(label) / d hidden = (onehot(label) - p) W
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(entropy, mean, is_top1)
        return log_probs, entropy, mean, is_top1

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Scale the stored gradient by what arrives for each log-probability."""
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].unsqueeze(1).to(gradient.dtype), None, None, None, None


def score_hidden(hidden: Tensor, weight: Tensor, labels: Tensor, decoder: Decoder | None) -> tuple[Tensor, ...]:
    """Return log-probabilities, entropies, mean logits and hits of learned positions, as their machine takes them best.

    Args:
        hidden: (N, D).
        weight: Of the head, (V, D), frozen.
        labels: (N,) in [0, V).
        decoder: Where the hidden states come from; None: the model's own layers.
    """
    passes = decoder.kernels.passes if decoder else IN_PLACE
    chunk = CARD_CHUNK_LOGITS[decoder is not None and decoder.is_recomputed] if hidden.is_cuda else CHUNK_LOGITS
    with torch.autocast(hidden.device.type, enabled=False):
        scores: tuple[Tensor, ...] = FrozenHeadLogProbs.apply(hidden.to(weight.dtype), weight, labels, passes, chunk)  # type: ignore[no-untyped-call]
    return scores


def score_trained_tokens(model: Any, decoder: Decoder | None = None, *, share_prefix: bool = True) -> None:
    """Replace TRL's fused head on a causal language model by one that reads learned positions only.

    Args:
        model: The base model inside the adapter (what TRL patched), with a frozen head without bias.
        decoder: Computes the hidden states; None leaves them to the model's own forward pass.
        share_prefix: Let the decoder compute what all rows of a micro-batch begin with once, where its kernels can.
    """
    from trl.trainer.utils import FusedCausalLMOutput

    forward_with_logits = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, fused_lm_head: bool = False, labels: Tensor | None = None, **kwargs: Any) -> Any:
        layout = kwargs.pop(LAYOUT, None)
        if not fused_lm_head or labels is None:
            kwargs |= {} if labels is None else {"labels": labels}
            return forward_with_logits(*args, fused_lm_head=fused_lm_head, **kwargs)
        kwargs.pop("num_items_in_batch", None)
        mask = labels[:, 1:] != IGNORED  # (B, T - 1)
        given = {name for name, value in kwargs.items() if value is not None}  # PEFT hands on every name it knows
        if decoder is not None and not args and given <= DECODER_INPUTS:
            batch = layout or lay_out(kwargs, labels, share=share_prefix and decoder.kernels.shares_prefix)
            hidden, learned, places = decoder.run(kwargs["input_ids"], batch), batch.labels, batch.scored_from
        else:
            states = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state[:, :-1]  # (B, T-1, D)
            hidden, learned = states[mask], labels[:, 1:][mask]
            rows, columns = mask.nonzero(as_tuple=True)
            places = rows * labels.shape[1] + columns
        weight = self.get_output_embeddings().weight
        scores = score_hidden(hidden, weight, learned, decoder)
        log_probs, entropy, mean, is_top1 = (
            score.new_zeros(labels.numel()).index_put((places,), score).view(labels.shape)[:, :-1] for score in scores
        )
        loss = -log_probs.sum() / mask.sum().clamp(min=1)
        return FusedCausalLMOutput(
            loss=loss, log_probs=log_probs, entropy=entropy, mean_logits=mean, is_top1=is_top1, label_mask=mask
        )

    model.forward = types.MethodType(forward, model)


def can_score_trained_tokens(model: Any) -> bool:
    """Whether the model's head is what `score_trained_tokens` wants: frozen, plain, without bias or scaling."""
    head: Any = model.get_output_embeddings()
    config = model.config.get_text_config()
    scaled = any(getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    is_plain = isinstance(head, nn.Linear) and getattr(head, "bias", None) is None
    return is_plain and not head.weight.requires_grad and not scaled
