"""ConfigDict -> objects: the only file that reads config fields.

Names in a config are looked up in the literal tables at the foot. Whatever is wrong in
a config is an InputError that names the key as it is typed on the command line.
"""

import dataclasses
import json
from collections.abc import Callable

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from ummcsgm.config.schema import check_fields
from ummcsgm.data.crop import ImageSpace, SliceView
from ummcsgm.diffusion import loss, missingness, sde
from ummcsgm.diffusion.preconditioning import PRECONDITIONINGS, ScoreModel
from ummcsgm.diffusion.time_grids import LEVEL_GRIDS
from ummcsgm.models import mm_csn
from ummcsgm.models.residual_mm_csn import ResidualMMCSN, in_noisy_part
from ummcsgm.models.segmenter import Segmenter
from ummcsgm.training.dsm_step import UpdateRule
from ummcsgm.training.loop import TrainOptions
from ummcsgm.training.optimizers import OPTIMIZERS, make_adam
from ummcsgm.training.segmenter_step import CLASSES
from ummcsgm.types import InputError
from ummcsgm.utils.provenance import lists_to_tuples
from ummcsgm.utils.suggest import did_you_mean


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """What evaluation asks and how much of it; 0 means all."""

    seed: int
    algorithm1_steps: int  # of Algorithm 1, and of every sampler on a uniform grid
    sampler_steps: int  # steps of the other samplers
    time_grid: str  # the grid of the other samplers, one of time_grids.LEVEL_GRIDS
    sigma_min: float  # the noise level at which they end
    warm_start_factor: float  # `warm` begins at so many posterior scales
    draws: int  # of each missing pattern, to measure the uncertainty
    draw_subjects: int  # that are so measured
    draw_slices: int  # of each of these subjects
    block_sizes: tuple[int, ...]  # pixels a side of the blocks whose means are scored
    two_sample_steps: int  # of the classifier that tells draws from truths; 0: none
    slab_slices: int  # neighbouring slices, to measure how they go together
    slab_subjects: int  # that are so measured
    microbatch: int  # examples in one network evaluation, over the local devices
    algorithm1_subjects: int
    algorithm1_slices: int  # of each of these subjects
    ridge_penalty: float  # of the ridge floors


def check_config(config: ConfigDict, devices: int) -> None:
    """Raises InputError, naming the key, if the config cannot be run on `devices`."""
    check_fields(config.to_dict())
    build_model(config)
    build_objective(config)
    build_evaluation_options(config)
    lookup("train.schedule", config.train.schedule, SCHEDULES)
    lookup("train.optimizer", config.train.optimizer, OPTIMIZERS)
    fields = config.train
    if fields.batch % (devices * fields.accumulate):
        raise InputError(
            f"config.train.batch is {fields.batch}: it must be a multiple of "
            f"config.train.accumulate x devices, {fields.accumulate} x {devices}."
        )
    if fields.warmup >= fields.steps:
        raise InputError(
            f"config.train.warmup is {fields.warmup}: it must be below "
            f"config.train.steps, {fields.steps}."
        )
    if config.sde.name == "ve" and not config.sde.sigma_max > config.sde.sigma_min:
        raise InputError(
            f"config.sde.sigma_max is {config.sde.sigma_max}: it must be above "
            f"config.sde.sigma_min, {config.sde.sigma_min}."
        )
    if not config.sde.beta_max >= config.sde.beta_min:
        raise InputError(
            f"config.sde.beta_max is {config.sde.beta_max}, below config.sde.beta_min."
        )


def build_model(config: ConfigDict) -> ScoreModel:
    """Returns the network with its forward process and the scale of its data."""
    fields, network = config.network, build_network(config)
    kind = _known("network.preconditioning", fields.preconditioning, PRECONDITIONINGS)
    if kind == "mean":
        _check_residual_network(config, network)
        widths = tuple(fields.residual_widths)
        network = ResidualMMCSN(network, widths, fields.encoder_blocks)
    return ScoreModel(network, build_sde(config), config.data.image_std, kind)


