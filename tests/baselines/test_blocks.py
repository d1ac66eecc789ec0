"""The competitors' shared layers, against sums by hand and JAX's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.baselines.layers import (
    BatchNorm,
    Up,
    doubled,
    greatest,
    halved,
    halvings,
    mean_of,
    scaled,
)
from ummcsgm.baselines.method import average, pick


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_widths_are_shares_in_fours():
    assert scaled((64, 128, 512), 1.0) == (64, 128, 512)
    assert scaled((16, 32, 72), 0.125) == (4, 4, 8)  # 2 -> 4, 4, 9 -> 8


@pytest.mark.parametrize(
    ("grid", "most", "smallest", "count"),
    [
        ((256, 256), 8, 1, 8),  # the published U-Net's
        ((192, 160), 8, 1, 8),
        ((56, 48), 8, 1, 6),  # 48 24 12 6 3 2 1
        ((24, 16), 8, 1, 4),
        ((256, 256), 4, 2, 4),
        ((16, 64), 4, 2, 3),  # 8 4 2
        ((128, 128), 4, 4, 4),
        ((56, 48), 4, 4, 4),  # 24 12 6 3
    ],
)
def test_a_grid_is_halved_as_often_as_it_can_be(grid, most, smallest, count):
    assert halvings(grid, most, smallest) == count


def test_up_is_the_transposed_convolution():
    features = draws(2, 5, 3, 6)
    answer, own = Up(4).init_with_output(jax.random.key(0), features)
    same = jax.lax.conv_transpose(
        features,
        own["params"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(answer, same, atol=1e-6)


def test_halved_and_doubled_keep_odd_sides():
    image = np.arange(15, dtype=np.float32).reshape(1, 5, 3, 1)
    half = halved(jnp.asarray(image))
    np.testing.assert_array_equal(half[0, ..., 0], [[4, 5], [10, 11], [13, 14]])
    again = doubled(half, image)[0, ..., 0]
    np.testing.assert_array_equal(again[:, 0], [4, 4, 10, 10, 13])
    np.testing.assert_array_equal(again[0], [4, 4, 5])


def test_the_greatest_and_the_mean_are_of_what_is_available():
    each = [np.full((3, 1, 1, 1), value, np.float32) for value in (-3.0, -1.0, 50.0)]
    flags = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    assert greatest(each, flags).ravel().tolist() == [-1, 50, 0]
    assert mean_of(each, flags).ravel().tolist() == [-2, 23.5, 0]


def test_an_average_is_of_the_flagged_channels():
    values = np.array([1.0, 5.0, 100.0]) * np.ones((2, 2, 3, 3))
    flags = np.array([[1, 1, 0], [0, 0, 0]], bool)
    assert average(jnp.asarray(values), jnp.asarray(flags)).tolist() == [3, 0]


def test_a_pick_is_any_of_the_flagged():
    flags = jnp.array([[False, True, True, False]] * 4000 + [[False] * 4])
    place = np.asarray(pick(jax.random.split(jax.random.key(0), len(flags)), flags))
    assert set(place[:-1].tolist()) == {1, 2}
    assert abs((place[:-1] == 1).mean() - 0.5) < 0.03  # 4 standard errors
    assert place[-1] == 0


def normed(features, counted, axis=None):
    norm = BatchNorm(axis)
    own = BatchNorm(None).init(jax.random.key(0), features, counted)
    return norm.apply(own, features, counted, mutable=["statistics"])


def test_statistics_are_of_the_counted_rows():
    features = 3 + 2 * draws(4, 3, 2, 5)
    counted = np.array([True, False, True, True])
    answer, changed = normed(features, counted)
    mean, variance = features[counted].mean((0, 1, 2)), features[counted].var((0, 1, 2))
    expected = (features - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    kept = changed["statistics"]["mean_variance"]
    np.testing.assert_allclose(kept[0], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(kept[1], 0.9 + 0.1 * variance, rtol=1e-5)


def test_running_statistics_are_what_answers():
    features = draws(2, 3, 2, 1)
    kept = {"mean_variance": jnp.array([[2.0], [0.25]])}
    own = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}, "statistics": kept}
    answer = BatchNorm(None).apply(own, features, None)
    np.testing.assert_allclose(answer, (features - 2) / 0.5, rtol=1e-4)


def test_statistics_are_of_all_devices_and_their_gradients_too():
    """Unequally many rows count on the two."""
    features = draws(6, 3, 2, 2)
    counted = np.array([True, False, False, True, True, True])
    weight = draws(6, 3, 2, 2, seed=1)

    def loss(features, counted, weight, axis):
        answer, changed = normed(features, counted, axis)
        return jnp.sum(weight * answer), changed["statistics"]["mean_variance"]

    grad = jax.grad(loss, has_aux=True)
    whole, kept = grad(features, counted, weight, None)
    parts = [value.reshape(2, 3, *value.shape[1:]) for value in (features, counted)]
    mapped = jax.vmap(lambda *rows: grad(*rows, "devices"), axis_name="devices")
    halves, both = mapped(*parts, weight.reshape(2, 3, 3, 2, 2))
    np.testing.assert_allclose(both, [kept, kept], rtol=1e-5)
    np.testing.assert_allclose(halves.reshape(whole.shape), whole, atol=1e-4)


def test_without_a_row_that_counts_statistics_stay():
    answer, changed = normed(draws(2, 3, 2, 1), np.zeros(2, bool))
    np.testing.assert_array_equal(changed["statistics"]["mean_variance"], [[0], [1]])
    np.testing.assert_allclose(answer, draws(2, 3, 2, 1), rtol=1e-4)
