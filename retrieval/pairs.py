"""Pairs of texts through a plain cross-encoder: tokenised once, batched by tokens, fetched from a card once.

sentence-transformers' own `predict` takes any model, and reads each text again from its characters, converts token by
token, and fetches score by score in older versions. This takes the numbers that were counted anyway; a test holds it to
`predict`. Does not know queries, windows or weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.batches import CARD_BATCH_TOKENS, pad_rows, share_out

CPU_BATCH_TOKENS = 2**10
"""Tokens of a batch on a CPU, its padding counted: few, so that short pairs are not padded to the longest."""


def is_plain(model: Any) -> bool:
    """Whether a CrossEncoder is one sequence classifier that reads pairs as its tokenizer joins them, and no more."""
    tokenizer = model.tokenizer
    return (
        len(model) == 1
        and type(getattr(model[0], "model", None)).__name__.endswith("ForSequenceClassification")
        and getattr(model, "default_prompt_name", None) is None
        and getattr(tokenizer, "chat_template", None) is None
        and hasattr(tokenizer, "backend_tokenizer")
        and tokenizer.padding_side == "right"
        and tokenizer.pad_token_id is not None
    )


def score_pairs(model: Any, encodings: Sequence[Any]) -> NDArray[np.float32]:
    """Return (pairs, labels) float32: what a plain cross-encoder says of each pair, before any activation.

    Args:
        model: The CrossEncoder; no other thread uses it meanwhile.
        encodings: Of tokenizers, special tokens included; none longer than the model reads.
    """
    import torch

    budget = CARD_BATCH_TOKENS if model.device.type == "cuda" else CPU_BATCH_TOKENS
    batches = list(share_out([len(encoding) for encoding in encodings], budget))
    has_types = "token_type_ids" in model.tokenizer.model_input_names
    found = []
    with torch.inference_mode():
        for batch in batches:
            features = _join([encodings[place] for place in batch], model.tokenizer.pad_token_id, has_types=has_types)
            tensors = {name: torch.from_numpy(rows).to(model.device) for name, rows in features.items()}
            scores = model(tensors)["scores"].float()  # in half precision many a pair would come out alike
            found.append(scores.reshape(len(batch), -1))
        rows = torch.cat(found).cpu().numpy()
    logits = np.empty_like(rows)
    logits[[place for batch in batches for place in batch]] = rows
    return logits


def _join(encodings: Sequence[Any], padding: int, *, has_types: bool) -> dict[str, NDArray[np.int64]]:
    """Return what a model reads, (pairs, tokens) each; the first pair is the longest."""
    ids, mask = pad_rows([encoding.ids for encoding in encodings], padding)
    features = {"input_ids": ids, "attention_mask": mask}
    if has_types:
        features["token_type_ids"], _ = pad_rows([encoding.type_ids for encoding in encodings], 0)
    return features
