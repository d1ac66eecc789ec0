"""How fast a denoiser learns to read its noisy images, by what its score is about.

    python -m ummcsgm.benchmarks.preconditioning --output FOLDER [--config FILE]
        [--workdir RUN] [--seconds S] [--segments N] [--slices R] [--json FILE]

Two networks are trained on the same prepared slices, in turns, S seconds each: that of the config,
whose score is about its own mean, and the same config with the preconditioning `edm` and the
objective of `networks.EDM`. The learning rate is constant after the warm-up, so that each point is
what so many seconds reach, however long a run goes on. After each of N segments the averaged
parameters are evaluated, off the clock, on R validation slices:

    R_k(tau) = MSE of k x k block means of denoise(x, tau) / that of the network's mean

for each modality missing alone, with the same noise in both. A network that ignores its noisy
image has R = 1 at every tau; k = 8 is about lesions and contrast, k = 1 about texture. R is
relative to the network's OWN mean: a bad mean makes it small. So errors are in the table too.
Voxels of the background, where there is little error, count as all others do.

The reference is R of a denoiser that is told z^2 of each block of the truth and is linear in the
noisy block: sum z^2 tau^2 / (z^2 + tau^2) / sum z^2, where z is the sum over a block of
(truth - mean), divided by k. It is no bound: one that is not told z^2 does worse, one that reads
the blocks beside it, too, can do better.

FOLDER gets preconditioning.csv, .md and .png. The prepared slices are those of the workdir RUN; one
is made in FOLDER by default.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.benchmarks.networks import read_config, with_edm
from ummcsgm.benchmarks.report import make_parser, print_report, system_load
from ummcsgm.config import build, build_data
from ummcsgm.config.build_methods import MM_CSN, build_trainable
from ummcsgm.data.store import Store
from ummcsgm.diffusion.missingness import mask_inputs, per_modality
from ummcsgm.diffusion.preconditioning import Posterior, ScoreModel, make_posterior
from ummcsgm.diffusion.samplers import address_keys
from ummcsgm.diffusion.sde import SDE, draw_noise, per_example, perturb
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import run_in_microbatches
from ummcsgm.reporting.figures import write_learning_speed
from ummcsgm.training.train import training_batches
from ummcsgm.types import Array, Config, Images, InputError, Missing, Params, Times
from ummcsgm.utils.atomic_io import write_atomic

ARMS = ("edm", "mean")
BLOCKS = (1, 8)  # pixels a side
LEVELS = (0.1, 0.3, 1.0, 2.0, 4.0)  # noise levels
SHOWN = ((8, 1.0), (8, 0.3), (1, 0.3))  # (k, tau) of the figure and the report
MICROBATCH = 32  # of the evaluation
COUNTS = ("seconds", "steps", "images", "noise_levels")
SCORES = ("ratio", "error", "error_of_mean", "reference")
COLUMNS = ("arm", *COUNTS, "modality", "block", "tau", *SCORES)


class Questions(NamedTuple):
    """Held-out slices with each modality missing alone, at each noise level."""

    images: Array  # [R, H, W, C] slices
    present: Array  # [R, M]
    slices: Array  # [Q] the slice of each question
    channels: Array  # [Q] its missing modality
    levels: Array  # [Q] its noise level


@dataclasses.dataclass
class Arm:
    """A network in training: its step, its state, and what it has seen."""

    name: str
    model: ScoreModel
    step: Callable  # (state, batch) -> (state, metrics)
    state: object
    batches: Iterator
    images_per_step: int
    levels_per_step: float
    steps: int = 0
    seconds: float = 0.0

    def train(self, seconds: float) -> None:
        """Takes steps for at least so many seconds, which are counted: at least one."""
        start, pending, elapsed = time.perf_counter(), None, 0.0
        while elapsed < seconds or pending is None:
            self.state, metrics = self.step(self.state, next(self.batches))
            self.steps += 1
            jax.block_until_ready(pending)  # the step before: the device does not wait
            pending, elapsed = metrics, time.perf_counter() - start
        jax.block_until_ready(self.state)
        self.seconds += time.perf_counter() - start

    def counts(self) -> dict[str, float]:
        """What it has seen: COUNTS."""
        seen = self.steps * self.images_per_step, round(self.steps * self.levels_per_step)
        return dict(zip(COUNTS, (round(self.seconds, 2), self.steps, *seen), strict=True))


def arm_configs(config: Config) -> dict[str, Config]:
    """The config of each arm: both with a constant learning rate.

    Raises:
        InputError: the config's own preconditioning is not `mean`.
    """
    kind = config.network.preconditioning
    if kind != "mean":
        raise InputError(
            f"config.network.preconditioning is {kind!r}: this benchmark compares a config of "
            "'mean' with the same of 'edm'; set it to 'mean'."
        )
    config.train.schedule = "constant"
    return {"edm": with_edm(config), "mean": config}


def start_arm(name: str, config: Config, store: Store) -> Arm:
    """A network before its first step, with all compiled."""
    options, loss = build.build_train_options(config), config.loss
    method = build_trainable(config, MM_CSN)
    start = jax.tree.map(np.asarray, method.start(jax.random.key(options.seed)))
    step = functools.partial(devices.pmap_step(method.step), jax.random.key(options.seed + 1))
    batches = training_batches(store, options)
    jax.block_until_ready(step(devices.replicate(start), devices.shard(batches.at(0))))
    questions = options.batch * config.missingness.patterns_per_image
    noisy = loss.levels_per_question if name == "mean" else 1 - loss.mean_fraction
    return Arm(
        name,
        build.build_model(config),
        step,
        devices.replicate(start),
        map(devices.shard, batches.from_step(0)),
        options.batch,
        questions * noisy,
    )


def make_questions(store: Store, modalities: int, slices: int) -> Questions:
    """Questions of so many slices of the store, evenly apart; a modality that a subject was never
    scanned with is not asked for."""
    indices = np.unique(np.linspace(0, len(store) - 1, slices).astype(int))
    images, present = store.read(indices)
    count = modalities * (images.shape[-1] // modalities)  # without labels
    asked = np.argwhere(present)
    repeated = np.repeat(asked, len(LEVELS), axis=0)
    levels = np.tile(np.float32(LEVELS), len(asked))
    return Questions(np.asarray(images[..., :count], np.float32), present, *repeated.T, levels)


def block_means(images: Images, size: int) -> Images:
    """[B, H / size, W / size, M] means over blocks; `size` divides H and W."""
    b, h, w, m = images.shape
    return images.reshape(b, h // size, size, w // size, size, m).mean(axis=(2, 4))


def add_noise(sde: SDE, images: Images, levels: Times, index: Array) -> tuple[Images, Times]:
    """(x, t) of the noise levels [B]; the noise is that of the question's number."""
    t = sde.time(levels)
    noise = draw_noise(address_keys(0, index[:, None]), images)
    return perturb(sde, images, t, noise), t


