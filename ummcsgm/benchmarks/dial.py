"""Every sampler from 1 to 1000 network evaluations a draw, on one trained network.

    python -m ummcsgm.benchmarks.dial --workdir RUN --output FOLDER
        [--subjects N] [--slices S] [--draws K] [--steps 1,2,4] [--samplers warm,heun]

Asks some slices of the first test subjects for each modality in turn, K draws of each
slice, and scores them within the brain in grey levels, subject by subject. All samplers
have the same questions and the same addresses of draws. What was measured for the same
weights and questions is read from FOLDER/dial.csv, so a run that was stopped goes on;
dial.md and dial.png lie beside it. Prints how `warm` compares with Algorithm 1.
"""

import argparse
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Callable

import numpy as np

from ummcsgm.benchmarks.report import make_parser, tell
from ummcsgm.config import build, build_data
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import network_brain, network_stacks, prepare_subject
from ummcsgm.diffusion.samplers import count_evaluations, find_sampler
from ummcsgm.evaluation.calibration import crps_fair, within
from ummcsgm.evaluation.metrics import psnr
from ummcsgm.evaluation.protocols import TABLE1, grey_levels_per_unit, scored_slices
from ummcsgm.evaluation.spread import spread_and_error, spread_skill
from ummcsgm.inference.predictor import (
    MODES,
    TrainedModel,
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.reporting.plots import write_dial
from ummcsgm.training.plans import EvaluationOptions
from ummcsgm.types import Array, Images, InputError, Missing
from ummcsgm.utils.atomic_io import write_atomic

STEPS = "1,2,4,6,8,12,16,20,50,100,250,1000"
SCORES = ("psnr_draw", "psnr_mean", "crps", "spread_skill")
COLUMNS = {"key": str, "sampler": str, "steps": int, "evaluations": int}
COLUMNS |= dict.fromkeys((*SCORES, "seconds", "load"), float)
SLOW, QUICK = ("euler_maruyama", 1000), ("warm", 12)  # those that are compared


@dataclasses.dataclass(frozen=True)
class Question:
    """Slices of one subject, one modality of which is asked for, and how it is scored.

    `missing` [M] has also what the subject was never scanned with. Images times `grey`
    are in grey levels.
    """

    subject: str
    z: Array  # [S]
    images: Images  # [S, H, W, M]
    brain: Array  # [S, H, W] bool
    missing: Missing
    channel: int
    grey: float


@dataclasses.dataclass(frozen=True)
class Contest:
    """What every sampler is asked, and by which network it answers."""

    trained: TrainedModel
    scoring: EvaluationOptions  # but for the steps
    questions: tuple[Question, ...]
    draws: int  # of each slice

    @property
    def key(self) -> str:
        """Changes when the scores could: with weights, questions, draws, levels."""
        asked = [[q.subject, q.z.tolist(), q.channel] for q in self.questions]
        levels = [self.scoring.seed, self.scoring.sigma_min, self.scoring.warm_start_sigma]
        depends = [self.trained.digest, asked, self.draws, levels]
        return hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]


def questions_of(trained: TrainedModel, subject: Subject, slices: int) -> list[Question]:
    """Each modality of the subject, asked for on `slices` of its scored slices."""
    modalities = trained.space.modalities
    prepared = prepare_subject(subject, modalities, trained.space.view)
    z = scored_slices(prepared.brain, TABLE1)
    z = np.unique(z[((np.arange(slices) + 0.5) * len(z) / slices).astype(int)])
    images = network_stacks(prepared, modalities, z)
    absent = np.array([name not in prepared.scales for name in modalities])
    brain = network_brain(prepared, z)
    questions = []
    for channel in np.flatnonzero(~absent):
        name, missing = modalities[channel], absent.copy()
        missing[channel] = True
        grey = grey_levels_per_unit(prepared.case.volumes[name], prepared.brain, TABLE1)
        grey *= prepared.scales[name]
        facts = (images, brain, missing, int(channel), grey)
        questions.append(Question(subject.name, z, *facts))
    return questions


def set_contest(trained: TrainedModel, flags: argparse.Namespace) -> Contest:
    """The first test subjects of the run, asked as the flags say."""
    cohort = build_data.build_cohort(trained.config, flags.workdir)
    subjects = cohort.members("test")[: flags.subjects]
    asked = [q for one in subjects for q in questions_of(trained, one, flags.slices)]
    if not asked:
        raise InputError(f"{flags.workdir} has no test subject that can be asked.")
    plan = build.build_evaluation_options(trained.config)
    return Contest(trained, plan, tuple(asked), flags.draws)


