"""A trained network: loaded from a workdir, predicting means, sampling draws.

Evaluation, completion and the Python interface share it. The workdir has all it needs: the
config is in the checkpoint, the correlation of neighbouring slices beside it.
"""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.config.schema import check_fields
from ummcsgm.data.crop import ImageSpace
from ummcsgm.diffusion.correlated_noise import ar1_noise, check_rho
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import (
    Encoding,
    ScoreModel,
    encode,
    init_params,
    make_posterior,
)
from ummcsgm.diffusion.samplers import (
    SAMPLERS,
    address_keys,
    count_evaluations,
    find_sampler,
    make_draw,
    sampler_times,
)
from ummcsgm.diffusion.time_grids import noise_level_at
from ummcsgm.distributed import devices
from ummcsgm.training import checkpoint
from ummcsgm.types import (
    Array,
    Config,
    Estimate,
    Images,
    InputError,
    Missing,
    Params,
    Stacks,
    Times,
)
from ummcsgm.utils.atomic_io import read_json
from ummcsgm.utils.provenance import code_digest
from ummcsgm.utils.suggest import did_you_mean

MODES = ("mean", *SAMPLERS)
CALIBRATION = "calibration.json"  # in the workdir
DRAW_KEYS = ("sampler_steps", "time_grid", "sigma_min", "warm_start_factor")  # decide the draws


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """The averaged parameters of a workdir's newest checkpoint, and their training data."""

    config: Config
    space: ImageSpace
    model: ScoreModel
    params: Params
    step: int
    scales: dict[str, float]  # each modality's median intensity scale over the subjects
    ranges: dict[str, tuple[float, float]]  # of the scaled values but 0.1 % at either end
    spacing: tuple[float, float]  # median (y, x) size of a voxel in mm
    digest: str  # of the parameters
    data: str  # digest of the slices they were trained on
    posterior_scales: dict[str, float]  # of `training.posterior_scale`, by missing pattern

    def posterior_scale(self, missing: Array) -> float:
        """That of a missing pattern [M]; of one that was not measured, the largest of all."""
        name = "+".join(np.array(self.space.modalities)[np.asarray(missing)])
        return self.posterior_scales.get(name, max(self.posterior_scales.values()))


def load_trained_model(workdir: pathlib.Path) -> TrainedModel:
    """Returns the network of a workdir. Raises InputError if there is no checkpoint."""
    metadata = checkpoint.restore_metadata(workdir)
    config = build.config_from_json(metadata["config"])
    check_fields(config.to_dict())
    model, space = build.build_model(config), build.build_space(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key, space.grid), jax.random.key(0))
    params = checkpoint.restore_ema(workdir, shapes)
    return TrainedModel(
        config=config,
        space=space,
        model=model,
        params=devices.replicate(params),  # once, for all predictors and samplers
        step=checkpoint.latest_step(workdir),
        scales=metadata["scales"],
        ranges={name: tuple(bounds) for name, bounds in metadata["ranges"].items()},
        spacing=tuple(metadata["spacing"]),
        digest=checkpoint.params_digest(params),
        data=metadata["data"],
        posterior_scales=metadata["posterior_scales"],
    )


def make_mean_predictor(
    trained: TrainedModel, options: EvaluationOptions
) -> Callable[[Stacks, Missing], Estimate]:
    """Returns mean(images, missing): the posterior mean of any number of slices.

    Images are [R, H, W, M (2 n + 1)] (what lies on missing modalities is not read),
    missing [R, M]. The `Estimate` has the mean [R, H, W, M] with the seen modalities bit
    for bit, and the variance if the network predicts one: one evaluation a slice.
    """

    def predict(params: Params, images: Stacks, missing: Missing) -> Estimate:
        return make_posterior(trained.model, params, mask_inputs(images, missing)).moments()

    return in_microbatches(predict, trained.params, options.microbatch)


