"""ConfigDict -> the methods of a study, and how each is trained."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from ummcsgm.baselines import gan_trainer
from ummcsgm.baselines.cocagan import make_cocagan
from ummcsgm.baselines.hi_net import make_hi_net
from ummcsgm.baselines.method import Method
from ummcsgm.baselines.mm_gan import make_mm_gan
from ummcsgm.baselines.mm_syn import make_mm_syn
from ummcsgm.baselines.ucdgan import make_ucdgan
from ummcsgm.config import build
from ummcsgm.config.build import lookup
from ummcsgm.config.schema import METHOD_KEYS, RUN_KEYS
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.distributed import devices
from ummcsgm.training import dsm_step, segmenter_step
from ummcsgm.training.dsm_step import UpdateRule
from ummcsgm.training.posterior_scale import measure_posterior_scales
from ummcsgm.training.train import TrainableMethod
from ummcsgm.types import Config, InputError

MM_CSN, REGRESSION, SEGMENTER = "mm-csn", "regression", "segmenter"
BY_IMAGES, BY_SECONDS = "images", "seconds"
BUDGETS = {BY_IMAGES: BY_IMAGES, BY_SECONDS: BY_SECONDS}
METHODS: dict[str, Callable[..., Method]] = {
    "mm-gan": make_mm_gan,
    "hi-net": make_hi_net,
    "mm-syn": make_mm_syn,
    "ucdgan": make_ucdgan,
    "cocagan": make_cocagan,
}


def check_study(config: ConfigDict) -> None:
    """Raises InputError, naming the key, if the config's study cannot be made."""
    names = config.study.methods
    if len(set(names)) < len(names):
        raise InputError(f"config.study.methods is {tuple(names)}: name each once.")
    for key in ("width_scale", "lr_scale", "patterns_per_image"):
        if len(config.study[key]) != len(names):
            raise InputError(
                f"config.study.{key} has {len(config.study[key])} numbers and "
                f"config.study.methods {len(names)} names: wanted one for each."
            )
    known = (REGRESSION, *METHODS)
    for name in names:
        if name not in known:
            raise InputError(
                f"config.study.methods has {name!r}; wanted some of {', '.join(known)}."
            )
    _check_regression(config)
    lookup("study.budget", config.study.budget, BUDGETS)
    labels = config.data.labels
    if "cocagan" in names and not labels:
        raise InputError(
            "config.study.methods has 'cocagan', which weighs lesions: set "
            "config.data.labels to True."
        )
    if config.study.segmenter_steps and not labels:
        raise InputError(
            "config.study.segmenter_steps wants segmentations: set config.data.labels to "
            "True, or config.study.segmenter_steps to 0."
        )
    if config.study.cocagan_input and config.study.cocagan_input not in config.data.modalities:
        raise InputError(
            f"config.study.cocagan_input is {config.study.cocagan_input!r}; wanted one of "
            f"{', '.join(config.data.modalities)}, or nothing."
        )


def _check_regression(config: ConfigDict) -> None:
    """Raises InputError if the config gives regression other options than the mm-CSN's."""
    names = tuple(config.study.methods)
    if REGRESSION not in names:
        return
    wanted = {"width_scale": 1.0, "lr_scale": 1.0}
    wanted["patterns_per_image"] = config.missingness.patterns_per_image
    for key, value in wanted.items():
        found = config.study[key][names.index(REGRESSION)]
        if found != value:
            raise InputError(
                f"config.study.{key} has {found:g} for {REGRESSION}, which is trained as "
                f"the mm-CSN is: wanted {value:g}."
            )


def build_method(config: ConfigDict, name: str) -> Method:
    """Returns the published method of this name, for the config's modalities."""
    make = lookup("study.methods", name, METHODS)
    modalities, seen = tuple(config.data.modalities), config.study.cocagan_input
    options = {"width": method_options(config, name)["width_scale"], "axis": devices.AXIS}
    if name == "cocagan":
        options["input_modality"] = modalities.index(seen) if seen else None
    return make(len(modalities), scale=config.data.image_std, **options)


def method_options(config: ConfigDict, name: str) -> dict:
    """Returns a published method's options; none of them may change while it trains."""
    if name not in METHODS or name not in config.study.methods:
        return {}
    fields, index = config.study, tuple(config.study.methods).index(name)
    keys = ("width_scale", "lr_scale", "patterns_per_image")
    options = {key: fields[key][index] for key in keys}
    return options | ({"cocagan_input": fields.cocagan_input} if name == "cocagan" else {})


def describe_options(config: ConfigDict, name: str) -> str:
    """Returns one sentence about a published method's training, for the report."""
    options = method_options(config, name)
    patterns = options["patterns_per_image"]
    return (
        f"Here with {options['width_scale']:g} of its channels, its learning rates times "
        f"{options['lr_scale']:g}, {patterns} missing pattern{'s'[: patterns > 1]} of each "
        "image in a step, and the schedule and weight average of the mm-CSN."
    )


def check_options(saved: dict, options: dict, where: str) -> None:
    """Raises InputError if a method's options differ from the saved ones of `where`."""
    for key, value in options.items():
        if saved.get(key) != value:
            raise InputError(
                f"{where} was trained with another config.study.{key}: {saved.get(key)!r}, "
                f"and yours is {value!r}; use that one, or remove the folder."
            )


