"""A trained network that answers questions: what evaluation and completion share.

Everything needed lies in the workdir: the config travels in the checkpoint.
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.config import build
from ummcsgm.config.schema import check_fields
from ummcsgm.diffusion.correlated_noise import ar1_noise, check_rho
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import (
    ScoreModel,
    make_denoise,
    make_estimate,
    posterior_moments,
)
from ummcsgm.diffusion.samplers import SAMPLERS as DRAWING
from ummcsgm.diffusion.samplers import (
    address_keys,
    count_evaluations,
    find_sampler,
    make_draw,
    sampler_times,
)
from ummcsgm.diffusion.sde import SDE
from ummcsgm.diffusion.time_grids import noise_level_at
from ummcsgm.distributed import devices
from ummcsgm.inference.microbatches import regroup_rows, run_in_microbatches
from ummcsgm.training import checkpoint
from ummcsgm.training.plans import EvaluationOptions, ImageSpace
from ummcsgm.types import Array, Config, Estimate, Images, InputError, Missing, Params, Stacks

SAMPLERS = ("mean", *DRAWING)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The averaged parameters of a workdir's newest checkpoint and what they are for.

    `scales` has each modality's median intensity scale over the training subjects,
    `ranges` where their scaled values lie, all but 0.1 % on either side,
    `spacing` the median size of their voxels in the plane, y and x in mm; `digest` is
    that of the parameters, `data` that of the slices they were trained on.
    """

    config: Config
    space: ImageSpace
    model: ScoreModel
    params: Params
    step: int
    scales: dict[str, float]
    ranges: dict[str, tuple[float, float]]
    spacing: tuple[float, float]
    digest: str
    data: str


def load_trained_model(workdir: pathlib.Path) -> TrainedModel:
    """The network of a workdir. Raises InputError if it holds no checkpoint."""
    about = checkpoint.restore_metadata(workdir)
    config = build.config_from_json(about["config"])
    check_fields(config.to_dict())
    model = build.build_model(config)
    space = build.build_space(config)
    params = checkpoint.restore_ema(workdir, abstract_params(model, space.grid))
    step = checkpoint.latest_step(workdir)
    return TrainedModel(
        config,
        space,
        model,
        devices.replicate(params),  # once, for all that will answer with them
        step,
        about["scales"],
        {name: tuple(own) for name, own in about["ranges"].items()},
        tuple(about["spacing"]),
        checkpoint.params_digest(params),
        about["data"],
    )


def abstract_params(model: ScoreModel, grid: tuple[int, int]) -> Params:
    """The shapes of the network's parameters, none of them computed."""
    modalities = model.network.modalities
    return jax.eval_shape(
        model.network.init,
        jax.random.key(0),
        jnp.zeros((1, *grid, model.network.channels())),
        jnp.zeros((1, modalities), bool),
        jnp.zeros(1),
    )


def make_answer(
    trained: TrainedModel, sampler: str, scoring: EvaluationOptions, *, rho: float = 0.0
) -> Callable:
    """answer(images, missing, addresses, estimate): the images, the missing filled.

    Rows of any number: [R, H, W, M] images with their neighbours (what lies on missing
    modalities is not read), [R, M] missing, and addresses [R, 3] of each row's draw,
    `slice_addresses`. The sampler `mean` draws nothing: its answer is an `Estimate`, of
    one evaluation. Of any other it is the images, drawn with the `estimate` that `mean`
    answered to the same questions, which all draws share. The seen modalities come back
    bit for bit.

    The noise of a draw correlates by rho^|dz| along its slices, see `ar1_noise`;
    each slice by itself is drawn from the same law at any rho, and is the same image
    whichever of its neighbours are computed beside it.

    Raises:
        InputError: there is no such sampler, its grid cannot be, or rho is no
            correlation from 0 to 1.
        ValueError: (answer) the sampler starts at an estimate, and none was given.
    """
    draws = make_draws(trained, sampler, scoring, rho=rho)

    def answer(
        images: Stacks, missing: Missing, addresses: Array, estimate: Estimate | None = None
    ) -> Images | Estimate:
        (only,) = draws(images, missing, np.asarray(addresses)[None], estimate)
        return only

    return answer


