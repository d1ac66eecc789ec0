"""Summaries of draws that are in a file: right, and in bounded memory."""

import tracemalloc

import numpy as np
import pytest

from ummcsgm.inference import subject_posterior
from ummcsgm.inference.draw_statistics import quantile
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.types import Estimate


@pytest.mark.parametrize("slices", [1, 3, 100])
def test_the_summary_of_a_file_is_that_of_all_its_draws(tmp_path, monkeypatch, slices):
    draws = np.random.default_rng(0).normal(size=(5, 7, 4, 3, 2)).astype(np.float32)
    monkeypatch.setattr(subject_posterior, "SLICES", 5 * slices)
    with (tmp_path / "draws").open("w+b") as file:
        file.write(draws)
        file.flush()
        sd, *quantiles = subject_posterior._summarise_file(file, draws.shape, (0.1, 0.5))
    expected = np.std(draws, axis=0, ddof=1, dtype=np.float64)
    np.testing.assert_allclose(sd, expected, rtol=1e-6)
    for values, level in zip(quantiles, (0.1, 0.5), strict=True):
        np.testing.assert_allclose(values, quantile(draws, level), rtol=1e-6)


def test_memory_does_not_grow_with_the_number_of_draws():
    images = np.zeros((40, 64, 64, 4), np.float32)
    missing = np.array([False, False, True, True])
    inputs = SubjectInputs("P1", np.arange(40), images, missing)
    posterior = subject_posterior.SubjectPosterior(
        lambda images, missing: Estimate(images, None),
        lambda images, missing, addresses, estimate: (
            estimate.mean + address[0, 2] for address in addresses
        ),
    )

    def peak(draws):
        options = CompletionOptions(draws=draws, sampler="warm", keep_draws=False)
        tracemalloc.start()
        for _ in subject_posterior.posterior_outputs(posterior, inputs, options):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(32) < 1.1 * peak(4)
