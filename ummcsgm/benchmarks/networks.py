"""Networks and subjects for benchmarks: random parameters, phantom images.

Time and memory depend on neither the parameters nor the image values.
"""

import copy
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ummcsgm.benchmarks.data import write_subjects
from ummcsgm.config import build
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.diffusion.preconditioning import ScoreModel, init_params
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import TrainedModel
from ummcsgm.training.dsm_step import TrainState, init_state, make_train_step
from ummcsgm.types import Config, Params

# The mm-CSN whose score is about 0, and the objective that it was tuned with.
EDM = {
    "network.preconditioning": "edm",
    "loss.weighting": "conditional",
    "loss.uniform_fraction": 0.2,
    "loss.sigma_min": 0.003,
    "loss.sigma_max_factor": 0.0,
    "loss.levels_per_question": 1,
    "loss.mean_fraction": 0.3,
}


class TrainingStart(NamedTuple):
    """A network, its training step, and the state before the first step."""

    model: ScoreModel
    step: Callable  # (key, state, batch) -> (state, metrics), to be mapped over devices
    state: TrainState  # in host memory: a step on a copy of it leaves it as it is


def start_training(config: Config) -> TrainingStart:
    """The training step of `train` for this config, and the state that it starts from."""
    model, rule = build.build_model(config), build.build_update_rule(config)
    grid = build.build_space(config).grid
    state = init_state(jax.random.key(0), model, rule, grid)
    step = make_train_step(model, build.build_objective(config), rule)
    return TrainingStart(model, step, jax.tree.map(np.asarray, state))


def read_config(file: str, grid: tuple[int, int] | None = None) -> Config:
    """The config in `file`, with another grid if one is given."""
    config = runpy.run_path(file)["get_config"]()
    if grid is not None:
        config.data.grid = tuple(grid)
    return config


def with_edm(config: Config) -> Config:
    """A copy of the config with the preconditioning `edm`; one that has it already as it is."""
    config = copy.deepcopy(config)
    if config.network.preconditioning != "edm":
        config.update_from_flattened_dict(EDM)
    return config


def random_params(model: ScoreModel, grid: tuple[int, int]) -> Params:
    """Parameters as they are before the first step of training."""
    return jax.jit(init_params, static_argnums=(0, 2))(model, jax.random.key(0), tuple(grid))


def make_untrained_model(config: Config) -> TrainedModel:
    """The config's network as `load_trained_model` returns it, with random parameters."""
    model, space = build.build_model(config), build.build_space(config)
    params = devices.replicate(random_params(model, space.grid))
    scales = dict.fromkeys(space.modalities, 1.0)
    ranges = dict.fromkeys(space.modalities, (0.0, 4.0))
    return TrainedModel(
        config,
        space,
        model,
        params,
        step=0,
        scales=scales,
        ranges=ranges,
        spacing=(1.0, 1.0),
        digest="",
        data="",
        posterior_scales={"+".join(space.modalities): 1.0},
    )


def write_subject(
    folder: Path, modalities: tuple[str, ...], shape: tuple[int, int, int]
) -> Subject:
    """A phantom subject of `shape` voxels, whose files are in `folder`."""
    (subject,) = write_subjects(folder, modalities, tuple(shape), 1, 1)
    return subject
