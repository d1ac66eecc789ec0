"""Voxelwise ridge regression: the floors that a network has to beat.

A missing modality is a linear or quadratic function of the seen ones at the same voxel.
A network that does not beat the quadratic floor has learned nothing from a voxel's
neighbours. The normal equations of every missing pattern are blocks of one Gram matrix,
so that one pass over the training slices serves all patterns.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from math import isqrt

import numpy as np

from ummcsgm.types import Array, InputError


@dataclass(frozen=True)
class NormalEquations:
    """The Gram matrix of the features, summed over `count` brain voxels.

    `gram` [F, F] float64. The features of M modalities are 1, the M intensities, and
    their M (M + 1) / 2 products of two, in the order of `list_products`.
    """

    gram: Array
    count: int

    @property
    def modalities(self) -> int:
        """M, from F = (M + 1) (M + 2) / 2."""
        return isqrt(2 * len(self.gram)) - 1


@dataclass(frozen=True)
class Regression:
    """The fitted prediction of the A `missing` [M] modalities from the seen ones.

    A prediction is `intercept` [A] + features [F] @ `weights` [F, A]; `products` names
    the modalities that each feature multiplies.
    """

    missing: tuple[bool, ...]
    products: tuple[tuple[int, ...], ...]
    weights: Array
    intercept: Array

    def predict(self, images: Array) -> Array:
        """`images` [..., M] with the missing modalities predicted, the seen untouched.

        The values of `images` at the missing modalities are not read. The prediction is
        0 where all seen modalities are exactly 0 (the background). With nothing seen the
        background is unknown: the prediction is the brain's mean everywhere.
        """
        images, missing = np.asarray(images), np.array(self.missing)
        filled = np.array(images, np.result_type(images, np.float32))
        predicted = compute_products(images, self.products) @ self.weights + self.intercept
        if not missing.all():
            predicted *= _brain(images[..., ~missing])[..., None]
        filled[..., missing] = predicted
        return filled


def list_products(modalities: Iterable[int], degree: int) -> tuple[tuple[int, ...], ...]:
    """The modalities of each product of 1 to `degree` factors."""
    modalities = tuple(modalities)
    return tuple(
        factors
        for order in range(1, degree + 1)
        for factors in combinations_with_replacement(modalities, order)
    )


def compute_products(images: Array, products: tuple[tuple[int, ...], ...]) -> Array:
    """The products [..., F] in float64 of the intensities `images` [..., M]."""
    images = np.asarray(images, np.float64)
    features = np.empty((*images.shape[:-1], len(products)))
    for column, (first, *others) in enumerate(products):
        features[..., column] = images[..., first]
        for other in others:
            features[..., column] *= images[..., other]
    return features


def empty_normal_equations(modalities: int) -> NormalEquations:
    """The normal equations before any voxel is added."""
    size = 1 + len(list_products(range(modalities), 2))
    return NormalEquations(np.zeros((size, size)), 0)


def add_images(equations: NormalEquations, images: Array) -> NormalEquations:
    """`equations` with the brain voxels of `images` [S, H, W, M] added.

    The brain is where any modality is not 0. A modality that was not scanned counts as
    all 0: `select_normal_equations` leaves such subjects out.

    Raises:
        InputError: `images` has another number of modalities than `equations`.
    """
    if images.shape[-1] != equations.modalities:
        raise InputError(
            f"the images have {images.shape[-1]} modalities, and the regression was "
            f"begun with {equations.modalities}."
        )
    gram, count = equations.gram.copy(), equations.count
    products = list_products(range(equations.modalities), 2)
    for image in images:  # a slice at a time: the features are four times the images
        voxels = image[_brain(image)]
        design = np.ones((len(voxels), len(gram)))
        design[:, 1:] = compute_products(voxels, products)
        gram += design.T @ design
        count += len(voxels)
    return NormalEquations(gram, count)


def fit_normal_equations(
    training: Iterable[tuple[tuple[bool, ...], Array]],
) -> dict[tuple[bool, ...], NormalEquations]:
    """The normal equations of `training`, separate for each set of scanned modalities.

    `training` gives (present [M], images [S, H, W, M]), 0 where not present; it is read once.

    Raises:
        InputError: there are no images, or their numbers of modalities differ.
    """
    fitted: dict[tuple[bool, ...], NormalEquations] = {}
    modalities = 0
    for present, images in training:
        modalities = modalities or images.shape[-1]
        equations = fitted.get(present, empty_normal_equations(modalities))
        fitted[present] = add_images(equations, images)
    if not fitted:
        raise InputError("the regression needs training slices, and there are none.")
    return fitted


def select_normal_equations(
    fitted: dict[tuple[bool, ...], NormalEquations], needed: tuple[bool, ...]
) -> NormalEquations | None:
    """The sum over the training subjects that have every `needed` [M] modality; None
    without any."""
    selected = [
        equations
        for present, equations in fitted.items()
        if all(p for p, n in zip(present, needed, strict=True) if n)
    ]
    if not selected:
        return None
    gram = np.sum([equations.gram for equations in selected], axis=0)
    return NormalEquations(gram, sum(equations.count for equations in selected))


def solve_ridge(
    equations: NormalEquations, missing: tuple[bool, ...], degree: int, penalty: float
) -> Regression:
    """The ridge regression of the `missing` [M] modalities on products of the seen ones.

    Minimises mean (y - intercept - w . f)^2 + penalty sum_k var(f_k) w_k^2 over the brain's voxels.
    The penalty is on standardised features, so that it means the same for any number of voxels and
    any units; the intercept is free. With nothing seen the prediction is the mean over the brain.

    Raises:
        InputError: an argument is out of range, or training had no brain voxel.
    """
    _check_arguments(equations, missing, degree, penalty)
    all_products = list_products(range(equations.modalities), 2)
    seen = [m for m, absent in enumerate(missing) if not absent]
    products = list_products(seen, degree)
    columns = [1 + all_products.index(factors) for factors in products]
    targets = [1 + m for m, absent in enumerate(missing) if absent]

    gram = equations.gram / equations.count
    mean = gram[0]
    covariance = gram - np.outer(mean, mean)
    variance = np.diag(covariance)[columns]
    # A constant feature's variance is rounding: left unscaled, its weight is 0.
    constant = variance <= 1e-12 * np.diag(gram)[columns]
    std = np.sqrt(np.where(constant, 1, variance))
    normal = covariance[np.ix_(columns, columns)] / np.outer(std, std)
    cross = covariance[np.ix_(columns, targets)] / std[:, None]
    # lstsq: two identical modalities without a penalty have no unique solution.
    solution = np.linalg.lstsq(normal + penalty * np.eye(len(columns)), cross, rcond=None)
    weights = solution[0] / std[:, None]
    intercept = mean[targets] - mean[columns] @ weights
    return Regression(tuple(missing), products, weights, intercept)


def _brain(images: Array) -> Array:
    return np.any(images != 0, axis=-1)


def _check_arguments(
    equations: NormalEquations, missing: tuple[bool, ...], degree: int, penalty: float
) -> None:
    if equations.count == 0:
        raise InputError("the regression needs brain voxels, and all training images are zero.")
    if len(missing) != equations.modalities:
        raise InputError(
            f"missing names {len(missing)} modalities, and the training images have "
            f"{equations.modalities}."
        )
    if degree not in (1, 2):
        raise InputError(f"degree is {degree}; a ridge regression has degree 1 or 2.")
    if not penalty >= 0:
        raise InputError(f"penalty is {penalty}; it must be 0 or more.")
