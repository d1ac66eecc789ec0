"""What a method costs: parameters, operations, seconds of training and of a prediction."""

import pathlib
import statistics
import time

import numpy as np

from ummcsgm.data.subjects import network_stacks
from ummcsgm.evaluation.evaluate import EvaluationSpec, Part, SubjectResult
from ummcsgm.evaluation.methods import TrainedMethod
from ummcsgm.evaluation.subject import EvaluatedSubject
from ummcsgm.training.logging import training_seconds
from ummcsgm.types import Missing, Stacks

REPEATS = 5  # of a timed prediction


def costs_name(method: str) -> str:
    """The name of the part of a method's costs."""
    return f"costs of {method}"


def costs_part(folder: pathlib.Path, spec: EvaluationSpec, method: TrainedMethod) -> Part:
    """GFLOP and seconds of a slice, a record of the first subject, on its slices.

    Measured once, and kept in folder/costs until the parameters or the code change;
    `folder` is where the method was trained.
    """
    microbatch = spec.options.microbatch

    def compute(evaluated: EvaluatedSubject) -> SubjectResult:
        seconds = _seconds_per_slice(method, evaluated, microbatch)
        measured = {"gflop": method.costs.count_gflop(), "seconds_per_slice": seconds}
        return SubjectResult(records=[measured])

    keys = {subject.name: [method.digest, microbatch] for subject in spec.subjects[:1]}
    return Part(folder / "costs", keys, compute)


def method_costs(
    folder: pathlib.Path, method: TrainedMethod, results: dict[str, SubjectResult]
) -> dict:
    """The costs of the method that was trained in `folder`; None for what is unknown.

    `results` are those of `costs_part`.
    """
    (measured,) = (record for result in results.values() for record in result.records)
    return {
        "parameters": method.costs.parameters,
        "gflop": measured["gflop"],
        "train_seconds": training_seconds(folder),
        "images_seen": method.costs.images_seen,
        "steps": method.costs.steps,
        "seconds_per_slice": measured["seconds_per_slice"],
    }


def _seconds_per_slice(
    method: TrainedMethod, evaluated: EvaluatedSubject, microbatch: int
) -> float:
    """The time of one slice in two microbatches, compiled; the median of a few turns."""
    z = np.resize(evaluated.z, 2 * microbatch)
    images = network_stacks(evaluated.prepared, evaluated.modalities, np.unique(z))
    images: Stacks = np.resize(images, (len(z), *images.shape[1:]))
    first = np.arange(len(evaluated.modalities))[None] == 0
    missing: Missing = np.repeat(first, len(z), axis=0)
    method.predict(images, missing)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        method.predict(images, missing)
        seconds.append((time.perf_counter() - start) / len(z))
    return statistics.median(seconds)
