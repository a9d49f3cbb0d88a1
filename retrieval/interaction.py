"""Late interaction: token against token, and what that and the likeness of hits make of a ranking.

    question's tokens ─┬─ cosine of the nearest token within a stretch of the passage ─┐
                       └─ how rare the token is ───────────────────────────────────────┴─ sum, of the best stretch

Words of a question that stand together in a passage say more than the same words far apart, and a rare word says more
than «which» or a comma. What lies near the best hit is likelier to answer than what does not: passages that answer are
alike. Pure functions on arrays, and the file that keeps what was learned (weighing.py). Does not know models or texts.

Source: Khattab & Zaharia, «ColBERT», 2020, https://arxiv.org/abs/2004.12832, section 3.3, for the nearest tokens; Hui
et al., «Co-PACRR», 2018, https://arxiv.org/abs/1706.10192, for their neighbourhood; Diaz, «Regularizing ad hoc
retrieval scores», CIKM 2005, for scores that like hits share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import ContractError

WEIGHTING_FILE = "weighting.safetensors"
"""Lies in a reranker's folder beside its encoder."""
HALF_STRETCH = 16
"""Tokens of half a stretch; each stretch shares a half with the next."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reranker makes of some passages.

    Attributes:
        scores: (passages,) float32, 0 to 1.
        means: (passages, dimension) float32, unit rows: products are cosines; (passages, 0) where no likeness counts.
    """

    scores: NDArray[np.float32]
    means: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Weighting:
    """What was learned about tokens and rankings.

    Attributes:
        rarity: (vocabulary,) float32 above 0 by token number: how much a token of a question counts.
        rerank_weight: Share of the reranker's score in the final one, 0 to 1.
        feedback: Share of the likeness to the best hit in what is left, 0 to 1; the fused score has the rest.
    """

    rarity: NDArray[np.float32]
    rerank_weight: float
    feedback: float


def score_evenly(question: NDArray[np.float32], windows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the mean over a question's tokens of the cosine of each window's nearest token, (windows,), 0 to 1.

    Args:
        question: (tokens, dimension) unit rows.
        windows: (tokens, dimension) unit rows of each.
    """
    found = [
        float((question @ window.T).max(axis=1).mean()) if _can_meet(question, window) else 0 for window in windows
    ]
    return np.array(found, dtype=np.float32).clip(0, 1)


def score_stretches(
    question: NDArray[np.float32], rarity: NDArray[np.float32], windows: Sequence[NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return how near the best stretch of each window comes to a question, (windows,) float32, 0 to 1.

    Args:
        question: (tokens, dimension) unit rows.
        rarity: (tokens,) float32 above 0: how much each of them counts.
        windows: (tokens, dimension) unit rows of each.
    """
    shares = rarity / max(float(rarity.sum()), 1e-9)
    scores = np.zeros(len(windows), dtype=np.float32)
    for place, window in enumerate(windows):
        if _can_meet(question, window):
            halves = np.maximum.reduceat(question @ window.T, np.arange(0, len(window), HALF_STRETCH), axis=1)
            stretches = np.maximum(halves[:, :-1], halves[:, 1:]) if halves.shape[1] > 1 else halves
            scores[place] = (shares @ stretches).max()
    return scores.clip(0, 1)


def _can_meet(question: NDArray[np.float32], window: NDArray[np.float32]) -> bool:
    return len(question) > 0 and len(window) > 0


def mix_scores(
    fused: NDArray[np.float32],
    reranked: NDArray[np.float32],
    likeness: NDArray[np.float32],
    weight: float,
    feedback: float,
) -> NDArray[np.float32]:
    """Return (passages,) float32 final scores, 0 to 1.

    A reranker with no share has nothing to say of likeness either: then the fused scores stay as they are.

    Args:
        fused: (passages,) of the hybrid search.
        reranked: (passages,) of the reranker.
        likeness: (passages, passages) cosines of the passages with each other.
        weight: Share of the reranker's score.
        feedback: Share of the likeness to the best hit in the rest.
    """
    plain = (1 - weight) * fused + weight * reranked
    if not weight or not feedback or len(plain) < 2:
        return plain.astype(np.float32)
    first, second = np.argsort(-plain, kind="stable")[:2]
    near = likeness[first].copy()
    near[first] = near[second]  # the best hit is as near to the second as that is to it
    return np.asarray((1 - weight) * ((1 - feedback) * fused + feedback * near) + weight * reranked, dtype=np.float32)


def write_weighting(folder: Path, weighting: Weighting) -> None:
    """Write what was learned into a reranker's folder."""
    from safetensors.numpy import save_file

    scalars = {"rerank_weight": weighting.rerank_weight, "feedback": weighting.feedback}
    tensors = {name: np.array([value], dtype=np.float32) for name, value in scalars.items()}
    save_file({"rarity": weighting.rarity.astype(np.float32), **tensors}, folder / WEIGHTING_FILE)


def read_weighting(folder: Path) -> Weighting | None:
    """Return what was learned, None where the reranker's folder holds nothing of it.

    Raises:
        ContractError: The file is not what `write_weighting` wrote.
    """
    path = folder / WEIGHTING_FILE
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found = load_file(path)
        rarity, weight, feedback = (found[name] for name in ("rarity", "rerank_weight", "feedback"))
        weighting = Weighting(rarity.astype(np.float32), weight.item(), feedback.item())
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise ContractError(f"{path}: cannot be read ({error}). Import or train the reranker again.") from error
    if rarity.ndim != 1 or not (rarity > 0).all() or not all(0 <= x <= 1 for x in (weight.item(), feedback.item())):
        raise ContractError(
            f"{path}: wanted weights of tokens above 0 and shares of 0 to 1, found others. Train it again."
        )
    return weighting