def steps_within(sampler: str, number: int) -> int:
    """The most steps of at most `number` evaluations a draw, 0 if one takes more.

    The mean at which `warm` starts is shared by all draws of a slice, and not counted
    here: it takes 12 steps for 12, and 1 + 12 evaluations.
    """
    shared = int(find_sampler(sampler).from_mean)
    counts = range(number, 0, -1)
    return next((n for n in counts if count_evaluations(sampler, n) - shared <= number), 0)


def points(samplers: list[str], numbers: list[int], longest: int) -> list[tuple[str, int]]:
    """(sampler, steps) of what is measured; `longest` ends all but uniform grids."""
    found = [("mean", 1)] if "mean" in samplers else []
    for sampler in (name for name in samplers if name != "mean"):
        uniform = find_sampler(sampler).grid == "uniform"
        some = [n for n in numbers if uniform or n <= longest]
        found += [(sampler, n) for n in (steps_within(sampler, n) for n in some) if n]
    return list(dict.fromkeys(found))


def make_draws(contest: Contest, sampler: str, steps: int) -> Callable[[], Images]:
    """draws(): [R, K, H, W, M] of all questions' slices; the mean is answered once."""
    count = contest.draws
    scoring = dataclasses.replace(contest.scoring, algorithm1_steps=steps, sampler_steps=steps)
    predict_mean = make_mean_predictor(contest.trained, scoring)
    images, missing, addresses = _inputs(contest.questions, count)
    if sampler == "mean":
        predict_mean(images[:1], missing[:1])  # compiles

        def means() -> Images:
            return np.repeat(predict_mean(images, missing).mean[:, None], count, axis=1)

        return means
    sample = make_sampler(contest.trained, sampler, scoring)
    from_mean = find_sampler(sampler).from_mean

    def draws(size: int, number: int) -> Images:
        inputs = images[:size], missing[:size]
        estimate = predict_mean(*inputs) if from_mean else None
        return np.stack([*sample(*inputs, addresses[:number, :size], estimate)], axis=1)

    draws(1, 1)  # compiles
    return functools.partial(draws, len(images), count)


def _inputs(questions: tuple[Question, ...], draws: int) -> tuple[Images, Missing, Array]:
    """Images and missing of the slices of all questions, and their draws' addresses [K, R, 3]."""
    return (
        np.concatenate([q.images for q in questions]),
        np.concatenate([np.tile(q.missing, (len(q.z), 1)) for q in questions]),
        np.stack(
            [
                np.concatenate([slice_addresses(q.subject, q.z, draw=k) for q in questions])
                for k in range(draws)
            ]
        ),
    )


def scores(contest: Contest, drawn: Images) -> dict[str, float]:
    """PSNR of a draw and of the mean of all draws in dB, fair CRPS in grey levels:
    means over subjects and modalities; and the mean over modalities of the
    spread-skill ratio over subjects.

    Voxels of the brain only, not clipped; decibels are a subject's, of all its slices.
    """
    values, moments = [], {}
    for question in contest.questions:
        rows, drawn = np.split(drawn, [len(question.z)])
        draws = question.grey * rows[..., question.channel].swapaxes(0, 1)
        truth = question.grey * question.images[..., question.channel]
        draws, truth = within(question.brain, draws, truth)
        single = psnr(truth[None], draws[:, None], TABLE1.peak).mean()
        averaged = psnr(truth[None], draws.mean(axis=0, keepdims=True), TABLE1.peak)
        values.append((single, averaged, crps_fair(draws, truth).mean()))
        moments.setdefault(question.channel, []).append(spread_and_error(draws, truth))
    ratios = [spread_skill(np.array(own), contest.draws) for own in moments.values()]
    found = (*np.mean(values, axis=0), np.mean(ratios))
    return dict(zip(SCORES, map(float, found), strict=True))