def build_network(config: ConfigDict) -> mm_csn.MMCSN:
    """Returns the mm-CSN's network; with the preconditioning `mean`, the part that predicts it."""
    fields = config.network
    net = mm_csn.MMCSN(
        modalities=len(config.data.modalities),
        widths=tuple(fields.widths),
        blocks=tuple(fields.blocks),
        patch=fields.patch,
        attention_max_grid=fields.attention_max_grid,
        pixel_width=fields.pixel_width,
        pixel_layers=fields.pixel_layers,
        context_channels=fields.context_channels,
        conditioning=_known("network.conditioning", fields.conditioning, mm_csn.CONDITIONINGS),
        predict_variance=fields.predict_variance,
        neighbour_slices=fields.neighbour_slices,
        remat=tuple(config.train.remat),
        dtype=lookup("network.dtype", fields.dtype, DTYPES),
    )
    _check_network(config, net)
    return net


def build_sde(config: ConfigDict) -> sde.SDE:
    """The forward process that config.sde names, with its own fields."""
    return lookup("sde.name", config.sde.name, SDES)(config.sde)


def build_segmenter(config: ConfigDict) -> Segmenter:
    """The segmentation network, of the same blocks as the mm-CSN of this config."""
    net = build_network(config)
    return Segmenter(
        classes=len(CLASSES),
        scale=config.data.image_std,
        widths=net.widths,
        blocks=net.blocks,
        attention_max_grid=0,
        remat=(False,) * len(net.widths),
        patch=net.patch,
        pixel_width=net.pixel_width,
        context=net.context_channels,
        dtype=net.dtype,
    )


def build_downstream(config: ConfigDict) -> int:
    """Returns the training steps of the segmentation network; 0: there is none."""
    return config.study.segmenter_steps


def segmenter_config(config: ConfigDict) -> ConfigDict:
    """The config of the segmentation network's training: config.study.segmenter_steps steps.

    Raises:
        InputError: the config asks for none.
    """
    steps = config.study.segmenter_steps
    if not steps:
        raise InputError(
            "config.study.segmenter_steps is 0: set it to the steps that the segmentation "
            "network is to train for."
        )
    return with_steps(config, steps)


