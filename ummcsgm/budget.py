"""From seconds a subject to a sampler and a number of draws, by a measured rate."""

import dataclasses
import time

import numpy as np

from ummcsgm.answer import Trained, make_answer, slice_addresses
from ummcsgm.data.layouts import Subject
from ummcsgm.data.subjects import prepare_subject
from ummcsgm.intake import check_modalities
from ummcsgm.plans import Scoring
from ummcsgm.results import Order
from ummcsgm.synthesis import Question, question_of
from ummcsgm.types import InputError

MOST = 32  # draws: more of them hardly move a mean, an sd or a 90 % interval
MEASURED = 1.0  # seconds that the rate is measured for


def within_budget(
    order: Order, trained: Trained, scoring: Scoring, subjects: list[Subject]
) -> Order:
    """`order` with the sampler and the draws that its seconds a subject buy.

    The mean first; then as many draws of `warm` as there is time for, if it is two or
    more, since one alone is farther from the truth than the mean. The rate is measured
    on the first subject that can be read; reading and writing files is not in it.

    Raises:
        InputError: the seconds do not buy one evaluation a slice, or no subject can be
            read.
    """
    question = _first_question(trained, subjects)
    rate = evaluations_a_second(trained, scoring, question)
    slices = len(question.z)
    draws = affordable(order.seconds, slices, rate, scoring.few)
    if draws is None:
        raise InputError(
            f"--budget-seconds is {order.seconds:g}, and one evaluation of the network "
            f"for each of the {slices} slices of {question.name} takes "
            f"{slices / rate:.3g} s here: wanted at least that."
        )
    sampler = "warm" if draws else "mean"
    evaluations = 1 + draws * scoring.few
    print(
        f"--budget-seconds {order.seconds:g}: {rate:.3g} evaluations a second, "
        f"{slices} slices of {question.name}: --sampler {sampler} --draws "
        f"{max(draws, 1)}, {evaluations} evaluations a slice, about "
        f"{evaluations * slices / rate:.3g} s a subject",
        flush=True,
    )
    return dataclasses.replace(order, sampler=sampler, draws=max(draws, 1))


def affordable(seconds: float, slices: int, rate: float, few: int) -> int | None:
    """The draws that `seconds` buy after the mean, each of `few` evaluations a slice:
    2 to MOST, or 0; None if they do not buy the mean."""
    evaluations = seconds * rate / slices
    if evaluations < 1:
        return None
    draws = int((evaluations - 1) / few)
    return min(draws, MOST) if draws >= 2 else 0


def evaluations_a_second(
    trained: Trained, scoring: Scoring, question: Question
) -> float:
    """How many slices the compiled network answers a second, in full microbatches."""
    answer = make_answer(trained, "mean", scoring)
    z = np.resize(question.z, scoring.microbatch)
    rows = (
        question.images[np.resize(np.arange(len(question.z)), len(z))],
        np.tile(question.missing, (len(z), 1)),
        slice_addresses(question.name, z, draw=0),
    )
    answer(*rows)  # compiles
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < MEASURED or not runs:
        answer(*rows)
        runs += 1
    return runs * len(z) / elapsed


def _first_question(trained: Trained, subjects: list[Subject]) -> Question:
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
