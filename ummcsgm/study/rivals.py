"""A trained method of the study that is not the mm-CSN, and what it costs.

Each predicts slices as `predictor.make_mean_predictor` does, and draws nothing.
"""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.config import build
from ummcsgm.config.build_methods import REGRESSION, build_method, describe_options
from ummcsgm.config.schema import check_fields
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import make_estimate, posterior_moments
from ummcsgm.inference.predictor import (
    TrainedModel,
    in_microbatches,
    load_trained_model,
    make_mean_predictor,
)
from ummcsgm.training import checkpoint
from ummcsgm.training.logging import program_flops
from ummcsgm.types import Images, Missing, Params, Stacks

TURNS = 5  # of a microbatch that is timed


@dataclasses.dataclass(frozen=True)
class Rival:
    """A trained method. answer(images [R, H, W, ...], missing [R, M]) gives
    [R, H, W, M], the seen bit for bit.

    It saw `images` in `step` steps.
    `note` says how it differs from what was published; `digest` is that of its
    parameters, `parameters` the number of those that an answer needs, `gflop` what one
    slice's takes, `data` what it was trained on.
    """

    name: str
    title: str
    note: str
    answer: Callable
    step: int
    images: int
    digest: str
    parameters: int
    gflop: float
    data: str


def load_rival(place: pathlib.Path) -> Rival:
    """The method that was trained in this place.

    Raises:
        InputError: it has no checkpoint there, or one of another version.
    """
    about = checkpoint.restore_metadata(place)
    name = about["method"]
    if name == REGRESSION:
        note = "Ours: the mm-CSN's network, trained on the squared error of the mean."
        trained = load_trained_model(place)
        return mm_csn_mean(trained, name, "mm-CSN network, regression", note)
    config = build.config_from_json(about["config"])
    check_fields(config.to_dict())
    method, space = build_method(config, name), build.build_space(config)
    grid = space.grid
    shapes = jax.eval_shape(lambda key: method.init(key, grid), jax.random.key(0))
    params = checkpoint.restore_ema(place, shapes)
    needed = {part: params[part] for part in ("generator", "statistics")}
    counted = {
        part: own
        for part, own in needed["generator"].items()
        if not part.startswith(method.training_only)
    }

    def complete(params: Params, images: Stacks, missing: Missing) -> Images:
        return method.complete(params, mask_inputs(images, missing))

    step = checkpoint.latest_step(place)
    size = build.build_evaluation_options(config).microbatch
    stacks = (1, *grid, build.build_model(config).network.channels())
    return Rival(
        name,
        method.title,
        f"{method.note} {describe_options(config, name)}",
        in_microbatches(complete, needed, size),
        step,
        step * build.build_train_options(config).batch,
        checkpoint.params_digest(needed),
        _count(counted),
        _gflop(complete, needed, stacks, len(space.modalities)),
        about["data"],
    )


def mm_csn_mean(trained: TrainedModel, name: str, title: str, note: str) -> Rival:
    """The mean in one evaluation of a network of the mm-CSN's kind."""
    scoring = build.build_evaluation_options(trained.config)
    predict_mean = make_mean_predictor(trained, scoring)
    network = trained.model.network

    def mean(params: Params, images: Stacks, missing: Missing) -> Images:
        question = mask_inputs(images, missing)
        estimate = make_estimate(trained.model, params, question)
        return posterior_moments(estimate, question).mean

    stacks = (1, *trained.space.grid, network.channels())
    return Rival(
        name,
        title,
        note,
        lambda images, missing: predict_mean(images, missing).mean,
        trained.step,
        trained.step * build.build_train_options(trained.config).batch,
        trained.digest,
        _count(trained.params),
        _gflop(mean, trained.params, stacks, network.modalities),
        trained.data,
    )


def seconds_per_slice(answer: Callable, images: Stacks, missing: Missing) -> float:
    """How long `answer` takes for a slice of these rows, when it is compiled; the
    median of a few turns."""
    answer(images, missing)
    turns = []
    for _ in range(TURNS):
        start = time.perf_counter()
        answer(images, missing)
        turns.append((time.perf_counter() - start) / len(images))
    return statistics.median(turns)


def _count(params: Params) -> int:
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))


def _gflop(complete: Callable, params: Params, shape: tuple, modalities: int) -> float:
    """GFLOP of one slice's answer, as XLA counts them."""
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    rows = np.zeros(shape, np.float32), np.arange(modalities)[None] == 0
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return program_flops(jax.jit(complete), params, *map(jnp.asarray, rows)) / 1e9
