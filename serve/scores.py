"""What a score is worth at the endpoint: comparable between queries, 0 to 1; a score_threshold is held against it.

The order of hits is the search's own, which also weighs words and is relative to the best hit of its query; see
docs/decisions/0062-scores-that-a-threshold-can-read.md. Does not know how hits are found.
"""

from retrieval.searcher import Hit

EVERYTHING = -1.0
"""A threshold that lets everything through: no relevance is lower."""


def read_score(hit: Hit) -> float:
    """Return a hit's score as clients see it: its relevance, negative cosines as 0."""
    return min(1.0, max(0.0, hit.relevance))


def read_threshold(threshold: float) -> float:
    """Return the least relevance for OpenAI's score_threshold, 0 to 1; 0 lets everything through."""
    return threshold if threshold > 0 else EVERYTHING
