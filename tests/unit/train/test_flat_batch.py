"""Every token of a micro-batch stands in the flat order once, at its place, and is scored by its successor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.flat_batch import LAYOUT, FlatBatch, LayingOut, flatten_batch, flatten_packs
from train.tokens import IGNORED

PAD = 0


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], bool]:
    """Rows of token ids that may begin alike, their labels, and whether the padding stands on the left."""
    common = draw(st.lists(st.integers(1, 9), max_size=12))
    rows = [common + draw(st.lists(st.integers(1, 9), min_size=2, max_size=9)) for _ in range(draw(st.integers(1, 4)))]
    learned = draw(st.sampled_from(["all", "last", "some", "none"]))
    labels = []
    for row in rows:
        marks = {"all": [True] * len(row), "none": [False] * len(row), "last": [False] * (len(row) - 1) + [True]}
        mark = marks.get(learned) or draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
        labels.append([token if is_learned else IGNORED for token, is_learned in zip(row, mark, strict=True)])
    return rows, labels, draw(st.booleans())


def pad(rows: list[list[int]], value: int, *, left: bool) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor(
        [[value] * (width - len(row)) + row if left else row + [value] * (width - len(row)) for row in rows]
    )


def flatten(
    rows: list[list[int]], labels: list[list[int]], *, left: bool, share: bool
) -> tuple[torch.Tensor, FlatBatch]:
    ids = pad(rows, PAD, left=left)
    mask = pad([[1] * len(row) for row in rows], 0, left=left)
    return ids, flatten_batch(ids, mask, pad(labels, IGNORED, left=left), share=share)


@given(batches(), st.booleans())
def test_each_row_can_be_put_together_again(
    batch: tuple[list[list[int]], list[list[int]], bool],
    share: bool,
) -> None:
    rows, labels, left = batch
    ids, flat = flatten(rows, labels, left=left, share=share)
    tokens = ids.flatten()[flat.take]
    head = tokens[: flat.shared].tolist()
    spread = torch.zeros(flat.rows * flat.width, 2, dtype=torch.long)
    spread[flat.places] = torch.stack([tokens, flat.positions], 1)[flat.shared :]
    from_long_to_short = sorted(rows, key=len, reverse=True)
    assert flat.widths == tuple(len(row) - flat.shared for row in from_long_to_short)
    for row, own in zip(from_long_to_short, spread.view(flat.rows, flat.width, 2).tolist(), strict=True):
        count = len(row) - flat.shared
        assert [*head, *(token for token, _ in own[:count])] == row
        assert [place for _, place in own[:count]] == list(range(flat.shared, len(row)))
    assert flat.positions[: flat.shared].tolist() == list(range(flat.shared))
    assert len(tokens) == flat.shared + len(flat.places)


@given(batches(), st.booleans())
def test_the_scored_are_those_before_a_label(
    batch: tuple[list[list[int]], list[list[int]], bool],
    share: bool,
) -> None:
    rows, labels, left = batch
    ids, flat = flatten(rows, labels, left=left, share=share)
    expected = sorted(
        (row_number, place, label)
        for row_number, row in enumerate(labels)
        for place, label in enumerate(row[1:])
        if label != IGNORED
    )
    width = ids.shape[1]
    found = []
    for place, label in zip(flat.scored_from.tolist(), flat.labels.tolist(), strict=True):
        row_number, column = divmod(place, width)
        found.append((row_number, column - (width - len(rows[row_number]) if left else 0), label))
    assert sorted(found) == expected
    assert flat.take[flat.scored].tolist() == flat.scored_from.tolist()
    assert (flat.scored >= flat.shared).all()


def test_a_common_beginning_is_taken_once() -> None:
    rows = [[1, 2, 3, 4, 5, 6, row, 8] for row in (1, 2, 3)]
    labels = [[IGNORED] * 7 + [8]] * 3
    _, flat = flatten(rows, labels, left=False, share=True)
    assert flat.shared == 6
    assert len(flat.take) == 6 + 3 * 2
    assert flatten(rows, labels, left=False, share=False)[1].shared == 0


def test_a_learned_beginning_is_not_shared() -> None:
    rows = [[1, 2, 3, 4, 5, 6, row, 8] for row in (1, 2, 3)]
    _, flat = flatten(rows, rows, left=False, share=True)
    assert flat.shared == 0


@given(batches(), st.booleans())
def test_packed_documents_are_rows(batch: tuple[list[list[int]], list[list[int]], bool], share: bool) -> None:
    rows, labels, _ = batch
    ids, padded = flatten(rows, labels, left=False, share=share)
    joined = torch.tensor([token for row in rows for token in row])
    places = torch.tensor([place for row in rows for place in range(len(row))])
    learned = torch.tensor([label for row in labels for label in [IGNORED, *row[1:]]])
    packed = flatten_packs(joined[None], places[None], learned[None], share=share)
    assert joined[packed.take].tolist() == ids.flatten()[padded.take].tolist()
    assert packed.widths == padded.widths
    assert packed.starts.tolist() == [packed.shared + sum(packed.widths[:row]) for row in range(packed.rows + 1)]
    for name in ("starts", "positions", "places", "scored", "labels"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))
    assert learned[packed.scored_from + 1].tolist() == packed.labels.tolist()


@pytest.mark.parametrize("kind", ["rows", "packs", "pairs"])
def test_a_collator_sends_the_layout_along(kind: str) -> None:
    ids, labels = torch.tensor([[5, 6, 7, 8, 9, 4]]), torch.tensor([[IGNORED, 6, 7, IGNORED, 9, 4]])
    batch = {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}
    expected = flatten_batch(ids, None, labels)
    if kind == "packs":
        batch["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2]])
        expected = flatten_packs(ids, batch["position_ids"], labels)
    elif kind == "pairs":
        del batch["labels"]
        batch["completion_mask"] = (labels != IGNORED).long()
    found = LayingOut(lambda _: batch, share=True)([])
    assert {name: value for name, value in found.items() if name != LAYOUT} == batch
    for one, other in ((found[LAYOUT], expected), (found[LAYOUT].to("meta", non_blocking=True), expected.to("meta"))):
        assert (one.shared, one.widths) == (other.shared, other.widths)
        for name in ("take", "positions", "starts", "places", "scored", "scored_from", "labels"):
            mine, wanted = getattr(one, name), getattr(other, name)
            assert mine.device == wanted.device
            assert mine.shape == wanted.shape
            assert mine.is_meta or torch.equal(mine, wanted)
