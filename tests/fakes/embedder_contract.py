"""What every embedder keeps: checked against the hash embedder in the unit tier and the real MiniLM in integration."""

import numpy as np

from retrieval.embedding import Embedder, cut_windows, embed_passages, embed_texts

TEXTS = ("The pump has a warranty of 26 months.", "Ducks eat grain, grass and small fish.", "äöü 漢字 🙂")
LONG = " ".join(f"Sentence number {number} names the word w{number}." for number in range(120)) + " The end is zebra."


def check_vectors(embedder: Embedder) -> None:
    """Vectors have the stated length, are unit, finite and the same whatever they are embedded with."""
    together = embedder.embed_windows(TEXTS)
    assert together.shape == (len(TEXTS), embedder.identity.dimension)
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.stack([embedder.embed_windows([text])[0] for text in TEXTS])
    assert ((together * alone).sum(axis=1) > 0.9999).all()
    assert embedder.embed_windows([]).shape == (0, embedder.identity.dimension)


def check_meaning(embedder: Embedder) -> None:
    """A query is nearer to the passage that it is about."""
    scores = embedder.embed_windows(TEXTS) @ embedder.embed_query("how long is the warranty of the pump?")
    assert scores.argmax() == 0


def check_tokens(embedder: Embedder) -> None:
    """Token starts rise, lie in the text, and nothing is cut off."""
    for text in (*TEXTS, LONG):
        starts = list(embedder.token_starts(text))
        assert starts == sorted(starts)
        assert starts[0] == 0
        assert starts[-1] < len(text)
    assert len(embedder.token_starts(LONG)) > 2 * embedder.max_tokens
    assert list(embedder.token_starts("")) == []


def check_long_passages(embedder: Embedder) -> None:
    """A passage longer than the embedder reads has a window for each part, so its end counts too."""
    windows = cut_windows("Heading", LONG, embedder)
    assert len(windows) > 1
    assert all(window.startswith("Heading\n") for window in windows)
    assert all(len(embedder.token_starts(window)) <= embedder.max_tokens for window in windows)
    assert windows[-1].endswith("The end is zebra.")
    (vectors,) = embed_passages([("Heading", LONG)], embedder)
    assert vectors.shape == (len(windows), embedder.identity.dimension)
    scores = vectors @ embedder.embed_query("the end is zebra")
    assert scores.argmax() == len(windows) - 1


def check_texts(embedder: Embedder) -> None:
    """Any text has one unit vector, and a long one's vector depends on its end."""
    vectors = embed_texts([*TEXTS, LONG, LONG.replace("zebra", "giraffe")], embedder)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[-1], vectors[-2], atol=1e-5)
    assert embed_texts([], embedder).shape == (0, embedder.identity.dimension)


CHECKS = (check_vectors, check_meaning, check_tokens, check_long_passages, check_texts)
