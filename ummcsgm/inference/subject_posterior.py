"""One subject's question and the posterior that answers it: mean, draws, their spread.

Memory does not grow with the number of draws: one is in memory at a time, all of them
lie in a file that has no name, and their spread is taken some slices at a time.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from ummcsgm.data.subjects import PreparedSubject, network_stacks
from ummcsgm.inference.draw_statistics import quantile
from ummcsgm.inference.predictor import slice_addresses
from ummcsgm.inference.results import CompletionOptions, draw_kinds, quantile_kind
from ummcsgm.types import Array, Estimate, Images, Stacks

DRAWN = 64  # slices of draws that are summarised at a time, in double precision


class Question(NamedTuple):
    """What is seen of one subject, and what of it is missing."""

    name: str
    z: Array  # [S] the slices with brain
    images: Stacks  # 0 where missing
    missing: Array  # [M] bool


@dataclass(frozen=True)
class Posterior:
    """Who answers: `answer`s of the network's mean, and of draws about it."""

    mean: Callable
    draws: Callable | None  # of the order's sampler: `make_sampler`
    factors: Array  # [M]: a draw's difference from the mean is multiplied with it


def question_of(name: str, prepared: PreparedSubject, modalities: tuple[str, ...]) -> Question:
    """All that is missing of a subject, asked in each slice that has brain."""
    z = np.flatnonzero(prepared.brain.any(axis=(1, 2)))
    absent = np.array([name not in prepared.scales for name in modalities])
    return Question(name, z, network_stacks(prepared, modalities, z), absent)


def estimate_of(posterior: Posterior, question: Question) -> Estimate:
    """[S, H, W, M]: the network's mean and its variance, one evaluation a slice.

    Raises:
        FloatingPointError: they are not finite.
    """
    name, z, images, missing = question
    return posterior.mean(images, np.tile(missing, (len(z), 1))).map(lambda own: _finite(name, own))


def draws_of(
    posterior: Posterior, question: Question, estimate: Estimate, count: int
) -> Iterator[Images]:
    """[S, H, W, M] each: draws number 0, 1, .. of all that is missing, respread about
    the mean of the `estimate` that all of them share.

    Raises:
        FloatingPointError: (when it comes) one is not finite.
    """
    name, z, images, missing = question
    addresses = np.stack([slice_addresses(name, z, draw=k) for k in range(count)])
    rows = (images, np.tile(missing, (len(z), 1)), addresses)
    factors = posterior.factors.astype(np.float32)
    for drawn in posterior.draws(*rows, estimate):
        _finite(name, drawn)
        if (factors == 1).all():
            yield drawn
        else:
            yield estimate.mean + factors * (drawn - estimate.mean)


def answers(
    posterior: Posterior, question: Question, order: CompletionOptions
) -> Iterator[tuple[str, Images]]:
    """Each kind of result [S, H, W, M] that `order` wants: what is shown comes first.

    Several modalities that are missing are drawn together.
    """
    estimate = estimate_of(posterior, question)
    mean, variance = estimate
    if order.sampler == "mean":
        yield "", mean
        if variance is not None:
            yield "sd", np.sqrt(variance)
        return
    if order.draws > 1:
        yield "mean", mean
    missing = question.missing
    kept = (order.draws, *mean.shape[:-1], int(missing.sum()))
    with tempfile.TemporaryFile() as file:
        several = draws_of(posterior, question, estimate, order.draws)
        for kind, drawn in zip(draw_kinds(order), several, strict=True):
            if order.draws > 1:
                file.write(np.ascontiguousarray(drawn[..., missing], np.float32))
            if order.draws == 1 or order.keep:
                yield kind, drawn
        if order.draws == 1:
            return
        file.flush()
        spread = _spread(file, kept, order.levels)
    for kind, values in spread.items():
        summary = np.zeros_like(mean)
        summary[..., missing] = values
        yield kind, summary


def _spread(file: BinaryIO, shape: tuple[int, ...], levels: tuple[float, ...]) -> dict[str, Array]:
    """Standard deviation and quantiles of the draws [K, S, ...] that `file` holds, each
    [S, ...], by kind.

    A quantile that so few draws do not reach is that of Student's prediction interval.
    """
    kinds = ["sd", *map(quantile_kind, levels)]
    slabs, slab = [], max(1, DRAWN // shape[0])
    for z in range(0, shape[1], slab):
        slabs.append(_of_slab(_read(file, shape, slice(z, z + slab)), levels))
    return dict(zip(kinds, np.concatenate(slabs, axis=1), strict=True))


def _read(file: BinaryIO, shape: tuple[int, ...], slices: slice) -> Array:
    """[K, S, ...]: some slices of all draws that `file` holds.

    Read and not mapped: mapped pages of a file are memory of the process.
    """
    first, last, _ = slices.indices(shape[1])
    found = np.empty((shape[0], last - first, *shape[2:]), np.float32)
    for draw, own in enumerate(found):
        file.seek((draw * shape[1] + first) * own[0].nbytes)
        file.readinto(own.data)
    return found


def _of_slab(draws: Array, levels: tuple[float, ...]) -> Array:
    sd = np.std(draws, axis=0, ddof=1, dtype=np.float64)
    found = [sd, *(quantile(draws, level) for level in levels)]
    return np.stack(found).astype(np.float32)


def _finite(name: str, images: Images) -> Images:
    if not np.isfinite(images).all():
        raise FloatingPointError(
            f"subject {name}: the network's answer is not finite, so it is not "
            "written; its checkpoint is of no use."
        )
    return images