def with_steps(config: ConfigDict, steps: int) -> ConfigDict:
    """The config with another number of training steps, and a warm-up of at most half of them."""
    config = config.copy_and_resolve_references()
    config.train.steps = steps
    config.train.warmup = min(config.train.warmup, steps // 2)
    return config


def build_objective(config: ConfigDict) -> loss.Objective:
    """Returns the missing patterns and times drawn in training, and the loss weighting."""
    modalities = len(config.data.modalities)
    table = missingness.missing_patterns(modalities, proper=config.missingness.keep_one_seen)
    sizes = build_sizes(config)
    largest = int(table.sum(axis=1).max())
    if sizes and (len(sizes) != largest or not min(sizes) >= 0 or sum(sizes) <= 0):
        raise InputError(
            f"config.missingness.size_probabilities is {config.missingness.size_probabilities!r}; "
            f"wanted uniform, or the probabilities of 1 to {largest} missing modalities, "
            "like 0.7,0.3."
        )
    fields = config.loss
    proposal = loss.NoiseProposal(*(fields[name] for name in loss.NoiseProposal._fields))
    if config.network.preconditioning == "mean":
        # Every example trains the mean, beside its noise levels and not in their place.
        proposal = proposal._replace(mean_fraction=0.0)
    weighting = lookup("loss.weighting", fields.weighting, WEIGHTINGS)(fields)
    weights = missingness.pattern_probabilities(table, sizes)
    summed = fields.weighting == "paper"
    patterns, levels = config.missingness.patterns_per_image, fields.levels_per_question
    _check_objective(config)
    return loss.Objective(table, weights, proposal, weighting, summed, patterns, levels)


def _check_objective(config: ConfigDict) -> None:
    fields = config.loss
    if 0 < fields.sigma_max_factor < 1:
        raise InputError(
            f"config.loss.sigma_max_factor is {fields.sigma_max_factor:g}: noise levels up to less "
            "than the posterior's scale do not hide what is to be drawn; wanted 1 or more (6 by "
            "default), or 0."
        )
    if config.network.preconditioning == "mean":
        if fields.mean_fraction != 1:
            raise InputError(
                f"config.loss.mean_fraction is {fields.mean_fraction:g}: with "
                "config.network.preconditioning 'mean' every example trains the mean beside its "
                "noise levels; set it to 1."
            )
        return
    for key, value, wanted in (
        ("weighting", fields.weighting == "bands", "one of the others"),
        ("levels_per_question", fields.levels_per_question != 1, "1"),
        ("sigma_max_factor", fields.sigma_max_factor != 0, "0"),
    ):
        if value:
            raise InputError(
                f"config.loss.{key} is {fields[key]!r}, which needs "
                f"config.network.preconditioning 'mean'; with 'edm' set it to {wanted}."
            )


def build_update_rule(config: ConfigDict) -> UpdateRule:
    """The optimizer with warm-up and clipping, the EMA, and microbatches.

    The gradients of the variance head and of the part that sees noise are clipped by norms of
    their own: with or without them, the parameters of the mean move alike. The head's rate stays
    up to the end: the mean's error falls most while the others' rate falls, and it has to follow.
    """
    fields = config.train
    clip = optax.clip_by_global_norm(fields.clip)
    optimizer = lookup("train.optimizer", fields.optimizer, OPTIMIZERS)
    optimizer = optimizer(build_schedule(config)(fields.learning_rate))
    if config.network.predict_variance:
        head = make_adam(SCHEDULES["constant"](fields.learning_rate, fields))
        clip = optax.partition({True: clip, False: clip}, mm_csn.in_variance_head)
        optimizer = optax.partition({True: head, False: optimizer}, mm_csn.in_variance_head)
    if config.network.preconditioning == "mean":
        own = optax.clip_by_global_norm(fields.clip)
        clip = optax.partition({True: own, False: clip}, in_noisy_part)
    return UpdateRule(optax.chain(clip, optimizer), fields.ema_decay, fields.accumulate)


def build_schedule(config: ConfigDict) -> Callable[[float], optax.Schedule]:
    """schedule(rate): that of config.train, whose highest learning rate is `rate`."""
    schedule = lookup("train.schedule", config.train.schedule, SCHEDULES)
    return lambda rate: schedule(rate, config.train)


def build_train_options(config: ConfigDict) -> TrainOptions:
    """Returns the length of training, its batches, and when it logs and saves."""
    fields = config.train
    return TrainOptions(
        config.seed,
        fields.batch,
        config.data.flip,
        fields.steps,
        fields.save_every,
        fields.keep_checkpoints,
        fields.log_every,
        fields.max_nonfinite,
    )


def build_evaluation_options(config: ConfigDict) -> EvaluationOptions:
    """Returns the options of config.evaluate."""
    _known("evaluate.time_grid", config.evaluate.time_grid, tuple(LEVEL_GRIDS))
    _check_block_sizes(config)
    return EvaluationOptions(config.seed, **config.evaluate.to_dict())


def build_space(config: ConfigDict) -> ImageSpace:
    """Returns the modalities, and how a slice is cropped and resampled for the network."""
    fields = config.data
    shown = (float(fields.spacing), bool(fields.mask), config.network.neighbour_slices)
    view = SliceView(tuple(fields.grid), *shown)
    return ImageSpace(tuple(fields.modalities), view)


def config_to_json(config: ConfigDict) -> dict:
    """Returns the config as plain JSON values."""
    return json.loads(config.to_json_best_effort())


def config_from_json(fields: dict) -> ConfigDict:
    """Returns the inverse of `config_to_json`: a locked config; lists become tuples."""
    return ConfigDict(lists_to_tuples(fields)).lock()


def _check_residual_network(config: ConfigDict, net: mm_csn.MMCSN) -> None:
    fields = config.network
    if net.patch & (net.patch - 1):
        raise InputError(
            f"config.network.patch is {net.patch}: with config.network.preconditioning 'mean' it "
            "must be a power of 2."
        )
    if len(fields.residual_widths) != len(net.widths):
        raise InputError(
            f"config.network.residual_widths has {len(fields.residual_widths)} levels and "
            f"config.network.widths {len(net.widths)}: wanted one value a level."
        )
    if any(width % 16 for width in fields.residual_widths) or fields.residual_widths[-1] % 32:
        raise InputError(
            f"config.network.residual_widths is {tuple(fields.residual_widths)}: wanted multiples "
            "of 16, and of 32 at the last level."
        )


def _check_network(config: ConfigDict, net: mm_csn.MMCSN) -> None:
    multiple = net.multiple()
    for side in config.data.grid:
        if side % multiple:
            raise InputError(
                f"config.data.grid is {tuple(config.data.grid)}; with "
                f"config.network.patch {net.patch} and {len(net.widths)} levels its "
                f"sides must be multiples of {multiple}."
            )
    for key, own in (("network.blocks", net.blocks), ("train.remat", net.remat)):
        if len(own) != len(net.widths):
            raise InputError(
                f"config.{key} has {len(own)} levels and config.network.widths "
                f"{len(net.widths)}: wanted one value a level."
            )
    if any(width % 32 for width in net.widths):
        raise InputError(f"config.network.widths is {net.widths}: wanted multiples of 32.")


def _check_block_sizes(config: ConfigDict) -> None:
    sizes, grid = tuple(config.evaluate.block_sizes), tuple(config.data.grid)
    if max(sizes) > min(grid):
        raise InputError(
            f"config.evaluate.block_sizes is {sizes}: a block of {max(sizes)} pixels does not fit "
            f"config.data.grid, {grid}; wanted sizes of at most {min(grid)}."
        )
    if len(set(sizes)) < len(sizes):
        raise InputError(
            f"config.evaluate.block_sizes is {sizes}: a size is named twice; name each once."
        )


def build_sizes(config: ConfigDict) -> tuple[float, ...]:
    """The numbers of config.missingness.size_probabilities; () for uniform."""
    text = config.missingness.size_probabilities
    if text == "uniform":
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return (float("nan"),)


def _known(key: str, name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        hint = did_you_mean(name, names)
        raise InputError(f"config.{key} is {name!r}{hint}; wanted one of {', '.join(names)}.")
    return name


def lookup(key: str, name: str, table: dict):
    """Returns `table[name]`. Raises InputError, naming the key, if `name` is not in it."""
    return table[_known(key, name, tuple(table))]


SDES: dict[str, Callable] = {
    "vp": lambda fields: sde.VP(fields.beta_min, fields.beta_max),
    "sub_vp": lambda fields: sde.SubVP(fields.beta_min, fields.beta_max),
    "ve": lambda fields: sde.VE(fields.sigma_min, fields.sigma_max),
    "cosine": lambda fields: sde.Cosine(fields.noise_level_max),
}

WEIGHTINGS: dict[str, Callable] = {
    "paper": lambda fields: loss.weigh_paper,
    "std2": lambda fields: loss.weigh_std2,
    "likelihood": lambda fields: loss.weigh_likelihood,
    "edm": lambda fields: loss.weigh_edm,
    "conditional": lambda fields: loss.make_weigh_conditional(fields.posterior_std),
    "min_snr": lambda fields: loss.weigh_min_snr,
    "bands": lambda fields: None,
}

SCHEDULES: dict[str, Callable] = {
    "constant": lambda rate, fields: optax.warmup_constant_schedule(0.0, rate, fields.warmup),
    "cosine": lambda rate, fields: optax.warmup_cosine_decay_schedule(
        0.0, rate, fields.warmup, fields.steps
    ),
}


DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