def measure(contest: Contest, sampler: str, steps: int) -> dict:
    """A row of the table: scores, and the seconds of all draws, nothing compiled."""
    draws = make_draws(contest, sampler, steps)
    start = time.perf_counter()
    drawn = draws()
    seconds = time.perf_counter() - start
    count = 1 if sampler == "mean" else count_evaluations(sampler, steps)
    row = dict(key=contest.key, sampler=sampler, steps=steps, evaluations=count)
    load = round(os.getloadavg()[0], 1)
    return row | scores(contest, drawn) | {"seconds": seconds, "load": load}


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a dial.csv, numbers as numbers; none where there is no file.

    Raises:
        InputError: it has other columns.
    """
    if not path.is_file():
        return []
    rows = [*csv.DictReader(path.read_text().splitlines())]
    if rows and set(rows[0]) != set(COLUMNS):
        raise InputError(f"{path} is no table of this benchmark: remove it.")
    return [{name: kind(row[name]) for name, kind in COLUMNS.items()} for row in rows]


def write_report(folder: pathlib.Path, rows: list[dict], draws: int) -> None:
    """`folder` holds dial.md and dial.png of the rows of one contest."""
    ordered = sorted(rows, key=lambda r: (MODES.index(r["sampler"]), r["steps"]))
    heads = ["sampler", "steps", "evaluations", "PSNR of a draw, dB"]
    heads += [f"PSNR of the mean of {draws}, dB", "CRPS, grey levels"]
    heads += ["spread-skill", "seconds"]
    lines = [heads, ["---"] + ["---:"] * 7, *map(_cells, ordered)]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    write_atomic(folder / "dial.md", text)
    curves: dict[str, list] = {}
    for row in ordered:
        point = [row[name] for name in ("evaluations", *SCORES[:3])]
        curves.setdefault(row["sampler"], []).append(point)
    arrays = {name: np.array(own) for name, own in curves.items()}
    write_dial(folder / "dial.png", arrays, draws)


def _cells(row: dict) -> list[str]:
    """A row of dial.md."""
    formats = {"psnr_draw": ".2f", "psnr_mean": ".2f", "crps": ".3f"}
    formats |= {"spread_skill": ".3f", "seconds": ".2f"}
    facts = [str(row[name]) for name in ("sampler", "steps", "evaluations")]
    return facts + [format(row[name], how) for name, how in formats.items()]


def compare(rows: list[dict]) -> dict[str, float] | None:
    """`warm` of 1 + 12 beside Algorithm 1 in 1000; None if one is not measured."""
    found = {(row["sampler"], row["steps"]): row for row in rows}
    if not {SLOW, QUICK} <= set(found):
        return None
    slow, quick = found[SLOW], found[QUICK]
    return {
        "times_faster": round(slow["seconds"] / quick["seconds"], 1),
        "crps_percent": round(100 * (quick["crps"] / slow["crps"] - 1), 2),
        "psnr_draw_db": round(quick["psnr_draw"] - slow["psnr_draw"], 3),
        "psnr_mean_db": round(quick["psnr_mean"] - slow["psnr_mean"], 3),
    }


def run(contest: Contest, wanted: list[tuple[str, int]], folder: pathlib.Path) -> dict:
    """What is printed; `folder` has the files, also of what was measured before."""
    path = folder / "dial.csv"
    rows = read_rows(path)
    known = {(row["key"], row["sampler"], row["steps"]) for row in rows}
    for sampler, steps in wanted:
        if (contest.key, sampler, steps) not in known:
            rows.append(measure(contest, sampler, steps))
            print(" ".join(_cells(rows[-1])), flush=True)
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_atomic(path, text.getvalue())
    own = [row for row in rows if row["key"] == contest.key]
    write_report(folder, own, contest.draws)
    draws = contest.draws * sum(len(q.z) for q in contest.questions)
    facts = {"digest": contest.trained.digest[:12], "draws": draws}
    return facts | {"warm_beside_algorithm1": compare(own)}


def main() -> None:
    """Measures, and prints one line a point; the last is a JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--subjects", type=int, default=3, help="of the test split")
    parser.add_argument("--slices", type=int, default=2, help="of each subject")
    parser.add_argument("--draws", type=int, default=8, help="of each slice")
    parser.add_argument("--steps", default=STEPS, help="evaluations of a draw")
    parser.add_argument("--samplers", default="all", help="some, with commas between")
    parser.add_argument("--longest", type=int, default=250, help="but on uniform grids")
    flags = parser.parse_args()
    if flags.draws < 2:
        parser.error(f"--draws is {flags.draws}; a spread wants at least 2")
    samplers = list(MODES) if flags.samplers == "all" else flags.samplers.split(",")
    try:
        wanted = points(samplers, [*map(int, flags.steps.split(","))], flags.longest)
        contest = set_contest(load_trained_model(flags.workdir), flags)
        tell(run(contest, wanted, flags.output), flags.json)
    except ValueError as error:  # InputError is one
        parser.error(str(error))


if __name__ == "__main__":
    main()
