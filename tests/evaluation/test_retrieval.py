"""Retrieval against full matrices, argsort, open_clip and random orders."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ito_ray.data.captions import caption_numbers
from ito_ray.evaluation.answers import Answers
from ito_ray.evaluation.encoder import Embeddings
from ito_ray.evaluation.retrieval import Ranks, retrieval
from ito_ray.evaluation.similarity import on_grid


def unit(x: NDArray[np.float64]) -> Embeddings:
    unit_ND: Embeddings = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return unit_ND


def make(n: int, m: int, d: int, seed: int) -> tuple[Embeddings, Embeddings, NDArray[np.int64]]:
    """Images, captions near their images, owners in no order; every image has at least one."""
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, d))
    owner = rng.permutation(np.concatenate([np.arange(n), rng.integers(n, size=m - n)]))
    text = image[owner] + 1.5 * rng.standard_normal((m, d))
    return unit(image), unit(text), owner


def naive(image: Embeddings, text: Embeddings, owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks from the full matrix in integers of arbitrary size, query by query."""
    grid_image = np.rint(image.astype(np.float64) * 2**26).astype(np.int64).astype(object)
    grid_text = np.rint(text.astype(np.float64) * 2**26).astype(np.int64).astype(object)
    score = grid_image @ grid_text.T
    image_rank = [1 + sum(score[i, owner != i] >= max(score[i, owner == i])) for i in range(len(image))]
    text_rank = [sum(score[:, j] >= score[owner[j], j]) for j in range(len(text))]
    return np.array(image_rank, dtype=np.int64), np.array(text_rank, dtype=np.int64)


@pytest.mark.parametrize("chunk", [1, 7, 64, 1024])
def test_equals_the_full_matrix_for_any_chunk(chunk: int) -> None:
    image, text, owner = make(40, 97, 16, seed=1)
    found = retrieval(image, text, owner, chunk=chunk)
    image_rank, text_rank = naive(image, text, owner)
    np.testing.assert_array_equal(found.image_to_text.rank, image_rank)
    np.testing.assert_array_equal(found.text_to_image.rank, text_rank)


@pytest.mark.parametrize("chunk", [1, 5, 33, 1024])
def test_ties_count_against_the_model_for_any_chunk(chunk: int) -> None:
    """Few distinct vectors of awkward values: most comparisons are ties, which float32 products break by chance."""
    rng = np.random.default_rng(2)
    palette = unit(rng.standard_normal((6, 50)))
    image = palette[rng.integers(6, size=45)]
    owner = rng.permutation(np.concatenate([np.arange(45), rng.integers(45, size=60)]))
    text = palette[rng.integers(6, size=105)]
    text[::2] = image[owner[::2]]
    found = retrieval(image, text, owner, chunk=chunk)
    image_rank, text_rank = naive(image, text, owner)
    assert len(np.unique(text_rank)) > 5
    np.testing.assert_array_equal(found.image_to_text.rank, image_rank)
    np.testing.assert_array_equal(found.text_to_image.rank, text_rank)


def test_one_point_for_everything_is_worst() -> None:
    point = np.tile(unit(np.ones((1, 8))), (20, 1))
    found = retrieval(point, point, np.arange(20))
    assert (found.text_to_image.rank == 20).all()
    assert (found.image_to_text.rank == 20).all()


def test_equals_open_clip_with_one_caption_an_image() -> None:
    train = pytest.importorskip("open_clip_train.train", reason="extra `clip`")
    image, text, _ = make(120, 120, 24, seed=3)
    text = unit(image + 0.3 * np.random.default_rng(0).standard_normal(image.shape))
    expected = train.get_clip_metrics(torch.from_numpy(image), torch.from_numpy(text), 1.0)
    found = retrieval(image, text, np.arange(120), chunk=50)
    for name, ranks in (("image_to_text", found.image_to_text), ("text_to_image", found.text_to_image)):
        assert 0.05 < ranks.recall(1) < 0.99
        for k in (1, 5, 10):
            assert ranks.recall(k) == pytest.approx(expected[f"{name}_R@{k}"], abs=1e-12)
        assert np.floor(ranks.median) == expected[f"{name}_median_rank"]


