"""From seconds a subject to a sampler and a number of draws, by a measured rate.

What was chosen for a folder of results is kept there, so that a run that was stopped
goes on with it, and so do processes that share the folder.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.naming import Subject
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.distributed import devices
from ummcsgm.inference.intake import check_modalities
from ummcsgm.inference.predictor import TrainedModel, make_mean_predictor
from ummcsgm.inference.results import CompletionOptions
from ummcsgm.inference.subject_posterior import Question, question_of
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

MOST = 32  # draws: more of them hardly move a mean, an sd or a 90 % interval
MEASURED = 1.0  # seconds that the rate is measured for
FILE = "budget.json"


def within_budget(
    order: CompletionOptions,
    trained: TrainedModel,
    scoring: EvaluationOptions,
    subjects: list[Subject],
    target: pathlib.Path,
) -> CompletionOptions:
    """`order` with the sampler and the draws that its seconds a subject buy.

    The mean first; then as many draws of `warm` as there is time for, if it is two or
    more, since one alone is farther from the truth than the mean. The rate is measured
    on the first subject that can be read: compiling, and reading and writing files, are
    not in it. What was chosen for the same seconds and network in `target` is chosen
    again, unless `order.overwrite`.

    Raises:
        InputError: the seconds do not buy one evaluation a slice, or the draws that
            `order.spread` wants; or no subject can be read.
    """
    same = {"seconds": order.seconds, "parameters_sha256": trained.digest}
    same["sampler_steps"] = scoring.sampler_steps
    kept = target / FILE
    told = read_json(kept) if kept.is_file() and not order.overwrite else {}
    if not isinstance(told, dict) or told and told.get("draws") not in range(MOST + 1):
        raise InputError(f"{kept} is no budget of ours: remove it.")
    known = same.items() <= told.items()
    if not known or (order.spread and not told["draws"]):
        told = same | {"draws": _draws(order, trained, scoring, subjects)}
        write_atomic(kept, json.dumps(told, indent=1))
    draws = told["draws"]
    sampler = "warm" if draws else "mean"
    print(
        f"--budget-seconds {order.seconds:g}: --sampler {sampler} --draws "
        f"{max(draws, 1)}, {1 + draws * scoring.sampler_steps} evaluations a slice (kept in "
        f"{kept})",
        flush=True,
    )
    return dataclasses.replace(order, sampler=sampler, draws=max(draws, 1))


def _draws(
    order: CompletionOptions,
    trained: TrainedModel,
    scoring: EvaluationOptions,
    subjects: list[Subject],
) -> int:
    """How many the seconds buy, 0 for the mean alone."""
    question = _first_question(trained, subjects)
    rate = evaluations_a_second(trained, scoring, question)
    # The last microbatch is filled up; draws share theirs, so there it is little.
    size = devices.round_up_to_devices(scoring.microbatch)
    slices = -(-len(question.z) // size) * size
    draws = affordable(order.seconds, slices, rate, scoring.sampler_steps)
    if draws is None:
        raise InputError(
            f"--budget-seconds is {order.seconds:g}, and one evaluation of the network "
            f"for each of the {len(question.z)} slices of {question.name} takes "
            f"{slices / rate:.3g} s here: wanted at least that."
        )
    if order.spread and not draws:
        raise InputError(
            f"--budget-seconds is {order.seconds:g}, and --quantiles wants 2 draws of "
            f"{question.name}, which take {(1 + 2 * scoring.sampler_steps) * slices / rate:.3g} "
            "s here: wanted at least that, or no --quantiles."
        )
    print(
        f"{rate:.3g} evaluations a second; {question.name} has {len(question.z)} "
        f"slices: about {(1 + draws * scoring.sampler_steps) * slices / rate:.3g} s a subject, "
        "beside compiling, reading and writing",
        flush=True,
    )
    return draws


def affordable(seconds: float, slices: int, rate: float, few: int) -> int | None:
    """The draws that `seconds` buy after the mean, each of `few` evaluations a slice:
    2 to MOST, or 0; None if they do not buy the mean."""
    evaluations = seconds * rate / slices
    if evaluations < 1:
        return None
    draws = int((evaluations - 1) / few)
    return min(draws, MOST) if draws >= 2 else 0


def evaluations_a_second(
    trained: TrainedModel, scoring: EvaluationOptions, question: Question
) -> float:
    """How many slices the compiled network answers a second, in full microbatches."""
    answer = make_mean_predictor(trained, scoring)
    z = np.resize(question.z, devices.round_up_to_devices(scoring.microbatch))
    rows = (
        question.images[np.resize(np.arange(len(question.z)), len(z))],
        np.tile(question.missing, (len(z), 1)),
    )
    answer(*rows)  # compiles
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < MEASURED or not runs:
        answer(*rows)
        runs += 1
    return runs * len(z) / elapsed


def _first_question(trained: TrainedModel, subjects: list[Subject]) -> Question:
    refused = None
    for subject in subjects:
        try:
            check_modalities(trained, subject)
            space = trained.space
            prepared = prepare_subject(subject, space.modalities, space.view)
        except (InputError, OSError) as error:
            refused = error
            continue
        return question_of(subject.name, prepared, space.modalities)
    raise InputError(str(refused))
