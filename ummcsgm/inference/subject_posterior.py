"""The posterior of one subject's missing modalities: mean, draws, sd and quantiles.

Memory does not grow with the number of draws: one is in memory at a time, all of them
are in a temporary file, and their sd and quantiles are computed some slices at a time.
"""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.inference.draw_statistics import quantile
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.outputs import CompletionOptions, draw_kinds, quantile_kind
from ummcsgm.inference.predictor import (
    TrainedModel,
    make_mean_predictor,
    make_sampler,
    read_rho,
    slice_addresses,
)
from ummcsgm.types import Array, Estimate, Images

SLICES = 64  # of draws that are summarised at a time, in double precision


@dataclass(frozen=True)
class SubjectPosterior:
    """The network's mean predictor and sampler."""

    mean: Callable  # `make_mean_predictor`
    sample: Callable | None  # `make_sampler`; None where only the mean is wanted
    rho: float = 0.0  # correlation of the draws' noise from slice to slice


def load_posterior(
    workdir: pathlib.Path, trained: TrainedModel, sampler: str, options: EvaluationOptions
) -> SubjectPosterior:
    """Returns the mean predictor and the sampler of a workdir's network, with its `read_rho`."""
    rho = read_rho(workdir, trained, sampler)
    mean, sample = make_mean_predictor(trained, options), None
    if sampler != "mean":
        sample = make_sampler(trained, sampler, options, rho=rho)
    return SubjectPosterior(mean, sample, rho)


def predict_mean(posterior: SubjectPosterior, inputs: SubjectInputs) -> Estimate:
    """Returns the network's mean [S, H, W, M] and its variance: one evaluation a slice.

    Raises:
        FloatingPointError: they are not finite.
    """
    missing = np.tile(inputs.missing, (len(inputs.z), 1))
    estimate = posterior.mean(inputs.images, missing)
    return estimate.map(lambda images: _check_finite(inputs.name, images))


def sample_draws(
    posterior: SubjectPosterior, inputs: SubjectInputs, estimate: Estimate, count: int
) -> Iterator[Images]:
    """Yields draws number 0, 1, ... [S, H, W, M] of all missing modalities together.

    All share the `estimate`.

    Raises:
        FloatingPointError: a draw is not finite.
    """
    name, z, images, missing = inputs
    addresses = np.stack([slice_addresses(name, z, draw=k) for k in range(count)])
    missing = np.tile(missing, (len(z), 1))
    for draw in posterior.sample(images, missing, addresses, estimate):
        yield _check_finite(name, draw)


def posterior_outputs(
    posterior: SubjectPosterior, inputs: SubjectInputs, options: CompletionOptions
) -> Iterator[tuple[str, Images]]:
    """Yields (kind, images [S, H, W, M]) for each of `output_kinds`; the first is what a
    preview shows."""
    estimate = predict_mean(posterior, inputs)
    mean, variance = estimate
    if options.sampler == "mean":
        yield "", mean
        if variance is not None:
            yield "sd", np.sqrt(variance)
        return
    draws = sample_draws(posterior, inputs, estimate, options.draws)
    if options.draws == 1:
        yield "", next(draws)
        return
    yield "mean", mean
    missing = inputs.missing
    shape = (options.draws, *mean.shape[:-1], int(missing.sum()))
    with tempfile.TemporaryFile() as file:
        for kind, draw in zip(draw_kinds(options), draws, strict=True):
            file.write(np.ascontiguousarray(draw[..., missing], np.float32))
            if options.keep_draws:
                yield kind, draw
        file.flush()
        summaries = _summarise_file(file, shape, options.quantiles)
    for kind, values in zip(["sd", *map(quantile_kind, options.quantiles)], summaries, strict=True):
        images = np.zeros_like(mean)
        images[..., missing] = values
        yield kind, images


def summarise(draws: Array, levels: Sequence[float]) -> Array:
    """Returns [1 + Q, ...] float32: the sd of draws [K, ...], then their quantiles.

    A quantile that so few draws do not reach is that of Student's prediction interval.
    """
    sd = np.std(draws, axis=0, ddof=1, dtype=np.float64)
    return np.stack([sd, *(quantile(draws, level) for level in levels)]).astype(np.float32)


def _summarise_file(file: BinaryIO, shape: tuple[int, ...], levels: Sequence[float]) -> Array:
    """`summarise` of the draws [K, S, ...] in `file`, some slices at a time."""
    step = max(1, SLICES // shape[0])
    parts = [
        summarise(_read_slices(file, shape, z, min(z + step, shape[1])), levels)
        for z in range(0, shape[1], step)
    ]
    return np.concatenate(parts, axis=1)


def _read_slices(file: BinaryIO, shape: tuple[int, ...], first: int, last: int) -> Array:
    """[K, S, ...]: some slices of all draws. Read and not mapped: mapped pages of a file
    count as memory of the process."""
    draws = np.empty((shape[0], last - first, *shape[2:]), np.float32)
    for index, draw in enumerate(draws):
        file.seek((index * shape[1] + first) * draw[0].nbytes)
        file.readinto(draw.data)
    return draws


def _check_finite(name: str, images: Images) -> Images:
    if not np.isfinite(images).all():
        raise FloatingPointError(
            f"subject {name}: the network's output is not finite, so it is not "
            "written; train again, its checkpoint cannot be used."
        )
    return images
