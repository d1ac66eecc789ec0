"""The spread of draws that lie in a file, some slices at a time."""

import numpy as np
import pytest

from ummcsgm.inference import subject_posterior
from ummcsgm.inference.draw_statistics import quantile


@pytest.mark.parametrize("slab", [1, 2, 3, 7, 100])
def test_the_spread_is_that_of_all_draws_however_many_slices_are_read(tmp_path, monkeypatch, slab):
    draws = np.random.default_rng(0).normal(size=(5, 7, 4, 3, 2)).astype(np.float32)
    monkeypatch.setattr(subject_posterior, "DRAWN", 5 * slab)
    with (tmp_path / "draws").open("w+b") as file:
        file.write(draws)
        file.flush()
        found = subject_posterior._spread(file, draws.shape, (0.1, 0.5))
    sd = np.std(draws, axis=0, ddof=1, dtype=np.float64)
    np.testing.assert_allclose(found["sd"], sd, rtol=1e-6)
    for kind, level in (("q10", 0.1), ("q50", 0.5)):
        np.testing.assert_allclose(found[kind], quantile(draws, level), rtol=1e-6)
