"""The layers that the published methods share, against sums by hand and JAX's own operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.baselines.layers import (
    BatchNorm,
    Up,
    count_halvings,
    downsample,
    max_over_available,
    mean_over_available,
    scale_widths,
    upsample,
)
from ummcsgm.baselines.method import masked_mean

pytestmark = pytest.mark.usefixtures("quick_compile")


def draws(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_scaled_widths_are_multiples_of_four():
    assert scale_widths((64, 128, 512), 1.0) == (64, 128, 512)
    assert scale_widths((16, 32, 72), 0.125) == (4, 4, 8)  # 2 -> 4, 4, 9 -> 8


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
    assert count_halvings(grid, most, smallest) == count


def test_up_is_the_transposed_convolution():
    features = draws(2, 5, 3, 6)
    output, variables = jax.jit(Up(4).init_with_output)(jax.random.key(0), features)
    same = jax.lax.conv_transpose(
        features,
        variables["params"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(output, same, atol=1e-6)


def test_downsampling_and_upsampling_keep_odd_sides():
    image = np.arange(15, dtype=np.float32).reshape(1, 5, 3, 1)
    half = downsample(jnp.asarray(image))
    np.testing.assert_array_equal(half[0, ..., 0], [[4, 5], [10, 11], [13, 14]])
    again = upsample(half, image)[0, ..., 0]
    np.testing.assert_array_equal(again[:, 0], [4, 4, 10, 10, 13])
    np.testing.assert_array_equal(again[0], [4, 4, 5])


def test_maximum_and_mean_are_over_what_is_available():
    features = [np.full((3, 1, 1, 1), value, np.float32) for value in (-3.0, -1.0, 50.0)]
    flags = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
    assert max_over_available(features, flags).ravel().tolist() == [-1, 50, 0]
    assert mean_over_available(features, flags).ravel().tolist() == [-2, 23.5, 0]


def test_a_masked_mean_is_over_the_flagged_channels():
    values = np.array([1.0, 5.0, 100.0]) * np.ones((2, 2, 3, 3))
    flags = np.array([[1, 1, 0], [0, 0, 0]], bool)
    assert masked_mean(jnp.asarray(values), jnp.asarray(flags)).tolist() == [3, 0]


def normalise(features, valid, axis=None):
    """(the output of a new BatchNorm, its changed statistics)."""
    variables = BatchNorm(None).init(jax.random.key(0), features, valid)
    return BatchNorm(axis).apply(variables, features, valid, mutable=["statistics"])


def test_statistics_are_of_the_valid_examples():
    features = 3 + 2 * draws(4, 3, 2, 5)
    valid = np.array([True, False, True, True])
    output, changed = jax.jit(normalise)(features, valid)
    mean, variance = features[valid].mean((0, 1, 2)), features[valid].var((0, 1, 2))
    expected = (features - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    statistics = changed["statistics"]["mean_variance"]
    np.testing.assert_allclose(statistics[0], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(statistics[1], 0.9 + 0.1 * variance, rtol=1e-5)


def test_without_flags_the_running_statistics_are_used():
    features = draws(2, 3, 2, 1)
    statistics = {"mean_variance": jnp.array([[2.0], [0.25]])}
    variables = {"params": {"scale": jnp.ones(1), "bias": jnp.zeros(1)}, "statistics": statistics}
    output = BatchNorm(None).apply(variables, features, None)
    np.testing.assert_allclose(output, (features - 2) / 0.5, rtol=1e-4)


def test_statistics_are_of_all_devices_and_their_gradients_too():
    """Unequally many examples are valid on the two."""
    features = draws(6, 3, 2, 2)
    valid = np.array([True, False, False, True, True, True])
    weight = draws(6, 3, 2, 2, seed=1)

    def loss(features, valid, weight, axis):
        output, changed = normalise(features, valid, axis)
        return jnp.sum(weight * output), changed["statistics"]["mean_variance"]

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=3)
    whole, statistics = grad(features, valid, weight, None)
    parts = [value.reshape(2, 3, *value.shape[1:]) for value in (features, valid)]
    mapped = jax.vmap(lambda *shards: grad(*shards, "devices"), axis_name="devices")
    halves, both = jax.jit(mapped)(*parts, weight.reshape(2, 3, 3, 2, 2))
    np.testing.assert_allclose(both, [statistics, statistics], rtol=1e-5)
    np.testing.assert_allclose(halves.reshape(whole.shape), whole, atol=1e-4)


def test_without_a_valid_example_the_statistics_stay():
    output, changed = jax.jit(normalise)(draws(2, 3, 2, 1), np.zeros(2, bool))
    np.testing.assert_array_equal(changed["statistics"]["mean_variance"], [[0], [1]])
    np.testing.assert_allclose(output, draws(2, 3, 2, 1), rtol=1e-4)