def test_recall_equals_argsort_with_several_captions() -> None:
    """As CLIP-benchmark counts: a query is a hit if any of its first k candidates is a positive one."""
    image, text, owner = make(60, 300, 12, seed=4)
    score = text @ image.T
    positive = owner[:, None] == np.arange(60)[None]
    found = retrieval(image, text, owner)
    for k in (1, 5, 10):
        first_images = np.argsort(-score, axis=1)[:, :k]
        by_text = np.take_along_axis(positive, first_images, axis=1).any(axis=1)
        first_texts = np.argsort(-score.T, axis=1)[:, :k]
        by_image = np.take_along_axis(positive.T, first_texts, axis=1).any(axis=1)
        np.testing.assert_array_equal(found.text_to_image.hits(k), by_text)
        np.testing.assert_array_equal(found.image_to_text.hits(k), by_image)


def test_chance_equals_random_orders() -> None:
    owner = np.concatenate([np.arange(15), np.zeros(5, dtype=np.int64), np.repeat(np.arange(3), 4)])
    right = np.bincount(owner)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(2000):
        place = rng.permutation(len(owner)) + 1
        best = np.full(15, len(owner) + 1)
        np.minimum.at(best, owner, place)
        drawn.append(best)
    ranks = Ranks(np.array(drawn[0]), right, candidates=len(owner))
    for k in (1, 5, 10, 31, 32):
        assert ranks.chance(k) == pytest.approx(np.mean(np.array(drawn) <= k), abs=0.01)
    assert abs(ranks.chance_median - np.median(drawn)) <= 1
    single = Ranks(np.ones(40, dtype=np.int64), np.ones(40, dtype=np.int64), candidates=40)
    assert single.chance(1) == pytest.approx(1 / 40)
    assert single.chance_median == 20


def test_memory_grows_with_the_chunk_not_with_the_product() -> None:
    def peak(n: int) -> int:
        image, text, owner = make(n, 2 * n, 8, seed=6)
        tracemalloc.start()
        retrieval(image, text, owner, chunk=128)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    small, large = peak(500), peak(4000)  # the full matrix: 4 MB and 256 MB of float64
    linear = 3500 * (3 * 8 + 2 * 4 * 8)  # more ranks, counts and scores of own pairs
    assert large - small < 2 * linear
    assert large < 2_000_000


@pytest.mark.parametrize(
    ("owner", "message"),
    [([0, 1, 3], r"values in \[0, 3\)"), ([0, 1, -1], r"values in \[0, 3\)"), ([0, 1, 1], "image 2 has no caption")],
)
def test_refuses_wrong_owners(owner: list[int], message: str) -> None:
    image, text, _ = make(3, 3, 4, seed=7)
    with pytest.raises(ValueError, match=message):
        retrieval(image, text, np.array(owner))


def test_refuses_nan_and_unnormalised_vectors() -> None:
    image, text, owner = make(3, 3, 4, seed=8)
    broken = image.copy()
    broken[1, 2] = np.nan
    with pytest.raises(ValueError, match="image_ND must hold finite vectors of length 1"):
        retrieval(broken, text, owner)
    with pytest.raises(ValueError, match="text_MD must hold finite vectors of length 1"):
        retrieval(image, 2 * text, owner)


CAPTIONS = ("a dog", "a cat", "A  Dog", "a bird", "a cat", "a fish", "a bird", "a bird")
OWNER = np.array([0, 1, 2, 3, 4, 4, 5, 3])
"""Images 0 and 2 are dogs, 1 and 4 cats (4 has a fish besides), 3 and 5 birds (3 twice)."""