def build_method_schedule(config: ConfigDict, name: str) -> Callable[[float], optax.Schedule]:
    """Returns schedule(rate): config.train's, with lr_scale times a published rate."""
    schedule, scale = build.build_schedule(config), method_options(config, name)["lr_scale"]
    return lambda rate: schedule(rate * scale)


def regression_config(config: ConfigDict) -> ConfigDict:
    """Returns the config of `regression`: the mm-CSN's, but all of a batch trains the mean.

    The loss is the squared error of the mean, and nothing is noised: of the preconditioning `mean`
    it has the network of the mean alone.
    """
    config = config.copy_and_resolve_references()
    config.network.preconditioning = "edm"
    config.loss.mean_fraction = 1.0
    config.loss.weighting = "edm"  # of a noise level, and there is none
    config.loss.levels_per_question = 1
    config.loss.sigma_max_factor = 0.0
    return config


def build_method_patterns(config: ConfigDict, name: str) -> tuple:
    """Returns the missing patterns in a published method's training: table [N, M],
    probabilities [N], patterns per image.

    They are the mm-CSN's without the pattern in which everything is missing: the
    published methods need an input.
    """
    modalities = len(config.data.modalities)
    table = missing_patterns(modalities, proper=True)
    probabilities = pattern_probabilities(table, build.build_sizes(config)[: modalities - 1])
    return table, probabilities, method_options(config, name)["patterns_per_image"]


def build_method_names(config: ConfigDict) -> tuple[str, ...]:
    """Returns the methods of the study beside the mm-CSN, in the config's order."""
    return tuple(config.study.methods)


def build_budget(config: ConfigDict) -> str:
    """Returns what all methods get equally in training: BY_IMAGES or BY_SECONDS."""
    return lookup("study.budget", config.study.budget, BUDGETS)


def build_gallery(config: ConfigDict) -> int:
    """Returns how many slices of a subject the report shows."""
    return config.study.gallery_slices


def shows_paper(config: ConfigDict) -> bool:
    """Whether the report has the paper's numbers: the study is on the same data."""
    return config.study.show_paper


def method_folder(workdir: pathlib.Path, method: str) -> pathlib.Path:
    """Returns the folder of a method's checkpoints and log; the mm-CSN's is the workdir."""
    return workdir if method == MM_CSN else workdir / "methods" / method


def method_config(config: Config, method: str) -> Config:
    """Returns the config that a method's checkpoint has.

    Raises:
        InputError: the method is the segmenter, and its training steps are 0.
    """
    if method == REGRESSION:
        return regression_config(config)
    return build.segmenter_config(config) if method == SEGMENTER else config


def fixed_keys(method: str) -> tuple[str, ...]:
    """Returns the beginnings of the config keys that may not change while a method trains."""
    return RUN_KEYS if method in (MM_CSN, REGRESSION) else METHOD_KEYS


def build_trainable(config: Config, method: str) -> TrainableMethod:
    """Returns the initial state and the training step of a method.

    Raises:
        InputError: the method is not in the study, or its options are wrong.
    """
    if method in (MM_CSN, REGRESSION):
        return _score_matching(method_config(config, method))
    if method == SEGMENTER:
        return _segmentation(method_config(config, method))
    return _published(config, build_method(config, method))


def _score_matching(config: Config) -> TrainableMethod:
    model, update = build.build_model(config), build.build_update_rule(config)
    objective, grid = build.build_objective(config), build.build_space(config).grid
    without_remat = dataclasses.replace(model, network=model.network.without_remat())
    return TrainableMethod(
        lambda key: dsm_step.init_state(key, model, update, grid),
        dsm_step.make_train_step(model, objective, update),
        dsm_step.make_train_step(without_remat, objective, _no_update()),
        functools.partial(measure_posterior_scales, model, build.build_space(config).modalities),
    )


def _published(config: Config, method: Method) -> TrainableMethod:
    optimizer = gan_trainer.make_optimizer(method, build_method_schedule(config, method.name))
    update = dataclasses.replace(build.build_update_rule(config), optimizer=optimizer)
    grid, steps = build.build_space(config).grid, build.build_train_options(config).steps
    patterns = build_method_patterns(config, method.name)
    return TrainableMethod(
        lambda key: gan_trainer.init_state(key, method, update, grid),
        gan_trainer.make_train_step(method, update, *patterns, steps),
        gan_trainer.make_train_step(method, _no_update(), *patterns, steps),
    )


def _segmentation(config: Config) -> TrainableMethod:
    model, update = build.build_segmenter(config), build.build_update_rule(config)
    space = build.build_space(config)
    modalities = len(space.modalities)
    return TrainableMethod(
        lambda key: segmenter_step.init_state(key, model, update, (*space.grid, modalities)),
        segmenter_step.make_step(model, update, modalities),
        segmenter_step.make_step(model, _no_update(), modalities),
    )


def _no_update() -> UpdateRule:
    return UpdateRule(optax.identity(), ema_decay=0.0, accumulate=1)
