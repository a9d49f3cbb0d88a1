"""How a streamed text comes: in pieces."""


def cut(text: str, sizes: list[int]) -> list[str]:
    """Cut a text into pieces of the given sizes; the rest is the last piece."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(text[start : start + size])
        start += size
    return [*pieces, text[start:]]
