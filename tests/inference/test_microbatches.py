"""Rows in microbatches: what one call answers, one ahead, and no more than two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solver_checks import keys_of

from ummcsgm.inference.predictor import regroup, run_in_microbatches


@pytest.mark.parametrize("size", [1, 3, 4, 12, 20])
def test_microbatches_answer_as_one_call_does(size):
    rng = np.random.default_rng(0)
    images, numbers = rng.normal(size=(12, 3, 2)).astype(np.float32), np.arange(12)
    shapes = set()

    def answer(images, numbers):
        shapes.add(images.shape)
        return {"image": jnp.asarray(images) * numbers[:, None, None], "none": None}

    parts = [*run_in_microbatches(answer, size, 12, lambda rows: (images[rows], numbers[rows]))]
    ours = np.concatenate([part["image"] for part in parts])
    assert all(isinstance(part["image"], np.ndarray) for part in parts)
    assert [len(part["image"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
    expected = images * numbers[:, None, None].astype(np.float32)
    np.testing.assert_array_equal(ours, expected)
    assert shapes == {(size, 3, 2)}


def test_microbatches_of_keys_draw_what_one_call_draws():
    def answer(keys):
        return jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)

    parts = run_in_microbatches(answer, 4, 10, lambda rows: (keys_of(10)[rows],))
    np.testing.assert_array_equal(np.concatenate([*parts]), answer(keys_of(10)))


class Answered:
    """What a device has yet to compute: reading it is an event."""

    def __init__(self, events, first):
        self.events, self.first = events, first
        events.append(("dispatched", first))

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.first))
        return np.arange(self.first, self.first + 2)


def test_the_next_is_dispatched_before_the_last_is_read_and_two_are_on_their_way():
    events = []
    parts = run_in_microbatches(lambda rows: Answered(events, rows[0]), 2, 7, lambda rows: (rows,))
    assert events == []
    assert next(parts).tolist() == [0, 1]
    assert events == [("dispatched", 0), ("dispatched", 2), ("read", 0)]
    assert [part.tolist() for part in parts] == [[2, 3], [4, 5], [6]]
    kinds = [kind for kind, _ in events]
    waiting = np.cumsum([1 if kind == "dispatched" else -1 for kind in kinds])
    assert waiting.max() == 2 and waiting[-1] == 0
    assert [first for kind, first in events if kind == "read"] == [0, 2, 4, 6]


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [12], [1] * 12, [5, 7], [2, 9, 1]])
@pytest.mark.parametrize("size", [1, 4, 6, 12])
def test_parts_of_any_length_come_out_in_groups_of_one(lengths, size):
    rows = np.arange(12)
    parts = [(part, -part) for part in np.split(rows, np.cumsum(lengths)[:-1])]
    groups = [*regroup(parts, size)]
    for place, (one, other) in enumerate(groups):
        assert one.tolist() == rows[place * size : (place + 1) * size].tolist()
        assert np.array_equal(other, -one)
    assert len(groups) == 12 // size


def test_a_group_comes_out_as_soon_as_it_is_whole():
    asked = []

    def parts():
        for start in range(0, 12, 3):
            asked.append(start)
            yield np.arange(start, start + 3)

    groups = regroup(parts(), 4)
    assert next(groups).tolist() == [0, 1, 2, 3] and asked == [0, 3]
    assert next(groups).tolist() == [4, 5, 6, 7] and asked == [0, 3, 6]