def block_errors(
    model: ScoreModel,
    posterior: Posterior,
    truth: Images,
    scored: Missing,
    levels: Times,
    index: Array,
) -> Array:
    """[B, BLOCKS, 3]: sums over the blocks of the scored modality of the squared error of the
    denoised images, of that of the mean, and of that of the reference."""
    mean = posterior.moments().mean
    x, t = add_noise(model.sde, truth, levels, index)
    # As in training: what was never scanned has no a_t.
    absent = per_example(model.sde.mean(t), x) * mean if model.preconditioning == "mean" else 0.0
    x = jnp.where(per_modality(scored), x, absent)
    errors = posterior.estimate(x, t).mean - truth, mean - truth
    variance = per_example(jnp.square(levels), truth)
    sums = []
    for size in BLOCKS:
        error, residual = (
            jnp.square(block_means(jnp.where(per_modality(scored), values, 0), size))
            for values in errors
        )
        power = size**2 * residual  # of orthonormal coefficients: z^2
        reference = residual * variance / (power + variance)
        sums.append([values.sum(axis=(1, 2, 3)) for values in (error, residual, reference)])
    return jnp.stack([jnp.stack(values, axis=-1) for values in sums], axis=1)


def make_evaluate(model: ScoreModel, questions: Questions) -> Callable[[Params], Array]:
    """Returns evaluate(params): [M, LEVELS, BLOCKS, 3] sums of `block_errors`."""
    modalities = model.network.modalities

    def errors(params: Params, images, missing, scored, levels, index) -> Array:
        posterior = make_posterior(model, params, mask_inputs(images, missing))
        truth = images[..., :modalities]
        return block_errors(model, posterior, truth, scored, levels, index)

    run = devices.shard_over_rows(errors)
    size = devices.round_up_to_devices(MICROBATCH)
    images, present, slices, channels, levels = questions

    def take(index: Array) -> tuple:
        scored = np.eye(modalities, dtype=bool)[channels[index]]
        rows = slices[index]
        missing = scored | ~present[rows]
        return images[rows], missing, scored, levels[index], index.astype(np.int32)

    def evaluate(params: Params) -> Array:
        replicated = functools.partial(run, devices.replicate(params))
        rows = run_in_microbatches(replicated, size, len(slices), take)
        sums = np.zeros((modalities, len(LEVELS), len(BLOCKS), 3))
        which = np.searchsorted(np.float32(LEVELS), levels)
        np.add.at(sums, (channels, which), np.concatenate([*rows]))
        return sums

    return evaluate


