"""Arithmetic operations of one trained token, by which a speed in tokens/s becomes a share of what a card can do.

A frozen base is multiplied twice, forward and for the gradient of its inputs; an adapter once more, for the gradient of
its weights; attention backward costs twice its forward pass. So 4N + 6P + 3A, never the 6N of training every weight.
What an implementation computes again (recomputed layers, dequantized codes, padding) is not counted: it is its
cost, not work done. Beside them, the bytes that layers.py moves between the large products, which a card cannot compute
in the meantime. What a whole run computes on its own rows is duration.py's.

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


@dataclass(frozen=True, slots=True)
class TokenTraffic:
    """Bytes that one token moves between the large products, forward and backward, every pass being one kernel.

    The products' own inputs and outputs, attention, and what happens once a model instead of once a layer are left out.

    Attributes:
        norms: Both of a layer, computed again in the backward pass.
        rotation: Of queries and keys, into new memory and back into place.
        gate: silu(gate) * up, computed again in the backward pass.
        adapters: Reading what A and B are multiplied with, and adding their products to the base's.
        residual: Adding what each half changes.
        scores: From logits to their gradient.
    """

    norms: float
    rotation: float
    gate: float
    adapters: float
    residual: float
    scores: float

    @property
    def total(self) -> float:
        """Everything together."""
        return self.norms + self.rotation + self.gate + self.adapters + self.residual + self.scores


SCORE_PASSES = 4
"""Times that logits are moved: read for the softmax, the entropy and the gradient, which is written."""


def count_token_traffic(shape: Shape, itemsize: int = 2) -> TokenTraffic:
    """Count the bytes that the hand-written layers move for a token between the products.

    Args:
        shape: Of the base model.
        itemsize: Bytes of an activation.
    """
    hidden, inner, heads = shape.hidden, shape.intermediate, shape.queries + 2 * shape.keys
    joined = [(hidden, heads), (shape.queries, hidden), (hidden, 2 * inner), (inner, hidden)]  # q k v, o, gate up, down
    layer = shape.layers * itemsize
    return TokenTraffic(
        norms=layer * 2 * (2 + 2 + 4) * hidden,
        rotation=layer * 2 * 4 * (shape.queries + shape.keys),
        gate=layer * (3 + 6) * inner,
        # Forward: read x, add to y. Backward: read dy, add to dx, and read both once more for the gradients.
        adapters=layer * sum((1 + 2 + 1) * inputs + (2 + 1 + 1) * outputs for inputs, outputs in joined),
        residual=layer * 2 * 3 * hidden,
        scores=itemsize * SCORE_PASSES * shape.vocabulary,
    )


def find_used_share(tokens_per_s: float, operations: TokenOperations, peak_per_s: float) -> float:
    """Return the share of a card's arithmetic that a training speed uses (model FLOPs utilization), 0 to 1.

    Args:
        tokens_per_s: Non-padding tokens a second.
        operations: Of one token.
        peak_per_s: Operations a second of large matrix products in the dtype of the training.
    """
    return tokens_per_s * operations.total / peak_per_s
