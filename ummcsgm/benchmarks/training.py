"""Training before its first step: where every benchmark of the step begins."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from ummcsgm.config import build
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.training.dsm_step import init_state, make_train_step
from ummcsgm.training.train_state import TrainState
from ummcsgm.types import Config


class Start(NamedTuple):
    """A network, the step that trains it, and its state before the first one."""

    model: ScoreModel
    step: Callable  # (key, state, batch) -> (state, metrics), to be mapped over devices
    state: TrainState  # in the host's memory: a step that takes a copy leaves it


def start_of(config: Config) -> Start:
    """The very step of training, as `train` makes it of the config."""
    model, recipe = build.build_model(config), build.build_update_rule(config)
    grid = build.build_space(config).grid
    state = init_state(jax.random.key(0), model, recipe, grid)
    step = make_train_step(model, build.build_objective(config), recipe)
    return Start(model, step, jax.tree.map(np.asarray, state))
