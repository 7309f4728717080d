"""Embedding in batches: same result for any batch, never more than a batch of images alive."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from PIL import Image

from ito_ray.data.heldout import Pair
from ito_ray.errors import DataError
from ito_ray.evaluation import embed
from ito_ray.evaluation.embed import embed_labelled, embed_pairs, join_labelled, join_pairs
from ito_ray.evaluation.encoder import Embeddings
from tests.evaluation.shapes import SHAPES, ShapeEncoder, draw


def pairs(count: int) -> Iterator[Pair]:
    for i in range(count):
        shape = SHAPES[i % len(SHAPES)]
        captions = tuple(f"a red {shape} {j}" for j in range(1 + i % 3))
        yield Pair(key=f"k{i}", image=draw("red", shape, seed=i), captions=captions, meta={"name": shape, "n": i})


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_equals_one_call_for_any_batch(batch: int) -> None:
    encoder = ShapeEncoder()
    found = embed_pairs(encoder, pairs(11), batch)
    rows = list(pairs(11))
    np.testing.assert_array_equal(found.image, ShapeEncoder().encode_images([row.image for row in rows]))
    flat = [caption for row in rows for caption in row.captions]
    np.testing.assert_array_equal(found.text, ShapeEncoder().encode_texts(flat))
    assert found.captions == tuple(flat)
    assert [found.keys[i] for i in found.owner] == [row.key for row in rows for _ in row.captions]
    assert found.thumbnails == ()
    assert encoder.largest_call == min(batch, 11)


def test_large_images_are_encoded_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in pixels: 256 photos of 24 megapixels are 24 GB."""
    expected = embed_pairs(ShapeEncoder(), pairs(11), 100)
    side = next(pairs(1)).image.width
    monkeypatch.setattr(embed, "_MOST_PIXELS", 3 * side * side)
    encoder = ShapeEncoder()
    np.testing.assert_array_equal(embed_pairs(encoder, pairs(11), 100).image, expected.image)
    assert encoder.largest_call == 3


def test_only_the_first_captions_count() -> None:
    found = embed_pairs(ShapeEncoder(), pairs(6), 4, captions=1)
    assert found.captions == tuple(f"a red {shape} 0" for shape in SHAPES)
    np.testing.assert_array_equal(found.owner, np.arange(6))


def test_thumbnails_are_small_pictures_of_the_images() -> None:
    found = embed_pairs(ShapeEncoder(), pairs(3), 2, thumbnail=24)
    for row, data in zip(pairs(3), found.thumbnails, strict=True):
        small = Image.open(io.BytesIO(data))
        assert small.size == (24, 24)
        expected = np.asarray(row.image.resize((24, 24), Image.Resampling.LANCZOS), dtype=np.float64)
        assert np.abs(np.asarray(small.convert("RGB"), dtype=np.float64) - expected).mean() < 8


@pytest.mark.parametrize("count", [20, 200])
def test_no_more_than_a_batch_of_images_is_alive(count: int) -> None:
    alive: set[int] = set()
    most = 0

    def watched() -> Iterator[Pair]:
        nonlocal most
        for i, pair in enumerate(pairs(count)):
            alive.add(i)
            weakref.finalize(pair.image, alive.discard, i)
            most = max(most, len(alive))
            del_me = pair
            del pair
            yield del_me
            del del_me

    gc.disable()  # references alone must free them
    try:
        embed_pairs(ShapeEncoder(), watched(), 8, thumbnail=16)
        assert most <= 9  # a batch, and the one that the loop above still holds
        alive.clear()
        most = 0
        embed_labelled(ShapeEncoder(), watched(), {"circle": 0}, "name", 8)
        assert most <= 9
    finally:
        gc.enable()


def test_labels_come_from_the_field() -> None:
    found = embed_labelled(ShapeEncoder(), pairs(13), {"bar": 0, "circle": 1}, "name", 4)
    assert found.labels.tolist() == [1, 0, 1, 0, 1]
    assert found.left_out == 8
    assert found.image.shape[0] == 5
    numbers = embed_labelled(ShapeEncoder(), pairs(3), {"2": 0}, "n", 4)  # a number in the json matches its text
    assert numbers.labels.tolist() == [0]


def test_what_is_not_listed_is_counted_and_named() -> None:
    found = embed_labelled(ShapeEncoder(), pairs(6), {"cat": 0}, "name", 10)
    assert (len(found.labels), found.left_out, found.unknown) == (0, 6, ("bar", "circle", "cross"))


@pytest.mark.parametrize("cut", [0, 1, 5, 11])
def test_joined_pieces_equal_the_whole(cut: int) -> None:
    encoder, rows = ShapeEncoder(), list(pairs(11))
    whole = embed_pairs(encoder, rows, 4, thumbnail=8)
    parts = join_pairs([embed_pairs(encoder, part, 4, thumbnail=8) for part in (rows[:cut], rows[cut:])])
    np.testing.assert_array_equal(parts.image, whole.image)
    np.testing.assert_array_equal(parts.text, whole.text)
    np.testing.assert_array_equal(parts.owner, whole.owner)
    assert (parts.keys, parts.captions, parts.thumbnails) == (whole.keys, whole.captions, whole.thumbnails)
    index = {"bar": 0, "circle": 1}
    known = embed_labelled(encoder, rows, index, "name", 4)
    both = join_labelled([embed_labelled(encoder, part, index, "name", 4) for part in (rows[:cut], rows[cut:])])
    np.testing.assert_array_equal(both.image, known.image)
    np.testing.assert_array_equal(both.labels, known.labels)
    assert both.left_out == known.left_out


def test_a_diverged_encoder_is_named() -> None:
    class Diverged(ShapeEncoder):
        def encode_texts(self, texts: Sequence[str]) -> Embeddings:
            out = super().encode_texts(texts)
            out[-1] = np.nan
            return out

    with pytest.raises(
        DataError, match="shapes gives NaN or zero vectors: 1 of 3 for texts, the first for 'a red square 1'"
    ):
        embed_pairs(Diverged(), pairs(5), 2)