def make_sampler(
    trained: TrainedModel, sampler: str, options: EvaluationOptions, *, rho: float = 0.0
) -> Callable[..., Iterator[Images]]:
    """Returns sample(images, missing, addresses, estimate): an iterator of K draws.

    Images and missing are those of `make_mean_predictor`, addresses [K, R, 3] those of
    each draw's slices, see `slice_addresses`, and `estimate` is the mean predictor's of
    the same slices, which all draws share; a sampler that starts from the prior does not
    read it. A draw is [R, H, W, M], the seen modalities bit for bit.

    The noise of a draw correlates by rho^|dz| along its slices, see `ar1_noise`. Each slice alone
    has the same law at any rho, and is the same image whichever of its neighbours are computed
    beside it. Draws and slices are one stream through one compiled program: ceil(K R / microbatch)
    calls, and the memory of one draw and two microbatches, whatever K is.

    Raises:
        InputError: there is no such sampler, its time grid is not valid, or rho is
            not in [0, 1].
        ValueError: (sample) the sampler starts from an estimate, and none was given.
    """
    check_rho(rho)
    if sampler not in SAMPLERS:
        hint = did_you_mean(sampler, MODES)
        raise InputError(f"--sampler is {sampler!r}{hint}; wanted one of {', '.join(MODES)}.")
    model, from_mean = trained.model, find_sampler(sampler).from_mean
    sampler_time_grid(trained, sampler, options, np.zeros(model.network.modalities, bool))

    def fill(params: Params, images: Stacks, missing: Missing, shared: tuple, addresses, times):
        estimate, encoding = shared
        condition = mask_inputs(images, missing)
        posterior = make_posterior(model, params, condition, encoding)

        def denoise(x: Images, t: Times) -> Images:
            return posterior.estimate(x, t).mean

        subject, z, number = addresses.T
        keys = address_keys(options.seed, jnp.stack([subject, number], axis=1))
        noise = functools.partial(ar1_noise, slices=z, rho=rho)
        mean, variance = (condition.seen, None) if estimate is None else estimate
        variance = 0.0 if variance is None else variance
        draw = make_draw(sampler, model.sde, times.T)
        return condition.fill(draw(keys, denoise, missing, mean, variance, noise=noise))

    stream = make_stream(fill, trained.params, options.microbatch)
    encode_rows = _make_encoder(trained, options)

    def sample(
        images: Stacks, missing: Missing, addresses: Array, estimate: Estimate | None = None
    ) -> Iterator[Images]:
        if from_mean and estimate is None:
            raise ValueError(f"the sampler {sampler} starts from an estimate, and none was given.")
        count, missing = len(images), np.asarray(missing)
        patterns, pattern_of_row = np.unique(missing, axis=0, return_inverse=True)
        grids = [sampler_time_grid(trained, sampler, options, pattern) for pattern in patterns]
        times = np.stack(grids)[pattern_of_row.reshape(-1)]
        shared = (estimate if from_mean else None, encode_rows(images, missing))
        rows = (images, missing, shared, times)
        addresses = np.asarray(addresses, np.uint32).reshape(-1, 3)

        def take(index: Array) -> tuple:
            *arrays, times = jax.tree.map(lambda array: array[index % count], rows)
            return *arrays, addresses[index], times

        return regroup(stream(len(addresses), take), count)

    return sample


def _make_encoder(
    trained: TrainedModel, options: EvaluationOptions
) -> Callable[[Stacks, Missing], Encoding | None]:
    """encode(images, missing): what all draws and steps of each row share; None for `edm`, which
    computes it again in each call of a program."""
    if trained.model.preconditioning == "edm":
        return lambda images, missing: None

    def encode_rows(params: Params, images: Stacks, missing: Missing) -> Encoding:
        return encode(trained.model, params, mask_inputs(images, missing))

    return in_microbatches(encode_rows, trained.params, options.microbatch)


def in_microbatches(function: Callable, params: Params, microbatch: int) -> Callable:
    """Returns apply(*arrays): `function(params, *arrays)` of arrays of any one length, as
    numpy; through one compiled program, see `make_stream`."""
    stream = make_stream(function, params, microbatch)

    def apply(*arrays: Array) -> Any:
        arrays = [np.asarray(array) for array in arrays]
        outputs = stream(len(arrays[0]), lambda index: tuple(array[index] for array in arrays))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *outputs)

    return apply


def make_stream(function: Callable, params: Params, microbatch: int) -> Callable:
    """Returns stream(total, take), which is `run_in_microbatches` of `function(params, ...)`:
    compiled once, for `microbatch` examples that the local devices share."""
    run = functools.partial(devices.shard_over_rows(function), devices.replicate(params))
    return functools.partial(run_in_microbatches, run, devices.round_up_to_devices(microbatch))


def run_in_microbatches(
    run: Callable, size: int, total: int, take: Callable[[Array], tuple]
) -> Iterator[Any]:
    """Yields `run(*take(index))` of the examples 0, 1, ... total - 1, `size` at a time.

    `take(index)` has the arrays (or trees of arrays) of some examples. Outputs are numpy.
    Copies of the last example pad the last microbatch, so that `run` is compiled once,
    and do not come out. A microbatch is dispatched before the one before it is read: the
    device does not wait for the host, and no more than two are in memory.
    """
    output, count = None, 0
    for start in range(0, total, size):
        following = run(*take(np.minimum(np.arange(start, start + size), total - 1)))
        if count:
            yield _to_host(output, count)
        output, count = following, min(size, total - start)
    if count:
        yield _to_host(output, count)


