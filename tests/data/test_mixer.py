"""The mixer loses nothing, repeats nothing, and never makes a short batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ito_ray.data.mixer import mixed_batches


def _blocks(sizes: list[int]) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    for size in sizes:
        uid = np.arange(start, start + size)
        yield {"uid": uid, "pair": np.stack([uid, -uid], axis=1)}
        start += size


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 16), st.integers(0, 50), st.integers(0, 3))
def test_every_sample_once_and_every_batch_full(sizes: list[int], batch: int, hold: int, seed: int) -> None:
    drawn = list(mixed_batches(_blocks(sizes), batch=batch, hold=hold, rng=np.random.default_rng(seed)))

    assert all(len(one["uid"]) == batch for one in drawn)
    assert len(drawn) == sum(sizes) // batch
    uids = np.concatenate([one["uid"] for one in drawn]) if drawn else np.array([], int)
    assert len(set(uids.tolist())) == len(uids)
    assert set(uids.tolist()) <= set(range(sum(sizes)))
    for one in drawn:
        np.testing.assert_array_equal(one["pair"][:, 1], -one["uid"])


def test_same_seed_same_batches_and_another_seed_others() -> None:
    def run(seed: int) -> list[list[int]]:
        batches = mixed_batches(_blocks([30] * 6), batch=8, hold=40, rng=np.random.default_rng(seed))
        return [one["uid"].tolist() for one in batches]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_a_batch_mixes_several_blocks() -> None:
    batches = list(mixed_batches(_blocks([32] * 20), batch=32, hold=128, rng=np.random.default_rng(0)))
    blocks_of_a_batch = [len({int(uid) // 32 for uid in one["uid"]}) for one in batches[:-5]]
    assert min(blocks_of_a_batch) >= 3
