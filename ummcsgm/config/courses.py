"""How each method of the study is trained: where it starts, and its step.

The mm-CSN and `regression`, which is the mm-CSN's own network asked for the mean alone,
take the step of `dsm_step`; the five published methods that of `baselines.gan_trainer`.
`segmenter` is the network that judges them all: `downstream`.
"""

import dataclasses
import pathlib

import optax

from ummcsgm.baselines import gan_trainer
from ummcsgm.baselines.method import Method
from ummcsgm.config import build
from ummcsgm.config.build_methods import (
    MM_CSN,
    REGRESSION,
    build_method,
    build_method_patterns,
    build_method_schedule,
    regression_config,
)
from ummcsgm.config.schema import METHOD_KEYS, RUN_KEYS
from ummcsgm.training import dsm_step, segmenter_step
from ummcsgm.training.dsm_step import UpdateRule
from ummcsgm.training.train import TrainableMethod
from ummcsgm.types import Config

SEGMENTER = "segmenter"


def method_folder(workdir: pathlib.Path, method: str) -> pathlib.Path:
    """Where a method's checkpoints and log lie: the mm-CSN's in the workdir itself."""
    return workdir if method == MM_CSN else workdir / "methods" / method


def method_config(config: Config, method: str) -> Config:
    """The config that a method's checkpoint carries.

    Raises:
        InputError: it is the segmenter's, and the config asks for no such training.
    """
    own = {REGRESSION: regression_config, SEGMENTER: build.segmenter_config}
    return own[method](config) if method in own else config


def fixed_keys(method: str) -> tuple[str, ...]:
    """The keys of the config, or their beginnings, that must stay as they are while a
    method trains, and that the mm-CSN's and a method's have alike."""
    return RUN_KEYS if method in (MM_CSN, REGRESSION) else METHOD_KEYS


def build_trainable(config: Config, method: str) -> TrainableMethod:
    """Training in `method` as the config has it.

    Raises:
        InputError: the method is none of the study's, or cannot be trained so.
    """
    if method in (MM_CSN, REGRESSION):
        return _matching(method_config(config, method))
    if method == SEGMENTER:
        return _segmenting(method_config(config, method))
    return _adversarial(config, build_method(config, method))


def _matching(config: Config) -> TrainableMethod:
    model, recipe = build.build_model(config), build.build_update_rule(config)
    objective, grid = build.build_objective(config), build.build_space(config).grid
    network = model.network.clone(remat=(False,) * len(model.network.widths))
    plain = dataclasses.replace(model, network=network)
    return TrainableMethod(
        lambda key: dsm_step.init_state(key, model, recipe, grid),
        dsm_step.make_train_step(model, objective, recipe),
        dsm_step.make_train_step(plain, objective, _unmoved()),
    )


def _adversarial(config: Config, method: Method) -> TrainableMethod:
    optimizer = gan_trainer.make_optimizer(method, build_method_schedule(config, method.name))
    recipe = dataclasses.replace(build.build_update_rule(config), optimizer=optimizer)
    grid, steps = (build.build_space(config).grid, build.build_train_options(config).steps)
    questions = build_method_patterns(config, method.name)
    return TrainableMethod(
        lambda key: gan_trainer.init_state(key, method, recipe, grid),
        gan_trainer.make_train_step(method, recipe, *questions, steps),
        gan_trainer.make_train_step(method, _unmoved(), *questions, steps),
    )


def _segmenting(config: Config) -> TrainableMethod:
    model, recipe = build.build_segmenter(config), build.build_update_rule(config)
    space = build.build_space(config)
    modalities = len(space.modalities)
    return TrainableMethod(
        lambda key: segmenter_step.init_state(key, model, recipe, (*space.grid, modalities)),
        segmenter_step.make_step(model, recipe, modalities),
        segmenter_step.make_step(model, _unmoved(), modalities),
    )


def _unmoved() -> UpdateRule:
    return UpdateRule(optax.identity(), ema_decay=0.0, accumulate=1)
