"""Quality and time of every sampler by its network evaluations, on a trained network.

    python -m ummcsgm.benchmarks.dial --workdir RUN --output FOLDER
        [--subjects N] [--slices S] [--draws K] [--steps 1,2,4] [--samplers warm,heun]

Each modality of some slices of the first test subjects is completed from the others, with
K draws of each slice by every sampler with 1 to 1000 evaluations a draw. Draws are scored
within the brain in grey levels, subject by subject. All samplers complete the same slices
with the same draw addresses. What FOLDER/dial.csv holds for the same parameters and
slices is not measured again, so a stopped run goes on; dial.md and dial.png are written
beside it. Prints how `warm` compares with Algorithm 1, and the fewest steps of `warm` from which on
each score of each modality is within 5 % of that with 60 steps: the fair CRPS, the power of draws
over that of truths in each band, and the spread-skill ratio of blocks of 2, 4 and 8 pixels
(`evaluation.structure`). Draws of few subjects say little of how good these are; how they differ
from 60 steps is of the same slices and the same noise.
"""

import argparse
import csv
import dataclasses
import functools
import io
import json
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np

from ummcsgm.benchmarks.report import make_parser, print_report
from ummcsgm.config import build, build_data
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.data.subjects import network_brain, network_stacks, prepare_subject
from ummcsgm.diffusion.samplers import count_evaluations, find_sampler
from ummcsgm.evaluation.calibration import crps_fair, spread_and_error, spread_skill, within
from ummcsgm.evaluation.metrics import psnr
from ummcsgm.evaluation.protocols import TABLE1, grey_levels_per_unit, scored_slices
from ummcsgm.evaluation.structure import BANDS, measure_structure, summarise_structure
from ummcsgm.inference.predictor import (
    MODES,
    TrainedModel,
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.reporting.figures import write_dial
from ummcsgm.types import Array, Images, InputError, Missing
from ummcsgm.utils.atomic_io import digest, write_atomic
from ummcsgm.utils.provenance import code_digest

STEPS = "1,2,4,6,8,9,12,16,18,24,50,60,100,250,1000"
SCORES = ("psnr_draw", "psnr_mean", "crps", "spread_skill")
COLUMNS = {"key": str, "sampler": str, "steps": int, "evaluations": int}
COLUMNS |= dict.fromkeys((*SCORES, "seconds", "load"), float) | {"structure": json.loads}
SLOW = ("euler_maruyama", 1000)  # with which `warm` by the default number of steps is compared
MANY = ("warm", 60)  # with which `warm` of fewer steps is compared
NEAR = 0.05  # of a score: the difference that is let pass
BLOCKS = (2, 4, 8)  # pixels a side


@dataclasses.dataclass(frozen=True)
class TestCase:
    """Slices of one subject with one modality (`channel`) to complete and score.

    `missing` [M] includes the modalities that were never scanned. Images times
    `grey_levels` are in grey levels.
    """

    __test__ = False  # no test for pytest

    subject: str
    z: Array  # [S]
    images: Images  # [S, H, W, M]
    brain: Array  # [S, H, W] bool
    missing: Missing
    channel: int
    grey_levels: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What every sampler completes, and with which network."""

    trained: TrainedModel
    options: EvaluationOptions  # the steps are set for each sampler
    cases: tuple[TestCase, ...]
    draws: int  # of each slice

    @functools.cached_property
    def means(self) -> Images:
        """[R, H, W, M] the network's own mean of all cases' slices."""
        images, missing, _ = _inputs(self.cases, 1)
        return make_mean_predictor(self.trained, self.options)(images, missing).mean

    @property
    def key(self) -> str:
        """A hash of all that the scores depend on: code, parameters, cases, draws, noise levels."""
        cases = [[case.subject, case.z.tolist(), case.channel] for case in self.cases]
        options = self.options
        levels = [options.seed, options.time_grid, options.sigma_min, options.warm_start_factor]
        return digest([code_digest(), self.trained.digest, cases, self.draws, levels])[:16]


def make_cases(trained: TrainedModel, subject: Subject, slices: int) -> list[TestCase]:
    """A case for each modality of the subject, on `slices` of its scored slices."""
    modalities = trained.space.modalities
    prepared = prepare_subject(subject, modalities, trained.space.view)
    z = scored_slices(prepared.brain, TABLE1)
    z = np.unique(z[((np.arange(slices) + 0.5) * len(z) / slices).astype(int)])
    images = network_stacks(prepared, modalities, z)
    absent = np.array([name not in prepared.scales for name in modalities])
    brain = network_brain(prepared, z)
    cases = []
    for channel in np.flatnonzero(~absent):
        name, missing = modalities[channel], absent.copy()
        missing[channel] = True
        grey_levels = grey_levels_per_unit(prepared.volumes[name], prepared.brain, TABLE1)
        grey_levels *= prepared.scales[name]
        case = TestCase(subject.name, z, images, brain, missing, int(channel), grey_levels)
        cases.append(case)
    return cases


def make_comparison(trained: TrainedModel, flags: argparse.Namespace) -> Comparison:
    """The cases of the run's first test subjects.

    Raises:
        InputError: there are none.
    """
    cohort = build_data.build_cohort(trained.config, flags.workdir)
    subjects = cohort.members("test")[: flags.subjects]
    cases = [case for subject in subjects for case in make_cases(trained, subject, flags.slices)]
    if not cases:
        raise InputError(f"{flags.workdir}: no test subject among the first {flags.subjects}.")
    options = build.build_evaluation_options(trained.config)
    return Comparison(trained, options, tuple(cases), flags.draws)


def steps_within(sampler: str, number: int) -> int:
    """The most steps with at most `number` evaluations a draw, 0 if one step needs more.

    The mean at which `warm` starts is shared by all draws of a slice and not counted
    here: for 12 it takes 12 steps, with 1 + 12 evaluations.
    """
    shared = int(find_sampler(sampler).from_mean)
    counts = range(number, 0, -1)
    return next((n for n in counts if count_evaluations(sampler, n) - shared <= number), 0)


def list_points(samplers: list[str], numbers: list[int], longest: int) -> list[tuple[str, int]]:
    """(sampler, steps) of all that is measured; samplers whose time grid is not uniform
    have at most `longest` evaluations."""
    points = [("mean", 1)] if "mean" in samplers else []
    for sampler in (name for name in samplers if name != "mean"):
        uniform = find_sampler(sampler).uniform_grid
        limits = [n for n in numbers if uniform or n <= longest]
        points += [(sampler, n) for n in (steps_within(sampler, n) for n in limits) if n]
    return list(dict.fromkeys(points))


def make_draws(comparison: Comparison, sampler: str, steps: int) -> Callable[[], Images]:
    """Returns draws(): [R, K, H, W, M] of all cases' R slices; the mean is computed once."""
    count = comparison.draws
    options = dataclasses.replace(comparison.options, algorithm1_steps=steps, sampler_steps=steps)
    predict_mean = make_mean_predictor(comparison.trained, options)
    images, missing, addresses = _inputs(comparison.cases, count)
    if sampler == "mean":
        predict_mean(images[:1], missing[:1])  # compiles

        def means() -> Images:
            return np.repeat(predict_mean(images, missing).mean[:, None], count, axis=1)

        return means
    sample = make_sampler(comparison.trained, sampler, options)
    from_mean = find_sampler(sampler).from_mean

    def draws(size: int, number: int) -> Images:
        inputs = images[:size], missing[:size]
        estimate = predict_mean(*inputs) if from_mean else None
        return np.stack([*sample(*inputs, addresses[:number, :size], estimate)], axis=1)

    draws(1, 1)  # compiles
    return functools.partial(draws, len(images), count)


def _inputs(cases: tuple[TestCase, ...], draws: int) -> tuple[Images, Missing, Array]:
    """Images and missing of the slices of all cases, and their draws' addresses [K, R, 3]."""
    return (
        np.concatenate([case.images for case in cases]),
        np.concatenate([np.tile(case.missing, (len(case.z), 1)) for case in cases]),
        np.stack(
            [
                np.concatenate([slice_addresses(case.subject, case.z, draw=k) for case in cases])
                for k in range(draws)
            ]
        ),
    )


def scores(comparison: Comparison, drawn: Images) -> dict[str, float]:
    """PSNR of a draw and of the mean of all draws in dB and fair CRPS in grey levels, means over
    subjects and modalities; and the mean over modalities of the spread-skill ratio over subjects.

    Voxels of the brain only, not clipped; a PSNR is of all slices of a subject.
    """
    values, spreads = [], {}
    for case in comparison.cases:
        case_draws, drawn = np.split(drawn, [len(case.z)])
        draws = case.grey_levels * case_draws[..., case.channel].swapaxes(0, 1)
        truth = case.grey_levels * case.images[..., case.channel]
        draws, truth = within(case.brain, draws, truth)
        single = psnr(truth[None], draws[:, None], TABLE1.peak).mean()
        averaged = psnr(truth[None], draws.mean(axis=0, keepdims=True), TABLE1.peak)
        values.append((single, averaged, crps_fair(draws, truth).mean()))
        spreads.setdefault(case.channel, []).append(spread_and_error(draws, truth))
    ratios = [spread_skill(np.array(pairs), comparison.draws) for pairs in spreads.values()]
    means = (*np.mean(values, axis=0), np.mean(ratios))
    return dict(zip(SCORES, map(float, means), strict=True))


def structure_scores(comparison: Comparison, drawn: Images) -> dict[str, dict[str, float]]:
    """By modality the fair CRPS in grey levels, the power ratio of each band and the spread-skill
    ratio of blocks; over the subjects, within the brain, about the network's own mean."""
    measured: dict[str, list] = {}
    ends = np.cumsum([len(case.z) for case in comparison.cases])[:-1]
    parts = zip(
        comparison.cases, np.split(drawn, ends), np.split(comparison.means, ends), strict=True
    )
    for case, case_draws, mean in parts:
        draws, own, truth = (
            case.grey_levels * np.asarray(images[..., case.channel], np.float64)
            for images in (case_draws.swapaxes(0, 1), mean, case.images)
        )
        name = comparison.trained.space.modalities[case.channel]
        subject = measure_structure(draws, own, truth, case.brain, (1, *BLOCKS))
        measured.setdefault(name, []).append(subject)
    scores = {}
    for name, subjects in measured.items():
        summary = summarise_structure(subjects, comparison.draws)
        voxels, *blocks = summary["blocks"]
        scores[name] = {"crps": voxels["crps"]}
        scores[name] |= {f"power {row['band']}": row["ratio"] for row in summary["power"]}
        scores[name] |= {f"blocks of {row['size']}": row["spread_skill"] for row in blocks}
    return scores


def fewest_steps(rows: list[dict]) -> dict | None:
    """For each score the fewest steps of `warm` from which on it is within NEAR of that with MANY,
    of every modality and with every number of steps that was measured between them; `all` is the
    most of these, `evaluations` its network evaluations, the mean's included. None: MANY was not
    measured."""
    points = {r["steps"]: r["structure"] for r in rows if r["sampler"] == MANY[0]}
    if MANY[1] not in points:
        return None
    wanted = points[MANY[1]]
    numbers = sorted((n for n in points if n <= MANY[1]), reverse=True)
    fewest = {}
    for score in next(iter(wanted.values())):
        near = [
            all(_is_near(points[n][name][score], wanted[name][score]) for name in wanted)
            for n in numbers
        ]
        fewest[score] = numbers[[*near, False].index(False) - 1]
    most = max(fewest.values())
    return fewest | {"all": most, "evaluations": count_evaluations(MANY[0], most)}


def _is_near(value: float, wanted: float) -> bool:
    return bool(np.isclose(value, wanted, rtol=NEAR, atol=0, equal_nan=True))


def measure(comparison: Comparison, sampler: str, steps: int) -> dict:
    """A row of the table: the scores, and the seconds of all draws without compiling."""
    draws = make_draws(comparison, sampler, steps)
    start = time.perf_counter()
    drawn = draws()
    seconds = time.perf_counter() - start
    count = 1 if sampler == "mean" else count_evaluations(sampler, steps)
    row = dict(key=comparison.key, sampler=sampler, steps=steps, evaluations=count)
    load = round(os.getloadavg()[0], 1)
    row |= scores(comparison, drawn) | {"seconds": seconds, "load": load}
    return row | {"structure": structure_scores(comparison, drawn)}


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a dial.csv with their types; none without a file.

    Raises:
        InputError: it has other columns.
    """
    if not path.is_file():
        return []
    rows = [*csv.DictReader(path.read_text().splitlines())]
    if rows and set(rows[0]) != set(COLUMNS):
        raise InputError(f"{path} has other columns than this benchmark writes: remove it.")
    return [{name: kind(row[name]) for name, kind in COLUMNS.items()} for row in rows]


def write_report(folder: pathlib.Path, rows: list[dict], draws: int) -> None:
    """Writes dial.md and dial.png of the rows of one comparison."""
    ordered = sorted(rows, key=lambda r: (MODES.index(r["sampler"]), r["steps"]))
    heads = ["sampler", "steps", "evaluations", "PSNR of a draw, dB"]
    heads += [f"PSNR of the mean of {draws}, dB", "CRPS, grey levels"]
    heads += ["spread-skill", *(f"of blocks of {size}" for size in BLOCKS)]
    heads += ["power ratio below 0.05 a pixel", "seconds"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *map(_cells, ordered)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    write_atomic(folder / "dial.md", text)
    curves: dict[str, list] = {}
    for row in ordered:
        point = [row[name] for name in ("evaluations", *SCORES[:3])]
        curves.setdefault(row["sampler"], []).append(point)
    arrays = {name: np.array(points) for name, points in curves.items()}
    write_dial(folder / "dial.png", arrays, draws)


def _cells(row: dict) -> list[str]:
    """The cells of a row of dial.md."""
    formats = {"psnr_draw": ".2f", "psnr_mean": ".2f", "crps": ".3f"}
    formats |= {"spread_skill": ".3f"}
    cells = [str(row[name]) for name in ("sampler", "steps", "evaluations")]
    cells += [format(row[name], form) for name, form in formats.items()]
    for score in (*(f"blocks of {size}" for size in BLOCKS), f"power {BANDS[0]}"):
        values = [scores[score] for scores in row["structure"].values()]
        cells.append(f"{min(values):.2f} to {max(values):.2f}")  # of the modalities
    return [*cells, f"{row['seconds']:.2f}"]


def compare(rows: list[dict], steps: int) -> dict[str, float] | None:
    """`warm` of so many steps beside Algorithm 1 with 1000; None if not measured."""
    by_point = {(row["sampler"], row["steps"]): row for row in rows}
    if not {SLOW, ("warm", steps)} <= set(by_point):
        return None
    slow, quick = by_point[SLOW], by_point["warm", steps]
    return {
        "steps": steps,
        "times_faster": round(slow["seconds"] / quick["seconds"], 1),
        "crps_percent": round(100 * (quick["crps"] / slow["crps"] - 1), 2),
        "psnr_draw_db": round(quick["psnr_draw"] - slow["psnr_draw"], 3),
        "psnr_mean_db": round(quick["psnr_mean"] - slow["psnr_mean"], 3),
    }


def run(comparison: Comparison, points: list[tuple[str, int]], folder: pathlib.Path) -> dict:
    """Measures the points that `folder` does not have; returns the report."""
    path = folder / "dial.csv"
    rows = read_rows(path)
    measured = {(row["key"], row["sampler"], row["steps"]) for row in rows}
    for sampler, steps in points:
        if (comparison.key, sampler, steps) not in measured:
            rows.append(measure(comparison, sampler, steps))
            print(" ".join(_cells(rows[-1])), flush=True)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row | {"structure": json.dumps(row["structure"])} for row in rows)
            write_atomic(path, text.getvalue())
    rows = [row for row in rows if row["key"] == comparison.key]
    write_report(folder, rows, comparison.draws)
    draws = comparison.draws * sum(len(case.z) for case in comparison.cases)
    report = {"digest": comparison.trained.digest[:12], "draws": draws}
    report["fewest_steps_of_warm"] = fewest_steps(rows)
    return report | {"warm_beside_algorithm1": compare(rows, comparison.options.sampler_steps)}


def main() -> None:
    """Prints a line for each point, and the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--subjects", type=int, default=3, help="of the test split")
    parser.add_argument("--slices", type=int, default=2, help="of each subject")
    parser.add_argument("--draws", type=int, default=8, help="of each slice")
    parser.add_argument("--steps", default=STEPS, help="evaluations of a draw")
    parser.add_argument("--samplers", default="all", help="names separated by commas")
    parser.add_argument(
        "--longest", type=int, default=250, help="evaluations on a time grid that is not uniform"
    )
    flags = parser.parse_args()
    if flags.draws < 2:
        parser.error(f"--draws is {flags.draws}; a spread needs at least 2")
    samplers = list(MODES) if flags.samplers == "all" else flags.samplers.split(",")
    try:
        points = list_points(samplers, [*map(int, flags.steps.split(","))], flags.longest)
        comparison = make_comparison(load_trained_model(flags.workdir), flags)
        print_report(run(comparison, points, flags.output), flags.json)
    except ValueError as error:  # InputError is one
        parser.error(str(error))


if __name__ == "__main__":
    main()
