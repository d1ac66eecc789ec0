"""The scale of what is not known: of each missing pattern, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import SDES

from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.training.posterior_scale import measure_posterior_scales

NAMES = ("a", "b", "c")


class MeanOf:
    """A network whose mean is that of the modalities that are seen, in each pixel."""

    modalities = 3

    def multiple(self):
        return 4

    def apply(self, params, images, missing, level, *features, method):
        assert method == "encode"
        seen = jnp.maximum((~missing).sum(axis=1), 1)[:, None, None, None]
        tau = jnp.exp(4 * level)[:, None, None, None]
        out = tau / jnp.sqrt(tau**2 + 1)
        return (images[..., :3].sum(axis=-1, keepdims=True) / seen + 0 * images[..., :3]) / out, ()


class Slices:
    """A store of slices, some without a scan of some modality."""

    def __init__(self, images, present):
        self.images, self.present, self.asked = images, present, []

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        self.asked.append(np.array(indices))
        return self.images[indices], self.present[indices]


def store_of(present=True):
    """c deviates from the others by 0.5 in 8 x 8 pixels of every slice, and by 1 in one pixel."""
    images = np.zeros((48, 16, 16, 3), np.float32)
    images[:, 8:16, 0:8, 2] = 0.5
    images[:, 2, 2, 2] = 1.0
    return Slices(images.astype(np.float16), np.broadcast_to(present, (48, 3)))


def measured(store):
    model = ScoreModel(MeanOf(), SDES["vp"], 1.0, "mean")
    params = {"statistics": {"band_power": jnp.ones((3, 3, 3))}}
    found = measure_posterior_scales(model, NAMES, store, params)
    assert found.keys() == {"posterior_scales"}
    return found["posterior_scales"]


def test_a_pattern_has_the_root_of_its_largest_modalitys_mean_square():
    """The mean of what is seen is 0 without c, c / 2 of a and b apart, c of a and b together."""
    whole = 0.5 * 8
    expected = {"c": whole, "b": whole / 2, "a": whole / 2, "b+c": whole, "a+c": whole}
    expected |= {"a+b": whole, "a+b+c": whole}
    found = measured(store_of())
    assert found == {name: pytest.approx(value, rel=1e-3) for name, value in expected.items()}


def test_the_mean_is_over_slices_of_the_square():
    store = store_of()
    store.images[24:] = 0
    assert measured(store)["c"] == pytest.approx(4 / np.sqrt(2), rel=1e-3)
    (asked,) = store.asked
    assert len(asked) == 24 and asked[0] == 0 and asked[-1] == 47 and np.all(np.diff(asked) > 0)


def test_patterns_without_a_truth_are_left_out_and_what_was_never_scanned_is_missing():
    """a was never scanned: of b alone the mean is c, not the half of it."""
    found = measured(store_of(present=np.array([False, True, True])))
    assert found == {name: pytest.approx(4, rel=1e-3) for name in ("b", "c", "b+c")}
