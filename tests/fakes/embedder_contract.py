"""What every embedder keeps: checked against the hash embedder in the unit tier and the real MiniLM in integration."""

import numpy as np

from retrieval.embedding import Embedder, embed_passages, embed_texts
from retrieval.spans import LARGEST, make_span_run, score_spans
from retrieval.windows import cut_windows

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
    assert vectors.windows.shape == (len(windows), embedder.identity.dimension)
    scores = vectors.windows @ embedder.embed_query("the end is zebra")
    assert scores.argmax() == len(windows) - 1


def check_texts(embedder: Embedder) -> None:
    """Any text has one unit vector, and a long one's vector depends on its end."""
    vectors = embed_texts([*TEXTS, LONG, LONG.replace("zebra", "giraffe")], embedder)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors[-1], vectors[-2], atol=1e-5)
    assert embed_texts([], embedder).shape == (0, embedder.identity.dimension)


def check_spans(embedder: Embedder) -> None:
    """The span that answers is found among many that do not, better than by the whole."""
    assert embedder.makes_spans
    vectors, spans = embedder.embed_with_spans([*TEXTS, LONG])
    assert np.allclose(vectors, embedder.embed_windows([*TEXTS, LONG]), atol=2e-3)
    assert all(one.dtype == np.int8 and one.shape[1:] == (embedder.identity.dimension,) for one in spans)
    assert all((np.abs(one.astype(np.int64)).max(axis=1) == LARGEST).all() for one in spans)
    hidden = " ".join([TEXTS[1]] * 3 + [TEXTS[0]] + [TEXTS[1]] * 3)
    (passage,) = embed_passages([(None, hidden)], embedder)
    query = embedder.embed_query("how long is the warranty of the pump?")
    whole = (passage.windows @ query).max()
    run = make_span_run([passage.spans], embedder.identity.dimension)
    (best,) = score_spans([run], query, np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.float32))
    assert best > whole
    assert embedder.embed_with_spans([])[1] == []


CHECKS = (check_vectors, check_meaning, check_tokens, check_long_passages, check_texts, check_spans)
