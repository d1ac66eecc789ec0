"""How long a volume takes to sample, and what `lax.scan` adds to the network's time.

    python -m ummcsgm.benchmarks.sampling [--config FILE]
        [--parts overhead,volume,growth] [--grid H W] [--shape X Y Z] [--batch N]
        [--draws K] [--repeats R] [--timed N] [--timed-algorithm1 N]
        [--steps-algorithm1 N] [--json FILE]

overhead  Algorithm 1 (1000 steps, one compiled scan) against 1000 calls of the jitted
          network forward on the same batch, in turn, on the config's own grid: each
          ratio and their median. Of a network whose score is about its own mean, only the
          part that sees noise is called 1000 times.
volume    Seconds a phantom subject of 240 x 240 x 155, on a grid that holds a brain,
          for the mean, one draw of `warm`, the mean and K such draws, and one draw of
          Algorithm 1, with the code of `complete` but without its files. A volume is a
          number of microbatches, all the same program on the same shapes: only some are
          timed, and multiplied; --timed 0 and --timed-algorithm1 0 time all of them.
          `timed` in the report says how many of how many; all draws of a slice share what
          depends on the seen scans alone, so all K are timed. --steps-algorithm1 N times N
          and 2 N steps of Algorithm 1 and extends the line through both to 1000.
          `median_ratio` is (the mean and K draws of `warm`) / (one draw of Algorithm 1).
growth    The slope of log seconds over log batch, draws and slices, by least squares.

Parameters are random: time does not depend on them. All is compiled before the clock starts.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.benchmarks.networks import (
    make_untrained_model,
    random_params,
    read_config,
    write_subject,
)
from ummcsgm.benchmarks.report import make_parser, report_in_folder, summarise_ratios, system_load
from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.diffusion.missingness import mask_inputs, missing_patterns
from ummcsgm.diffusion.preconditioning import band_levels, encode, make_denoise
from ummcsgm.diffusion.samplers import address_keys, algorithm1
from ummcsgm.distributed import devices
from ummcsgm.inference.inputs import SubjectInputs, subject_inputs
from ummcsgm.inference.predictor import TrainedModel, make_mean_predictor, make_sampler
from ummcsgm.inference.subject_posterior import SubjectPosterior, predict_mean, sample_draws
from ummcsgm.types import Array, Config, Estimate
from ummcsgm.utils.haar import haar

STEPS = 1000
PARTS = ("overhead", "volume", "growth")
SIZES = (1, 2, 4, 8)  # of batches, of draws, and of slices in microbatches


def make_forward_and_draw(config: Config, batch: int) -> tuple[Callable, Callable]:
    """(forward(), draw()): one network evaluation, and Algorithm 1, both jitted."""
    model, space = build.build_model(config), build.build_space(config)
    modalities = len(space.modalities)
    images = jnp.ones((batch, *space.grid, model.network.channels()))
    patterns = jnp.asarray(missing_patterns(modalities, proper=True))
    missing = patterns[jnp.arange(batch) % modalities]
    level = jnp.zeros(batch)
    params = random_params(model, space.grid)
    condition = mask_inputs(images, missing)
    keys = address_keys(0, jnp.arange(batch)[:, None])

    @jax.jit
    def draw(params, images: Array) -> Array:
        denoise = make_denoise(model, params, mask_inputs(images, missing))
        like = images[..., :modalities]
        return algorithm1(keys, model.sde, denoise, like, STEPS)

    if model.preconditioning == "edm":
        forward = jax.jit(model.network.apply)
        inputs = (images, missing, level)
    else:
        forward = jax.jit(functools.partial(model.network.apply, method="denoise"))
        features = jax.jit(encode, static_argnums=0)(model, params, condition).features
        bands = haar(images[..., :modalities], band_levels(model.network))
        inputs = (bands, missing, level, features)
    return (lambda: forward(params, *inputs), lambda: draw(params, images))


def seconds(work: Callable, calls: int = 1) -> float:
    """How long `calls` calls take, until the last result is computed."""
    start = time.perf_counter()
    for _ in range(calls):
        result = work()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def measure_overhead(flags: argparse.Namespace, batch: int) -> dict:
    """Algorithm 1 beside as many network evaluations as it has steps."""
    forward, draw = make_forward_and_draw(read_config(flags.config), batch)
    seconds(forward, 2), seconds(draw)
    pairs = [(seconds(forward, STEPS), seconds(draw)) for _ in range(flags.repeats)]
    ratios = [drawn / forwards for forwards, drawn in pairs]
    return {
        "forwards_s": [round(pair[0], 2) for pair in pairs],
        "algorithm1_s": [round(pair[1], 2) for pair in pairs],
        **summarise_ratios(ratios, 3),
    }


def first_slices(inputs: SubjectInputs, slices: int) -> SubjectInputs:
    """`inputs` with its first `slices` alone."""
    return inputs._replace(z=inputs.z[:slices], images=inputs.images[:slices])


def make_posterior(
    trained: TrainedModel, sampler: str, scoring: EvaluationOptions
) -> SubjectPosterior:
    """The mean predictor and the sampler, as in `complete`."""
    mean = make_mean_predictor(trained, scoring)
    draws = make_sampler(trained, sampler, scoring)
    return SubjectPosterior(mean, draws)


def draw_all(
    posterior: SubjectPosterior, inputs: SubjectInputs, estimate: Estimate, draws: int
) -> None:
    """Draws in turn, as `complete` does, and discards the draws."""
    for _ in sample_draws(posterior, inputs, estimate, draws):
        pass


def make_timer(
    posterior: SubjectPosterior, inputs: SubjectInputs, size: int, draws: int, timed: int
) -> tuple[Callable[[], float], str]:
    """(seconds() of `draws` draws, or of the mean for 0 draws; "n of N" microbatches).

    All is compiled before it returns. `timed` microbatches of slices are timed, with all their
    draws; 0: all.
    """
    number = max(draws, 1)
    total = -(-number * len(inputs.z) // size)
    whole = not 0 < timed < -(-len(inputs.z) // size)
    slices = len(inputs.z) if whole else timed * size
    count = total if whole else number * timed
    part = first_slices(inputs, slices)
    estimate = predict_mean(posterior, part)

    def work(part: SubjectInputs, number: int) -> None:
        if draws:
            first = estimate.map(lambda array: array[: len(part.z)])
            draw_all(posterior, part, first, number)
        else:
            predict_mean(posterior, part)

    work(first_slices(part, 1), 1)
    scale = total / count
    return lambda: scale * seconds(lambda: work(part, number)), f"{count} of {total}"


def measure_volume(
    trained: TrainedModel,
    scoring: EvaluationOptions,
    inputs: SubjectInputs,
    flags: argparse.Namespace,
) -> dict:
    """Seconds a volume of every way to sample it, in turn."""
    warm = make_posterior(trained, "warm", scoring)
    size = scoring.microbatch
    steps, numbers = scoring.algorithm1_steps, algorithm1_numbers(scoring, flags)
    ways = {
        "mean": (warm, size, 0, flags.timed),
        "warm_draw": (warm, size, 1, flags.timed),
        "warm_draws": (warm, size, flags.draws, flags.timed),
    }
    for number in numbers:
        slow = replace(scoring, algorithm1_steps=number)
        slow = make_posterior(trained, "euler_maruyama", slow)
        ways[f"algorithm1_{number}"] = (slow, size, 1, flags.timed_algorithm1)
    made = {name: make_timer(posterior, inputs, *how) for name, (posterior, *how) in ways.items()}
    turns = [{name: timer() for name, (timer, _) in made.items()} for _ in range(flags.repeats)]
    for turn in turns:
        turn["warm"] = turn["mean"] + turn.pop("warm_draw")
        turn["mean_and_draws"] = turn["mean"] + turn.pop("warm_draws")
        points = [turn.pop(f"algorithm1_{number}") for number in numbers]
        turn["algorithm1"] = extend(numbers, points, steps)
    ratios = [turn["mean_and_draws"] / turn["algorithm1"] for turn in turns]
    return {
        "slices": len(inputs.z),
        "computed_share": round(_share(trained, inputs, flags.shape), 3),
        "steps": {"warm": scoring.sampler_steps, "algorithm1": steps},
        "algorithm1_steps_timed": numbers,
        "draws": flags.draws,
        **{f"{name}_s": [round(turn[name], 3) for turn in turns] for name in turns[0]},
        "timed": {name: how for name, (_, how) in made.items()},
        **summarise_ratios(ratios, 4),
    }


def algorithm1_numbers(scoring: EvaluationOptions, flags: argparse.Namespace) -> list[int]:
    """The numbers of steps of Algorithm 1 that are timed: all of them, or N and 2 N."""
    few = flags.steps_algorithm1
    return [few, 2 * few] if 0 < 2 * few < scoring.algorithm1_steps else [scoring.algorithm1_steps]


def extend(numbers: list[int], times: list[float], steps: int) -> float:
    """The time of `steps` steps by the line through the times of two numbers of them; of one
    number, its time."""
    if len(numbers) == 1:
        return times[0]
    slope = (times[1] - times[0]) / (numbers[1] - numbers[0])
    return times[0] + slope * (steps - numbers[0])


def _share(trained: TrainedModel, inputs: SubjectInputs, shape: tuple[int, ...]) -> float:
    """The share of the volume's voxels that the network computes."""
    return len(inputs.z) * np.prod(trained.space.grid) / np.prod(shape)


