"""How well a model predicts held-out chats: mean loss of a learned token, and the share that it gets right.

Counts every learned token once, whatever the batches; the Trainer's own figure is a mean over batches. Does not know
how the model is held or what is in its weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from train.tokens import IGNORED, Example


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model made of some examples.

    Attributes:
        loss: Mean negative log-probability of a learned token, in nats.
        token_accuracy: Share of the learned tokens that were the most likely ones, 0 to 1.
        tokens: Learned tokens.
    """

    loss: float
    token_accuracy: float
    tokens: int


@torch.inference_mode()
def measure_prediction(model: Any, examples: Sequence[Example], tell: Callable[[], None]) -> Prediction:
    """Let a causal language model predict the learned tokens of some examples.

    Args:
        model: With or without an adapter.
        examples: One at a time, so that there is no padding.
        tell: Called after each.
    """
    model.eval()
    loss, right, tokens = 0.0, 0, 0
    for example in examples:
        ids = torch.tensor([example["input_ids"]], device=model.device)  # (1, T)
        labels = torch.tensor(example["labels"][1:], device=model.device)  # (T - 1,), of the positions before
        learned = (labels != IGNORED).nonzero().squeeze(1)  # (N,)
        logits = model(input_ids=ids, logits_to_keep=learned, use_cache=False).logits[0].float()  # (N, V)
        wanted = labels[learned]
        loss += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
        right += int((logits.argmax(1) == wanted).sum())
        tokens += len(wanted)
        tell()
    return Prediction(loss / max(1, tokens), right / max(1, tokens), tokens)
