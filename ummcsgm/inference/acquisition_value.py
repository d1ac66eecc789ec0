"""Which scan would help most: what acquiring each missing one is expected to tell.

With a and c missing and b seen, Var(a|b) = E[Var(a|b, c)] + Var(E[a|b, c]) over c given
b: acquiring c is expected to lower the variance of a by the variance of the mean of a
once c is known, whatever c turns out to be. So c is drawn, taken for seen, and the mean
of the rest asked for, again and again. No head is needed that predicts variances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ummcsgm.data.subjects import PreparedSubject, network_brain, stack_neighbours
from ummcsgm.inference.subject_posterior import Posterior, Question, draws_of, estimate_of
from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class Gain:
    """What acquiring one modality is expected to do to the variances of all missing.

    Mean variances of the brain's voxels, in squares of a modality's scale.
    """

    acquired: str
    before: dict[str, float]  # by missing modality
    drop: dict[str, float]  # of the one that is acquired: all of it

    @property
    def share(self) -> float:
        """Of the variance of all that is missing, what is expected to go away."""
        return sum(self.drop.values()) / sum(self.before.values())


def expected_gains(
    posterior: Posterior,
    question: Question,
    prepared: PreparedSubject,
    modalities: tuple[str, ...],
    draws: int,
) -> list[Gain]:
    """What each missing modality would tell, the most helpful one first.

    Estimated from `draws` draws, at least 2, of all that is missing together.

    Raises:
        InputError: the draws of one are all alike, so that nothing can go away.
    """
    missing = np.flatnonzero(question.missing)
    brain = network_brain(prepared, question.z)
    estimate = estimate_of(posterior, question)
    drawn, informed = _Variance(), {channel: _Variance() for channel in missing}
    for one in draws_of(posterior, question, estimate, draws):
        drawn.add(one[brain])
        for channel, told in informed.items():
            told.add(_mean_given(posterior, question, one, channel)[brain])
    before = drawn.mean()
    for channel in missing:
        if not before[channel] > 0:
            raise InputError(
                f"subject {question.name}: all draws of {modalities[channel]} are "
                "alike, so there is no variance that a scan could lower."
            )
    gains = []
    for channel, told in informed.items():
        # The acquired one is its own draw there: all of its variance goes.
        named = [
            {modalities[c]: float(values[c]) for c in missing} for values in (before, told.mean())
        ]
        gains.append(Gain(modalities[channel], *named))
    return sorted(gains, key=lambda gain: -gain.share)


def _mean_given(posterior: Posterior, question: Question, drawn: Array, channel: int) -> Array:
    """The mean of what is missing, as if `channel` had been seen as it was `drawn`."""
    images, missing = question.images.copy(), question.missing.copy()
    modalities, own = len(missing), drawn[..., channel : channel + 1]
    neighbours = (images.shape[-1] // modalities - 1) // 2
    images[..., channel::modalities] = stack_neighbours(own, question.z, question.z, neighbours)
    missing[channel] = False
    other = question._replace(images=images, missing=missing)
    return estimate_of(posterior, other).mean


class _Variance:
    """The variance of arrays [N, M] that come one by one (Welford 1962)."""

    def __init__(self):
        self.count, self.centre, self.squares = 0, 0.0, 0.0

    def add(self, values: Array) -> None:
        self.count += 1
        step = values.astype(np.float64) - self.centre
        self.centre = self.centre + step / self.count
        self.squares = self.squares + step * (values - self.centre)

    def mean(self) -> Array:
        """[M]: of N voxels, each over count - 1."""
        return np.mean(self.squares / (self.count - 1), axis=0)


def told(gains: Sequence[Gain]) -> list[tuple]:
    """A row of titles, then one a modality that could be acquired: the share of all
    variance that is expected to go, then of each missing modality's own."""
    names = list(gains[0].before)
    rows = [("acquire", "all", *names)]
    for gain in gains:
        own = (gain.drop[name] / gain.before[name] for name in names)
        rows.append((gain.acquired, *(f"{share:.3f}" for share in (gain.share, *own))))
    return rows