def exponent(sizes: list[int], times: list[float]) -> float:
    """k of time ~ size^k: the slope of a line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def measure_growth(
    trained: TrainedModel, scoring: EvaluationOptions, inputs: SubjectInputs, repeats: int
) -> dict:
    """How seconds grow with the batch, with draws of one step, and with slices."""
    size = scoring.microbatch
    works: dict[tuple[str, int], Callable[[], float]] = {}
    single_step = make_posterior(trained, "warm", replace(scoring, sampler_steps=1))
    for n in SIZES:
        batched = make_posterior(trained, "warm", replace(scoring, microbatch=n))
        works["batch", n] = make_timer(batched, first_slices(inputs, n), n, 0, 0)[0]
        works["draws", n] = make_timer(single_step, first_slices(inputs, size), size, n, 0)[0]
        works["slices", n] = make_timer(single_step, first_slices(inputs, n * size), size, 0, 0)[0]
    turns = [{key: work() for key, work in works.items()} for _ in range(repeats)]
    report: dict[str, dict] = {}
    for kind in ("batch", "draws", "slices"):
        least = [min(turn[kind, n] for turn in turns) for n in SIZES]
        sizes = [n * size for n in SIZES] if kind == "slices" else [*SIZES]
        report[kind] = {
            "sizes": sizes,
            "seconds": [round(time, 4) for time in least],
            "exponent": round(exponent(sizes, least), 3),
        }
    return report


def measure(folder: Path, flags: argparse.Namespace) -> dict:
    """The report; fills `folder`."""
    config = read_config(flags.config, flags.grid)
    scoring = build.build_evaluation_options(config)
    scoring = replace(scoring, algorithm1_steps=STEPS, microbatch=flags.batch)
    parts = flags.parts.split(",")
    device = jax.devices()[0].device_kind
    report = {"device": device, "devices": jax.local_device_count()}
    report |= {"batch": flags.batch, "grid": list(flags.grid)}
    if "overhead" in parts:
        report["overhead"] = measure_overhead(flags, flags.batch)
    if {"volume", "growth"} & set(parts):
        trained = make_untrained_model(config)
        names, view = trained.space.modalities, trained.space.view
        subject = write_subject(folder, names, tuple(flags.shape))
        prepared = prepare_subject(subject, names[1:], view)  # the first is missing
        inputs = subject_inputs(subject.name, prepared, names)
        if "volume" in parts:
            report["volume"] = measure_volume(trained, scoring, inputs, flags)
        if "growth" in parts:
            report["growth"] = measure_growth(trained, scoring, inputs, flags.repeats)
    return report | {"load": system_load()}


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them")
    parser.add_argument("--grid", type=int, nargs=2, default=(192, 160))
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--batch", type=int, default=8, help="slices a microbatch")
    parser.add_argument("--draws", type=int, default=8, help="of warm, beside the mean")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--timed", type=int, default=2, help="microbatches; 0: all")
    parser.add_argument("--timed-algorithm1", type=int, default=1, help="0: all")
    explanation = "time N and 2 N steps of Algorithm 1 and extend the line; 0: all"
    parser.add_argument("--steps-algorithm1", type=int, default=0, metavar="N", help=explanation)
    flags = parser.parse_args()
    if set(flags.parts.split(",")) - set(PARTS):
        parser.error(f"--parts is {flags.parts}; wanted some of {', '.join(PARTS)}")
    devices.use_cpu_cores(None)  # as complete does
    report_in_folder(parser, flags, measure)


if __name__ == "__main__":
    main()
