"""Seconds a subject -> a sampler and a number of draws, by a measured rate.

What was chosen for an output folder is saved there, so that a run that was stopped goes
on with it, and so do processes that share the folder.
"""

import dataclasses
import json
import pathlib
import time

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.distributed import devices
from ummcsgm.inference.inputs import SubjectInputs, load_inputs
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.inference.predictor import TrainedModel, make_mean_predictor
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

MAX_DRAWS = 32  # more of them hardly move a mean, an sd or a 90 % interval
TIMED_SECONDS = 1.0  # for which the rate is measured
FILE = "budget.json"


def within_budget(
    options: CompletionOptions,
    trained: TrainedModel,
    sampling: EvaluationOptions,
    subjects: list[Subject],
    target: pathlib.Path,
) -> CompletionOptions:
    """Returns `options` with the sampler and the draws that the seconds a subject buy.

    The mean first; then as many draws of `warm` as there is time for, if two or more, since one
    alone is farther from the truth than the mean. The rate is measured on the first subject that
    can be read, without compiling, reading and writing. What was chosen for the same seconds and
    network in `target` is chosen again, unless `options.overwrite`.

    Raises:
        InputError: the seconds do not buy one evaluation a slice, or the draws that
            the user's quantiles need; or no subject can be read.
    """
    key = {"seconds": options.budget_seconds, "parameters_sha256": trained.digest}
    key["sampler_steps"] = sampling.sampler_steps
    path = target / FILE
    saved = read_json(path) if path.is_file() and not options.overwrite else {}
    if not isinstance(saved, dict) or saved and saved.get("draws") not in range(MAX_DRAWS + 1):
        raise InputError(f"{path} is not a budget of ummcsgm: remove it.")
    same = key.items() <= saved.items()
    if not same or (options.quantiles_requested and not saved["draws"]):
        saved = key | {"draws": _measure_draws(options, trained, sampling, subjects)}
        write_atomic(path, json.dumps(saved, indent=1))
    draws = saved["draws"]
    sampler = "warm" if draws else "mean"
    print(
        f"--budget-seconds {options.budget_seconds:g}: --sampler {sampler} --draws "
        f"{max(draws, 1)}, {1 + draws * sampling.sampler_steps} evaluations a slice (kept in "
        f"{path})",
        flush=True,
    )
    return dataclasses.replace(options, sampler=sampler, draws=max(draws, 1))


def _measure_draws(
    options: CompletionOptions,
    trained: TrainedModel,
    sampling: EvaluationOptions,
    subjects: list[Subject],
) -> int:
    """How many draws the seconds buy, 0 for the mean alone."""
    inputs = _first_readable(trained, subjects)
    rate = evaluations_per_second(trained, sampling, inputs)
    # The last microbatch is filled up; draws share theirs, so there it is little.
    size = devices.round_up_to_devices(sampling.microbatch)
    slices = -(-len(inputs.z) // size) * size
    seconds, steps = options.budget_seconds, sampling.sampler_steps
    draws = affordable_draws(seconds, slices, rate, steps)
    if draws is None:
        raise InputError(
            f"--budget-seconds is {seconds:g}, and one evaluation of the network "
            f"for each of the {len(inputs.z)} slices of {inputs.name} takes "
            f"{slices / rate:.3g} s here: wanted at least that."
        )
    if options.quantiles_requested and not draws:
        raise InputError(
            f"--budget-seconds is {seconds:g}, and --quantiles wants 2 draws of "
            f"{inputs.name}, which take {(1 + 2 * steps) * slices / rate:.3g} "
            "s here: wanted at least that, or no --quantiles."
        )
    print(
        f"{rate:.3g} evaluations a second; {inputs.name} has {len(inputs.z)} "
        f"slices: about {(1 + draws * steps) * slices / rate:.3g} s a subject, "
        "beside compiling, reading and writing",
        flush=True,
    )
    return draws


def affordable_draws(seconds: float, slices: int, rate: float, steps: int) -> int | None:
    """Returns the draws that `seconds` buy after the mean, each of `steps` evaluations a
    slice: 2 to MAX_DRAWS, or 0; None if they do not buy the mean."""
    evaluations = seconds * rate / slices
    if evaluations < 1:
        return None
    draws = int((evaluations - 1) / steps)
    return min(draws, MAX_DRAWS) if draws >= 2 else 0


def evaluations_per_second(
    trained: TrainedModel, sampling: EvaluationOptions, inputs: SubjectInputs
) -> float:
    """Returns how many slices the compiled network evaluates a second, in full microbatches."""
    mean = make_mean_predictor(trained, sampling)
    size = devices.round_up_to_devices(sampling.microbatch)
    images = inputs.images[np.resize(np.arange(len(inputs.z)), size)]
    missing = np.tile(inputs.missing, (size, 1))
    mean(images, missing)  # compiles
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < TIMED_SECONDS or not runs:
        mean(images, missing)
        runs += 1
    return runs * size / elapsed


def _first_readable(trained: TrainedModel, subjects: list[Subject]) -> SubjectInputs:
    refused = None
    for subject in subjects:
        try:
            return load_inputs(trained, subject)[1]
        except (InputError, OSError) as error:
            refused = error
    raise InputError(str(refused))
