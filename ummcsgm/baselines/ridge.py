"""Voxelwise ridge regression: the floors that a network has to beat.

A missing modality is a linear or quadratic function of the seen ones at the same voxel.
A network that does not beat the quadratic floor has learned nothing from a voxel's
neighbours. The normal equations of every question are sub-blocks of one Gram matrix,
so that one pass over the training slices answers all configurations.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import isqrt

import numpy as np

from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class NormalEquations:
    """Sums over `count` brain voxels of the products of all pairs of features.

    `gram` is [F, F] in float64; the features of M modalities are 1, the M intensities,
    and their M (M + 1) / 2 products of two, in the order of `features`.
    """

    gram: Array
    count: int

    @property
    def modalities(self) -> int:
        """M, from F = (M + 1) (M + 2) / 2."""
        return isqrt(2 * len(self.gram)) - 1


@dataclass(frozen=True)
class Regression:
    """The answer to one question: `missing` [M] bool from products of the seen.

    `powers` names the modalities that each feature multiplies; a prediction is
    `intercept` [A] + features [F] @ `weights` [F, A] for the A missing modalities.
    """

    missing: tuple[bool, ...]
    powers: tuple[tuple[int, ...], ...]
    weights: Array
    intercept: Array

    def predict(self, images: Array) -> Array:
        """`images` [..., M] with the missing modalities predicted, the seen untouched.

        What `images` holds where they are missing is not read. The prediction is 0
        where all seen modalities are exactly 0, which is background; with nothing seen
        background is unknown, and the prediction is the brain's mean everywhere.
        """
        images, missing = np.asarray(images), np.array(self.missing)
        filled = np.array(images, np.result_type(images, np.float32))
        predicted = features(images, self.powers) @ self.weights + self.intercept
        if not missing.all():
            predicted *= _brain(images[..., ~missing])[..., None]
        filled[..., missing] = predicted
        return filled


def powers(modalities: Iterable[int], degree: int) -> tuple[tuple[int, ...], ...]:
    """The modalities that each product of 1 to `degree` of them multiplies."""
    modalities = tuple(modalities)
    return tuple(
        chosen
        for order in range(1, degree + 1)
        for chosen in combinations_with_replacement(modalities, order)
    )


def features(images: Array, powers: tuple[tuple[int, ...], ...]) -> Array:
    """The products [..., F] in float64 of the intensities `images` [..., M]."""
    images = np.asarray(images, np.float64)
    products = np.empty((*images.shape[:-1], len(powers)))
    for feature, (first, *others) in enumerate(powers):
        products[..., feature] = images[..., first]
        for other in others:
            products[..., feature] *= images[..., other]
    return products


def empty_normal_equations(modalities: int) -> NormalEquations:
    """The moments of no voxel at all: where an accumulation starts."""
    size = 1 + len(powers(range(modalities), 2))
    return NormalEquations(np.zeros((size, size)), 0)


def add_images(moments: NormalEquations, images: Array) -> NormalEquations:
    """`moments` with the brain voxels of `images` [S, H, W, M] added.

    The brain is where any modality is not 0. Moments with a modality that was not
    scanned are those of a black one: `select_normal_equations` leaves them out.

    Raises:
        InputError: `images` has another number of modalities than `moments`.
    """
    if images.shape[-1] != moments.modalities:
        raise InputError(
            f"these images have {images.shape[-1]} modalities, and the regression was "
            f"begun with {moments.modalities}."
        )
    gram, count = moments.gram.copy(), moments.count
    products = powers(range(moments.modalities), 2)
    for image in images:  # a slice at a time: the features are four times the images
        voxels = image[_brain(image)]
        design = np.ones((len(voxels), len(gram)))
        design[:, 1:] = features(voxels, products)
        gram += design.T @ design
        count += len(voxels)
    return NormalEquations(gram, count)


def fit_normal_equations(
    training: Iterable[tuple[tuple[bool, ...], Array]],
) -> dict[tuple[bool, ...], NormalEquations]:
    """The moments of `training`, apart for each set of modalities that was scanned.

    `training` gives what is present [M] and images [S, H, W, M], which are 0 where it
    is not; each is read once.

    Raises:
        InputError: there are no images, or their numbers of modalities differ.
    """
    fitted: dict[tuple[bool, ...], NormalEquations] = {}
    modalities = 0
    for present, images in training:
        modalities = modalities if modalities else images.shape[-1]
        before = fitted.get(present, empty_normal_equations(modalities))
        fitted[present] = add_images(before, images)
    if not fitted:
        raise InputError("a regression wants training slices, and there are none.")
    return fitted


def select_normal_equations(
    fitted: dict[tuple[bool, ...], NormalEquations], needed: tuple[bool, ...]
) -> NormalEquations | None:
    """The moments of all that was scanned with every `needed` [M] modality, or None."""
    fitting = [
        moments
        for present, moments in fitted.items()
        if all(p for p, n in zip(present, needed, strict=True) if n)
    ]
    if not fitting:
        return None
    gram = np.sum([moments.gram for moments in fitting], axis=0)
    return NormalEquations(gram, sum(moments.count for moments in fitting))


def solve_ridge(
    moments: NormalEquations, missing: tuple[bool, ...], degree: int, penalty: float
) -> Regression:
    """The ridge regression of the `missing` [M] modalities on products of the seen.

    Minimises mean (y - intercept - w . f)^2 + penalty sum_k var(f_k) w_k^2 over the
    brain's voxels: the penalty is on standardised features, so that it means the same
    for any number of voxels and any units, and it is not on the intercept. With nothing
    seen the prediction is the mean over the brain.

    Raises:
        InputError: an argument is out of range, or training had no brain voxel.
    """
    _check_question(moments, missing, degree, penalty)
    everything = powers(range(moments.modalities), 2)
    seen = [m for m, absent in enumerate(missing) if not absent]
    inputs = powers(seen, degree)
    columns = [1 + everything.index(chosen) for chosen in inputs]
    targets = [1 + m for m, absent in enumerate(missing) if absent]

    gram = moments.gram / moments.count
    mean = gram[0]
    covariance = gram - np.outer(mean, mean)
    variance = np.diag(covariance)[columns]
    # a constant feature has rounding for a variance: left unscaled, its weight is 0
    constant = variance <= 1e-12 * np.diag(gram)[columns]
    spread = np.sqrt(np.where(constant, 1, variance))
    normal = covariance[np.ix_(columns, columns)] / np.outer(spread, spread)
    shared = covariance[np.ix_(columns, targets)] / spread[:, None]
    # lstsq, since two identical modalities and no penalty leave no unique solution
    solved = np.linalg.lstsq(normal + penalty * np.eye(len(columns)), shared, rcond=None)
    weights = solved[0] / spread[:, None]
    intercept = mean[targets] - mean[columns] @ weights
    return Regression(tuple(missing), inputs, weights, intercept)


def _brain(images: Array) -> Array:
    return np.any(images != 0, axis=-1)


def _check_question(
    moments: NormalEquations, missing: tuple[bool, ...], degree: int, penalty: float
) -> None:
    if moments.count == 0:
        raise InputError("a regression wants brain voxels, and all training is zero.")
    if len(missing) != moments.modalities:
        raise InputError(
            f"missing names {len(missing)} modalities, and the training images have "
            f"{moments.modalities}."
        )
    if degree not in (1, 2):
        raise InputError(f"degree is {degree}, and a ridge floor has degree 1 or 2.")
    if not penalty >= 0:
        raise InputError(f"penalty is {penalty}, and it must be 0 or more.")
