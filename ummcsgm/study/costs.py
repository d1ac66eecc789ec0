"""What a method costs: parameters, operations, seconds of training and of a prediction."""

import json
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np

from ummcsgm.data.subjects import network_stacks
from ummcsgm.evaluation.methods import TrainedMethod
from ummcsgm.evaluation.subject import EvaluatedSubject
from ummcsgm.training.logging import training_seconds
from ummcsgm.types import Missing, Stacks
from ummcsgm.utils.atomic_io import read_json, write_atomic
from ummcsgm.utils.provenance import code_digest

FILE = "costs.json"
REPEATS = 5  # of a timed prediction


def method_costs(
    folder: pathlib.Path,
    method: TrainedMethod,
    read: Callable[[], EvaluatedSubject],
    microbatch: int,
) -> dict:
    """The costs of the method that was trained in `folder`; None for what is unknown.

    GFLOP and seconds of a slice are measured once, on the slices of the subject that
    `read` gives, and kept in folder/costs.json until the parameters or the code change.
    """
    path, keys = folder / FILE, ("gflop", "seconds_per_slice")
    measured = read_json(path) if path.is_file() else {}
    versions = {"digest": method.digest, "code_sha256": code_digest()}
    if not (versions.items() <= measured.items() and all(key in measured for key in keys)):
        seconds = _seconds_per_slice(method, read(), microbatch)
        measured = versions | {"gflop": method.costs.count_gflop()}
        measured["seconds_per_slice"] = seconds
        write_atomic(path, json.dumps(measured))
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
