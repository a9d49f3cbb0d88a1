"""Arithmetic operations of one trained token, by which a speed in tokens/s becomes a share of what a card can do.

A frozen base is multiplied twice, forward and for the gradient of its inputs; an adapter once more, for the gradient of
its weights; attention backward costs twice its forward pass. So 4N + 6P + 3A, never the 6N of training every weight.
What an implementation computes again (recomputed layers, dequantized codes, padding) is not counted: it is its
cost, not work done. What a whole run computes on its own rows is duration.py's.

Source: «Scaling Laws for Neural Language Models», arXiv 2001.08361, section 2.1, for the 6N that this departs from.
"""

from dataclasses import dataclass

from train.footprint import Shape


@dataclass(frozen=True, slots=True)
class TokenOperations:
    """Operations behind one token, forward and backward.

    Attributes:
        base: 4N, N being the weights of the linear layers and of the head, which every token is multiplied with.
        adapter: 6P, P being the adapter's weights.
        attention: 3A, A being the two products of a token's queries with all tokens before it, and itself.
    """

    base: float
    adapter: float
    attention: float

    @property
    def total(self) -> float:
        """Everything together."""
        return self.base + self.adapter + self.attention


def count_token_operations(
    shape: Shape, rank: int, length: int, targets: list[str] | None = None, *, is_head_counted: bool = True
) -> TokenOperations:
    """Count what a token needs, the mean over a document.

    Args:
        shape: Of the base model.
        rank: Of the adapter.
        length: Tokens of the documents; a packed batch has shorter ones than its packs.
        targets: Linear layers with an adapter; None: every one.
        is_head_counted: Whether tokens meet the vocabulary, as those do that are learned.
    """
    weights = shape.linear_parameters + (shape.vocabulary * shape.hidden if is_head_counted else 0)
    seen = (length + 1) / 2  # token i sees i + 1 tokens
    forward = 2 * 2 * shape.queries * shape.layers * seen
    return TokenOperations(4.0 * weights, 6.0 * shape.adapter_parameters(rank, targets), 3 * forward)


def find_used_share(tokens_per_s: float, operations: TokenOperations, peak_per_s: float) -> float:
    """Return the share of a card's arithmetic that a training speed uses (model FLOPs utilization), 0 to 1.

    Args:
        tokens_per_s: Non-padding tokens a second.
        operations: Of one token.
        peak_per_s: Operations a second of large matrix products in the dtype of the training.
    """
    return tokens_per_s * operations.total / peak_per_s
