"""Which scan would help most: the variance that acquiring a missing modality removes.

With a and c missing and b seen, Var(a|b) = E[Var(a|b, c)] + Var(E[a|b, c]) over c given
b: acquiring c is expected to lower the variance of a by the variance of the mean of a
once c is known, whatever c turns out to be. So c is drawn, taken for seen, and the mean
of the rest predicted, again and again. No head is needed that predicts variances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ummcsgm.data.subjects import stack_neighbours
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.subject_posterior import SubjectPosterior, predict_mean, sample_draws
from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class Gain:
    """What acquiring one modality is expected to do to the variances of all missing ones.

    Mean variances of the brain's voxels, in squares of a modality's scale.
    """

    acquired: str
    before: dict[str, float]  # by missing modality
    drop: dict[str, float]  # of the acquired modality: all of it

    @property
    def share(self) -> float:
        """Of the variance of all missing modalities, the part that is expected to go."""
        return sum(self.drop.values()) / sum(self.before.values())


def expected_gains(
    posterior: SubjectPosterior,
    inputs: SubjectInputs,
    brain: Array,
    modalities: tuple[str, ...],
    draws: int,
) -> list[Gain]:
    """Returns the gain of each missing modality, the largest first.

    Estimated from `draws` draws, at least 2, of all missing modalities together, in the
    `brain` [S, H, W].

    Raises:
        InputError: the draws of a modality are all alike, so that no variance can go.
    """
    missing = np.flatnonzero(inputs.missing)
    estimate = predict_mean(posterior, inputs)
    drawn, informed = _Variance(), {channel: _Variance() for channel in missing}
    for draw in sample_draws(posterior, inputs, estimate, draws):
        drawn.add(draw[brain])
        for channel, variance in informed.items():
            variance.add(_mean_given(posterior, inputs, draw, channel)[brain])
    before = drawn.mean()
    for channel in missing:
        if not before[channel] > 0:
            raise InputError(
                f"subject {inputs.name}: all draws of {modalities[channel]} are "
                "alike, so there is no variance that a scan could lower."
            )
    gains = []
    for channel, variance in informed.items():
        # The acquired modality is its own draw there: all of its variance goes.
        means = before, variance.mean()
        by_name = [{modalities[c]: float(values[c]) for c in missing} for values in means]
        gains.append(Gain(modalities[channel], *by_name))
    return sorted(gains, key=lambda gain: -gain.share)


def _mean_given(
    posterior: SubjectPosterior, inputs: SubjectInputs, draw: Array, channel: int
) -> Array:
    """The mean of what is missing, as if `channel` had been seen as it was drawn."""
    images, missing = inputs.images.copy(), inputs.missing.copy()
    modalities = len(missing)
    neighbours = (images.shape[-1] // modalities - 1) // 2
    seen = draw[..., channel : channel + 1]
    images[..., channel::modalities] = stack_neighbours(seen, inputs.z, inputs.z, neighbours)
    missing[channel] = False
    return predict_mean(posterior, inputs._replace(images=images, missing=missing)).mean


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


def gains_table(gains: Sequence[Gain]) -> list[tuple]:
    """Returns the header, then a row for each modality that could be acquired: the share of
    all variance that is expected to go, then that of each missing modality."""
    names = list(gains[0].before)
    table = [("acquire", "all", *names)]
    for gain in gains:
        shares = (gain.share, *(gain.drop[name] / gain.before[name] for name in names))
        table.append((gain.acquired, *(f"{share:.3f}" for share in shares)))
    return table