def make_rows(arm: Arm, modalities: tuple[str, ...], sums: Array, pixels: Array) -> list[dict]:
    """The table's rows of one evaluation; `pixels` [M] are those of each modality's questions."""
    rows = []
    for channel, level, block in np.ndindex(*sums.shape[:3]):
        error, of_mean, reference = sums[channel, level, block]
        if pixels[channel] == 0:
            continue
        size = BLOCKS[block]
        blocks = pixels[channel] / size**2
        values = error / of_mean, error / blocks, of_mean / blocks, reference / of_mean
        rows.append(
            {"arm": arm.name, **arm.counts()}
            | {"modality": modalities[channel], "block": size, "tau": LEVELS[level]}
            | dict(zip(SCORES, map(float, values), strict=True))
        )
    return rows


def run(arms: list[Arm], questions: Questions, modalities: tuple[str, ...], flags) -> list[dict]:
    """All rows: both arms before the first step and after each segment."""
    evaluates = [make_evaluate(arm.model, questions) for arm in arms]
    height, width = questions.images.shape[1:3]
    asked = np.bincount(questions.channels, minlength=len(modalities)) // len(LEVELS)
    rows = []
    for segment in range(flags.segments + 1):
        order = [0, 1] if segment % 2 else [1, 0]  # neither is always first
        for number in order:
            if segment:
                arms[number].train(flags.seconds / flags.segments)
        for arm, evaluate in zip(arms, evaluates, strict=True):
            rows += make_rows(arm, modalities, evaluate(arm.state.ema), asked * height * width)
            print(_progress(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _progress(row: dict) -> str:
    counts = ", ".join(f"{row[name]:g} {name}" for name in COUNTS)
    return f"{row['arm']}: {counts}"


def curve(rows: list[dict], arm: str, modality: str, shown: tuple[int, float]) -> list[dict]:
    """The rows of one curve, in the order of training."""
    wanted = (arm, modality, *shown)
    return [r for r in rows if (r["arm"], r["modality"], r["block"], r["tau"]) == wanted]


def first_reached(positions: list[float], values: list[float], target: float) -> float | None:
    """Where a curve first falls to the target, by lines between its points; None if it does not."""
    for k, value in enumerate(values):
        if value <= target:
            if k == 0:
                return float(positions[0])
            share = (values[k - 1] - target) / (values[k - 1] - value)
            return float(positions[k - 1] + share * (positions[k] - positions[k - 1]))
    return None


def summarise(rows: list[dict]) -> dict:
    """What both arms reached in the end, and the share of EDM's seconds, images and noise levels in
    which the mean's arm had reached the ERROR that EDM's ends with, on the same slices and noise:
    None if it never did. By the ratio a network whose mean is not learned yet would have."""
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    report: dict = {arm: {} for arm in ARMS}
    for arm in ARMS:
        last = [row for row in rows if row["arm"] == arm][-1]
        report[arm] |= {name: last[name] for name in COUNTS}
    shares: dict = {}
    for shown in SHOWN:
        name = quantity(*shown)
        for modality in modalities:
            ours, edm = (curve(rows, arm, modality, shown) for arm in ("mean", "edm"))
            for arm, points in (("mean", ours), ("edm", edm)):
                score = report[arm].setdefault(name, {})
                score[modality] = round(points[-1]["ratio"], 4)
                mean = report[arm].setdefault("rmse_of_mean", {})
                if shown[0] == 1:
                    mean[modality] = round(points[-1]["error_of_mean"] ** 0.5, 5)
            reference = report.setdefault("reference", {}).setdefault(name, {})
            reference[modality] = round(ours[-1]["reference"], 4)
            target = edm[-1]["error"]
            errors = [row["error"] for row in ours]
            reached = {c: first_reached([row[c] for row in ours], errors, target) for c in COUNTS}
            shares.setdefault(name, {})[modality] = {
                c: None if at is None else round(at / edm[-1][c], 3) for c, at in reached.items()
            }
    return report | {"share_of_edm": shares}


def quantity(block: int, tau: float) -> str:
    """The name R_k(tau)."""
    return f"R_{block}({tau:g})"


def write_report(folder: Path, rows: list[dict]) -> None:
    """Writes preconditioning.csv, .md and .png."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "preconditioning.csv", text.getvalue())
    write_atomic(folder / "preconditioning.md", markdown(rows))
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    panels = {}
    for shown in SHOWN:
        for modality in modalities:
            curves = {
                arm: np.array(
                    [[row[c] for c in ("seconds", "ratio", "reference")] for row in points]
                )
                for arm in ARMS
                if (points := curve(rows, arm, modality, shown))
            }
            panels[quantity(*shown), modality] = curves
    write_learning_speed(folder / "preconditioning.png", panels)


def markdown(rows: list[dict]) -> str:
    """The table of what both arms reached in the end."""
    cases = list(dict.fromkeys((row["modality"], row["block"]) for row in rows))
    heads = ["missing", "block", "preconditioning", *(f"R({tau:g})" for tau in LEVELS)]
    heads += [f"reference({tau:g})" for tau in LEVELS] + ["RMSE of the mean"]
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for modality, block in cases:
        for arm in ARMS:
            last = [curve(rows, arm, modality, (block, tau))[-1] for tau in LEVELS]
            cells = [modality, str(block), arm, *(f"{row['ratio']:.3f}" for row in last)]
            cells += [f"{row['reference']:.3f}" for row in last]
            lines.append([*cells, f"{last[0]['error_of_mean'] ** 0.5:.4f}"])
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    ends = (_progress([row for row in rows if row["arm"] == arm][-1]) for arm in ARMS)
    return f"{'; '.join(ends)}.\n\n{table}"


def measure(flags: argparse.Namespace) -> dict:
    """The report; writes its files.

    Raises:
        InputError: there are no validation slices, or the grid does not fit the blocks.
    """
    config = read_config(flags.config)
    for side in config.data.grid:
        if side % max(BLOCKS):
            raise InputError(
                f"config.data.grid is {tuple(config.data.grid)}: wanted multiples of "
                f"{max(BLOCKS)}, the side of a block."
            )
    configs = arm_configs(config)
    devices.use_cpu_cores(config.train.batch // config.train.accumulate)
    for arm_config in configs.values():
        build.check_config(arm_config, jax.device_count())
    workdir = flags.output / "run" if flags.workdir is None else flags.workdir
    with contextlib.redirect_stdout(sys.stderr):  # not among the report's lines
        _, stores = build_data.prepare(build_data.with_absolute_folder(config), workdir)
    held_out = stores.get("validation")
    if held_out is None or not len(held_out):
        raise InputError("config.data.split leaves no validation subject: R is measured on them.")
    modalities = tuple(config.data.modalities)
    questions = make_questions(held_out, len(modalities), flags.slices)
    arms = [start_arm(name, configs[name], stores["train"]) for name in ARMS]
    rows = run(arms, questions, modalities, flags)
    write_report(flags.output, rows)
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "grid": list(config.data.grid),
        "batch": config.train.batch,
        "slices": len(questions.images),
        "segments": flags.segments,
        **summarise(rows),
        "load": system_load(),
    }


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workdir", type=Path, help="of a run whose slices are prepared")
    parser.add_argument("--seconds", type=float, default=300, help="of training, of each network")
    parser.add_argument("--segments", type=int, default=10, help="evaluations of each")
    parser.add_argument("--slices", type=int, default=64, help="of the validation split")
    flags = parser.parse_args()
    if min(flags.seconds, flags.segments, flags.slices) <= 0:
        parser.error("--seconds, --segments and --slices must be positive")
    try:
        report = measure(flags)
    except InputError as error:
        parser.error(str(error))
    print_report(report, flags.json)


if __name__ == "__main__":
    main()
