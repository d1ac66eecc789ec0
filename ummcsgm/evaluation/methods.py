"""The methods that evaluation compares: the mm-CSN, published methods and ridge floors.

Each is a `TrainedMethod`, which predicts slices alike; the mm-CSN also draws.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.baselines.ridge import fit_normal_equations, select_normal_equations, solve_ridge
from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.config.build_methods import REGRESSION, build_method, describe_options
from ummcsgm.config.schema import check_fields
from ummcsgm.data.store import Store
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import make_posterior
from ummcsgm.inference.predictor import (
    TrainedModel,
    in_microbatches,
    load_trained_model,
    make_mean_predictor,
    make_sampler,
)
from ummcsgm.training import checkpoint
from ummcsgm.training.logging import program_flops
from ummcsgm.types import Array, Estimate, Missing, Params, Stacks
from ummcsgm.utils.atomic_io import digest

FLOOR = "Ours: voxel by voxel, no network."


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a trained method has and had: its training, and the size of one prediction."""

    steps: int
    images_seen: int
    parameters: int  # that a prediction needs
    count_gflop: Callable[[], float]  # of one slice; compiles it


@dataclasses.dataclass(frozen=True)
class TrainedMethod:
    """A method that predicts missing modalities.

    predict(images [R, H, W, M (2 n + 1)], missing [R, M]) is an `Estimate` whose mean
    [R, H, W, M] has the seen modalities bit for bit. What lies on the missing ones is not
    read. The mean is NaN where a ridge floor has no prediction.
    """

    name: str  # in rows and folders
    folder: pathlib.Path  # where the parts of an evaluation are kept
    title: str  # for readers
    note: str  # how it differs from what was published
    predict: Callable[[Stacks, Missing], Estimate]
    digest: str  # changes with the parameters
    costs: Costs | None = None
    make_sampler: Callable | None = None  # make_sampler(name, rho), of a method that draws


def mm_csn_method(
    trained: TrainedModel,
    options: EvaluationOptions,
    folder: pathlib.Path,
    *,
    name: str,
    title: str,
    note: str = "",
) -> TrainedMethod:
    """A network of the mm-CSN's kind: its mean in one evaluation, and its samplers."""
    network = trained.model.network

    def mean(params: Params, images: Stacks, missing: Missing) -> Array:
        return make_posterior(trained.model, params, mask_inputs(images, missing)).moments().mean

    @functools.cache
    def sampler(sampler_name: str, rho: float = 0.0) -> Callable:
        return make_sampler(trained, sampler_name, options, rho=rho)

    stacks = (1, *trained.space.grid, network.channels())
    costs = Costs(
        trained.step,
        trained.step * build.build_train_options(trained.config).batch,
        _count(trained.params["params"].get("mean_network", trained.params["params"])),
        lambda: _gflop(mean, trained.params, stacks, network.modalities),
    )
    predict = make_mean_predictor(trained, options)
    return TrainedMethod(name, folder, title, note, predict, trained.digest, costs, sampler)


def load_method(folder: pathlib.Path, options: EvaluationOptions) -> TrainedMethod:
    """The method that was trained in `folder`: regression or a published one.

    Raises:
        InputError: there is no checkpoint, or one of another version.
    """
    metadata = checkpoint.restore_metadata(folder)
    name = metadata["method"]
    if name == REGRESSION:
        method = mm_csn_method(
            load_trained_model(folder),
            options,
            folder / "parts",
            name=name,
            title="mm-CSN network, regression",
            note="Ours: the mm-CSN's network, trained on the squared error of the mean.",
        )
        return dataclasses.replace(method, make_sampler=None)
    config = build.config_from_json(metadata["config"])
    check_fields(config.to_dict())
    method, space = build_method(config, name), build.build_space(config)
    grid = space.grid
    shapes = jax.eval_shape(lambda key: method.init(key, grid), jax.random.key(0))
    params = checkpoint.restore_ema(folder, shapes)
    needed = {part: params[part] for part in ("generator", "statistics")}
    counted = {
        part: leaves
        for part, leaves in needed["generator"].items()
        if not part.startswith(method.training_only)
    }

    def complete(params: Params, images: Stacks, missing: Missing) -> Array:
        return method.complete(params, mask_inputs(images, missing))

    step = checkpoint.latest_step(folder)
    stacks = (1, *grid, build.build_model(config).network.channels())
    costs = Costs(
        step,
        step * build.build_train_options(config).batch,
        _count(counted),
        lambda: _gflop(complete, needed, stacks, len(space.modalities)),
    )
    fill = in_microbatches(complete, needed, options.microbatch)
    return TrainedMethod(
        name,
        folder / "parts",
        method.title,
        f"{method.note} {describe_options(config, name)}",
        lambda images, missing: Estimate(fill(images, missing), None),
        checkpoint.params_digest(needed),
        costs,
    )


def ridge_methods(
    store: Store, penalty: float, folder: pathlib.Path
) -> tuple[TrainedMethod, TrainedMethod]:
    """The quadratic and the linear floor, fitted on the training slices when first asked.

    A modality has no prediction (NaN) where no training subject was scanned with all that it needs.
    """

    @functools.cache
    def equations() -> dict:
        return fit_normal_equations(
            (entry.present, store.subject_slices(entry.name)) for entry in store.subjects
        )

    def predict(degree: int, images: Stacks, missing: Missing) -> Estimate:
        modalities = missing.shape[1]
        truth = images[..., :modalities]
        predicted = np.where(missing[:, None, None], np.float32(np.nan), truth)
        for pattern in np.unique(missing, axis=0):
            examples = (missing == pattern).all(axis=1)
            for channel in np.flatnonzero(pattern):
                needed = ~pattern | (np.arange(modalities) == channel)
                selected = select_normal_equations(equations(), tuple(needed.tolist()))
                if selected is not None:
                    regression = solve_ridge(selected, tuple(pattern.tolist()), degree, penalty)
                    filled = regression.predict(truth[examples])
                    predicted[examples, ..., channel] = filled[..., channel]
        return Estimate(predicted, None)

    data = [[entry.name, entry.crc] for entry in store.subjects]
    methods = (("ridge2", "ridge, quadratic (floor)", 2), ("ridge", "ridge, linear (floor)", 1))
    return tuple(
        TrainedMethod(
            name,
            folder / name,
            title,
            FLOOR,
            functools.partial(predict, degree),
            digest([data, degree, penalty]),
        )
        for name, title, degree in methods
    )


def _count(params: Params) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def _gflop(complete: Callable, params: Params, shape: tuple, modalities: int) -> float:
    """GFLOP of one slice's prediction, as XLA counts them."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    inputs = np.zeros(shape, np.float32), np.arange(modalities)[None] == 0
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return program_flops(jax.jit(complete), params, *map(jnp.asarray, inputs)) / 1e9