def _to_host(output: Any, count: int) -> Any:
    return jax.tree.map(lambda array: np.asarray(array)[:count], output)


def regroup(batches: Iterable[Any], size: int) -> Iterator[Any]:
    """Yields trees of arrays of any length as trees of `size` examples each.

    What is left at the end, fewer than `size` examples, does not come out.
    """
    waiting, count = [], 0
    for batch in batches:
        waiting.append(batch)
        count += len(jax.tree.leaves(batch)[0])
        while count >= size:
            whole = jax.tree.map(lambda *arrays: np.concatenate(arrays), *waiting)
            yield jax.tree.map(lambda array: array[:size], whole)
            # A copy: the rest must not keep in memory what was handed out.
            waiting = [jax.tree.map(lambda array: array[size:].copy(), whole)]
            count -= size


def sampler_facts(
    sampler: str, trained: TrainedModel, options: EvaluationOptions, rho: float, missing: Array
) -> dict:
    """Returns how a sampler draws the `missing` [M]: its steps, network evaluations and noise
    levels, and the correlation of its noise along z; for files and tables."""
    if sampler == "mean":
        return {"steps": 1, "evaluations": 1}
    steps = getattr(options, steps_key(sampler))
    lowest, start = _noise_levels(trained, options, missing)
    facts = {"steps": steps, "evaluations": count_evaluations(sampler, steps), "rho": rho}
    if not find_sampler(sampler).uniform_grid:
        facts |= {"time_grid": options.time_grid, "sigma_min": lowest}
    if find_sampler(sampler).from_mean:
        facts["warm_start_sigma"] = start
    return facts


def sampler_time_grid(
    trained: TrainedModel, sampler: str, options: EvaluationOptions, missing: Array
) -> Array:
    """Returns the decreasing times of a sampler's steps for the `missing` [M], by
    config.evaluate."""
    lowest, start = _noise_levels(trained, options, missing)
    steps = getattr(options, steps_key(sampler))
    levels = {"sigma_min": lowest, "warm_start_sigma": start}
    return sampler_times(sampler, trained.model.sde, steps, **levels, grid=options.time_grid)


def _noise_levels(
    trained: TrainedModel, options: EvaluationOptions, missing: Array
) -> tuple[float, float]:
    """(the lowest noise level, the one at which `warm` starts): so many posterior scales, within
    the SDE's own range."""
    sde = trained.model.sde
    lowest = max(options.sigma_min, 1.05 * noise_level_at(sde, 0))
    start = options.warm_start_factor * trained.posterior_scale(missing)
    return lowest, min(max(start, 2 * lowest), noise_level_at(sde, 1))


def steps_key(sampler: str) -> str:
    """Returns the option with a sampler's number of steps: on the uniform grid many are
    needed, as of Algorithm 1."""
    return "algorithm1_steps" if find_sampler(sampler).uniform_grid else "sampler_steps"


def read_rho(workdir: pathlib.Path, trained: TrainedModel, sampler: str) -> float:
    """Returns the rho with which the noise of draws correlates along z, fitted by `evaluate` with
    these parameters and this code; 0 without it.

    It is of the data and the network's mean, and holds for every sampler. Where it is of another
    checkpoint or code, a line is printed that says so.

    Raises:
        InputError: the file is damaged.
    """
    path = workdir / CALIBRATION
    if not path.is_file():
        return 0.0
    try:
        saved = read_json(path)
        digests = saved["parameters_sha256"], saved.get("code_sha256")
        if digests == (trained.digest, code_digest()):
            rho = float(saved["rho"])
            check_rho(rho)
            return rho
    except (InputError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{path} is damaged: --mode evaluate makes it again.") from None
    if sampler != "mean":
        other = "checkpoint" if digests[0] != trained.digest else "version of the code"
        print(
            f"neighbouring slices are drawn independently: {path} is of another {other}; --mode "
            "evaluate fits their correlation.",
            flush=True,
        )
    return 0.0


def slice_addresses(name: str, z: Array, *, draw: int) -> Array:
    """Returns the addresses [S, 3] of a draw's slices: (hash of the name, slice, draw)."""
    subject = zlib.crc32(name.encode())
    return np.array([[subject, index, draw] for index in z], np.uint32)
