"""A network that was not trained, and a subject for it: time and memory are the same.

Parameters are random; the subject is a phantom of any size, prepared as `complete` does
it.
"""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp

from ummcsgm.benchmarks.data import write_subjects
from ummcsgm.config import build
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.types import Config, Params


def read_config(file: str, grid: tuple[int, int] | None) -> Config:
    """The config in `file`, with another grid if one is given."""
    config = runpy.run_path(file)["get_config"]()
    if grid is not None:
        config.data.grid = tuple(grid)
    return config


def random_params(model: ScoreModel, grid: tuple[int, int]) -> Params:
    """Parameters as they are before the first step of training."""
    images = jnp.zeros((1, *grid, model.network.channels()))
    missing = jnp.zeros((1, model.network.modalities), bool)
    return jax.jit(model.network.init)(jax.random.key(0), images, missing, jnp.zeros(1))


def untrained(config: Config) -> TrainedModel:
    """The network of a config, as `load_trained` gives it, but for what was learned."""
    model, space = build.build_model(config), build.build_space(config)
    params = devices.replicate(random_params(model, space.grid))
    scales = dict.fromkeys(space.modalities, 1.0)
    ranges = dict.fromkeys(space.modalities, (0.0, 4.0))
    known = (scales, ranges, (1.0, 1.0))
    return TrainedModel(config, space, model, params, 0, *known, digest="", data="")


def write_subject(
    folder: Path, modalities: tuple[str, ...], shape: tuple[int, int, int]
) -> Subject:
    """A phantom subject of `shape` voxels, whose files `folder` holds."""
    (subject,) = write_subjects(folder, modalities, tuple(shape), 1, 1)
    return subject