def make_draws(
    trained: TrainedModel, sampler: str, scoring: EvaluationOptions, *, rho: float = 0.0
) -> Callable:
    """draws(images, missing, addresses, estimate): an iterator of K answers.

    Each is what `make_answer`'s gives to the same rows at its own of the addresses
    [K, R, 3]. Draws x rows are one stream through one compiled program, whose rows the
    local devices share: ceil(K R / microbatch) calls of it, and the memory of one
    answer and two microbatches, whatever K is.
    """
    check_rho(rho)
    if sampler not in SAMPLERS:
        raise InputError(f"--sampler is {sampler!r}; wanted one of {', '.join(SAMPLERS)}.")
    fill = devices.shard_over_rows(
        _make_mean(trained) if sampler == "mean" else _make_fill(trained, sampler, scoring, rho)
    )
    params = devices.replicate(trained.params)
    size = devices.round_up_to_devices(scoring.microbatch)
    from_mean = sampler != "mean" and find_sampler(sampler).from_mean

    def draws(
        images: Stacks, missing: Missing, addresses: Array, estimate: Estimate | None = None
    ) -> Iterator[Images | Estimate]:
        if from_mean and estimate is None:
            raise ValueError(f"{sampler} starts at an estimate, and none was given.")
        count = len(images)
        shared = (images, np.asarray(missing), estimate if from_mean else None)
        own = np.asarray(addresses, np.uint32).reshape(-1, 3)

        def take(rows: Array) -> tuple:
            same = jax.tree.map(lambda array: array[rows % count], shared)
            return (*same, own[rows])

        parts = run_in_microbatches(functools.partial(fill, params), size, len(own), take)
        return regroup_rows(parts, count)

    return draws


def _make_mean(trained: TrainedModel) -> Callable:
    def fill(params: Params, images: Stacks, missing: Missing, *unused: Any):
        completion = mask_inputs(images, missing)
        estimate = make_estimate(trained.model, params, completion)
        return posterior_moments(estimate, completion)

    return fill


def _make_fill(
    trained: TrainedModel, sampler: str, scoring: EvaluationOptions, rho: float
) -> Callable:
    sde = trained.model.sde
    times = sampler_time_grid(sde, sampler, scoring)
    draw = make_draw(sampler, sde, times)

    def fill(params: Params, images: Stacks, missing: Missing, start, addresses):
        completion = mask_inputs(images, missing)
        denoise = make_denoise(trained.model, params, completion)
        subject, z, number = addresses.T
        keys = address_keys(scoring.seed, jnp.stack([subject, number], axis=1))
        noise = functools.partial(ar1_noise, slices=z, rho=rho)
        mean, variance = (completion.seen, None) if start is None else start
        told = (mean, 0.0 if variance is None else variance)
        return completion.fill(draw(keys, denoise, missing, *told, noise=noise))

    return fill


def sampler_facts(
    sampler: str, trained: TrainedModel, scoring: EvaluationOptions, rho: float
) -> dict:
    """How a sampler was run: its steps and their noise levels, how often it evaluated
    the network, and how its noise correlates along z, if it drew any."""
    if sampler == "mean":
        return {"steps": 1, "evaluations": 1}
    steps = len(sampler_time_grid(trained.model.sde, sampler, scoring)) - 1
    facts = {"steps": steps, "evaluations": count_evaluations(sampler, steps), "rho": rho}
    if find_sampler(sampler).grid != "uniform":
        facts["lowest"] = scoring.sigma_min
    if find_sampler(sampler).from_mean:
        facts["start"] = scoring.warm_start_sigma
    return facts


def sampler_time_grid(sde: SDE, sampler: str, scoring: EvaluationOptions) -> Array:
    """The grid of a sampler: of scoring.algorithm1_steps if it is a uniform one, as Algorithm 1's,
    which wants many, else of scoring.sampler_steps."""
    uniform = find_sampler(sampler).grid == "uniform"
    steps = scoring.algorithm1_steps if uniform else scoring.sampler_steps
    lowest = max(scoring.sigma_min, 1.05 * noise_level_at(sde, 0))
    start = min(scoring.warm_start_sigma, noise_level_at(sde, 1))
    return sampler_times(sampler, sde, steps, lowest=lowest, start=start)


def slice_addresses(name: str, z: Array, *, draw: int) -> Array:
    """[S, 3] addresses of draws: (subject by its name, slice, draw)."""
    subject = zlib.crc32(name.encode())
    return np.array([[subject, slice_z, draw] for slice_z in z], np.uint32)