def equal_or_own(captions: tuple[str, ...], owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N, M) by its definition, with sets."""
    plain = [" ".join(one.lower().split()) for one in captions]
    own = [{plain[m] for m in np.flatnonzero(owner == n)} for n in range(owner.max() + 1)]
    return np.array([[text in texts for text in plain] for texts in own])


def test_equal_captions_are_equal_answers() -> None:
    """An encoder that knows the word finds every image, though no image has a caption of its own."""
    number = caption_numbers(CAPTIONS)
    word = unit(np.eye(4))
    text = word[number]
    image = word[[0, 1, 0, 2, 1, 2]]
    found = retrieval(image, text, OWNER, number)
    assert (found.image_to_text.rank == 1).all()
    assert found.text_to_image.rank.tolist() == [1, 1, 1, 1, 1, 6, 1, 1], "the fish alone looks like nothing: all tie"
    assert found.image_to_text.right.tolist() == [2, 2, 2, 3, 3, 3]
    assert found.text_to_image.right.tolist() == [2, 2, 2, 2, 2, 1, 2, 2]
    assert found.text_to_image.chance(1) == pytest.approx((7 * 2 / 6 + 1 / 6) / 8)
    assert found.image_to_text.chance(1) == pytest.approx((3 * 2 / 8 + 3 * 3 / 8) / 6)
    strict = retrieval(image, text, OWNER)
    assert strict.text_to_image.recall(1) == 0, "what it was when only its own image was right"


@pytest.mark.parametrize("chunk", [1, 3, 1024])
def test_equal_captions_against_the_full_matrix(chunk: int) -> None:
    rng = np.random.default_rng(9)
    image, text, owner = make(40, 90, 6, seed=9)
    captions = tuple(f"word {n}" for n in rng.integers(30, size=90))
    text[5] = text[7]
    image[3] = image[4]
    number = caption_numbers(captions)
    right = equal_or_own(captions, owner)
    score = on_grid(image) @ on_grid(text).T
    best_n = np.where(right, score, -np.inf).max(1)
    best_m = np.where(right, score, -np.inf).max(0)
    found = retrieval(image, text, owner, number, chunk=chunk)
    np.testing.assert_array_equal(found.image_to_text.rank, 1 + ((score >= best_n[:, None]) & ~right).sum(1))
    np.testing.assert_array_equal(found.text_to_image.rank, 1 + ((score >= best_m) & ~right).sum(0))
    np.testing.assert_array_equal(found.image_to_text.right, right.sum(1))
    np.testing.assert_array_equal(found.text_to_image.right, right.sum(0))


def test_chance_with_equal_captions_equals_random_embeddings() -> None:
    number = caption_numbers(CAPTIONS)
    rng = np.random.default_rng(10)
    hits = []
    for _ in range(4000):
        found = retrieval(unit(rng.standard_normal((6, 12))), unit(rng.standard_normal((8, 12))), OWNER, number)
        hits.append([found.image_to_text.recall(1), found.text_to_image.recall(1), found.text_to_image.recall(2)])
    expected = [found.image_to_text.chance(1), found.text_to_image.chance(1), found.text_to_image.chance(2)]
    np.testing.assert_allclose(np.mean(hits, axis=0), expected, atol=0.01)


def test_one_caption_of_all_images_takes_no_matrix() -> None:
    n = 20_000
    point = unit(np.random.default_rng(0).standard_normal((n, 2)))
    tracemalloc.start()
    answers = Answers(np.arange(n), np.zeros(n, dtype=np.int64), n)
    assert (answers.captions_N == n).all() and (answers.images_M == n).all() and answers.shared == n
    assert answers.groups_N is None, "one group has no spread"
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    small = retrieval(point[:500], point[500:1000], np.arange(500), np.zeros(500, dtype=np.int64), chunk=100)
    assert (small.text_to_image.rank == 1).all() and small.text_to_image.chance(1) == 1


def test_images_that_captions_join_are_one_group() -> None:
    groups = Answers(OWNER, caption_numbers(CAPTIONS), 6).groups_N
    assert groups is not None
    assert [(groups == group).nonzero()[0].tolist() for group in np.unique(groups)] == [[0, 2], [1, 4], [3, 5]]
    assert Answers(np.arange(4), np.arange(4), 4).groups_N is None
