"""Seconds a subject -> a sampler and a number of draws, by what both are measured to cost.

What was chosen for an output folder is saved there, so that a run that was stopped goes
on with it, and so do processes that share the folder.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.data.layouts.layout import Subject
from ummcsgm.distributed import devices
from ummcsgm.inference.inputs import SubjectInputs, load_inputs
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.inference.predictor import (
    TrainedModel,
    make_mean_predictor,
    make_sampler,
    slice_addresses,
)
from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

MAX_DRAWS = 32  # more of them hardly move a mean, an sd or a 90 % interval
TIMED_SECONDS = 1.0  # for which each cost is measured
FILE = "budget.json"
SAMPLER = "warm"


class Costs(NamedTuple):
    """Seconds a slice, in full microbatches: of the mean, of what all draws of a slice share, and
    of each draw."""

    mean: float
    shared: float
    draw: float

    def seconds(self, slices: int, draws: int) -> float:
        """The seconds of the mean of so many slices, and of so many draws of each."""
        return slices * (self.mean + (self.shared + draws * self.draw if draws else 0))


def within_budget(
    options: CompletionOptions,
    trained: TrainedModel,
    sampling: EvaluationOptions,
    subjects: list[Subject],
    target: pathlib.Path,
) -> CompletionOptions:
    """Returns `options` with the sampler and the draws that the seconds a subject buy.

    The mean first; then as many draws of `warm` as there is time for, if two or more, since one
    alone is farther from the truth than the mean. Costs are measured on the first subject that
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
    sampler = SAMPLER if draws else "mean"
    print(
        f"--budget-seconds {options.budget_seconds:g}: --sampler {sampler} --draws "
        f"{max(draws, 1)} (kept in {path})",
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
    costs = measure_costs(trained, sampling, inputs)
    # The last microbatch is filled up; draws share theirs, so there it is little.
    size = devices.round_up_to_devices(sampling.microbatch)
    slices = -(-len(inputs.z) // size) * size
    draws = affordable_draws(options.budget_seconds, slices, costs)
    if draws is None:
        raise InputError(
            f"--budget-seconds is {options.budget_seconds:g}, and one evaluation of the network "
            f"for each of the {len(inputs.z)} slices of {inputs.name} takes "
            f"{costs.seconds(slices, 0):.3g} s here: wanted at least that."
        )
    if options.quantiles_requested and not draws:
        raise InputError(
            f"--budget-seconds is {options.budget_seconds:g}, and --quantiles wants 2 draws of "
            f"{inputs.name}, which take {costs.seconds(slices, 2):.3g} "
            "s here: wanted at least that, or no --quantiles."
        )
    print(
        f"{costs.mean:.3g} s a slice for the mean, {costs.draw:.3g} for a draw; {inputs.name} has "
        f"{len(inputs.z)} slices: about {costs.seconds(slices, draws):.3g} s a subject, "
        "beside compiling, reading and writing",
        flush=True,
    )
    return draws


def affordable_draws(seconds: float, slices: int, costs: Costs) -> int | None:
    """Returns the draws of each slice that `seconds` buy after the mean: 2 to MAX_DRAWS, or 0;
    None if they do not buy the mean."""
    if costs.seconds(slices, 0) > seconds:
        return None
    draws = int((seconds / slices - costs.mean - costs.shared) / costs.draw)
    return min(draws, MAX_DRAWS) if draws >= 2 else 0


def measure_costs(
    trained: TrainedModel, sampling: EvaluationOptions, inputs: SubjectInputs
) -> Costs:
    """Returns what a slice costs, by timing the mean, one draw and two draws of a microbatch."""
    size = devices.round_up_to_devices(sampling.microbatch)
    rows = np.resize(np.arange(len(inputs.z)), size)
    images, missing = inputs.images[rows], np.tile(inputs.missing, (size, 1))
    mean, sample = make_mean_predictor(trained, sampling), make_sampler(trained, SAMPLER, sampling)
    estimate = mean(images, missing)
    addresses = [slice_addresses(inputs.name, inputs.z[rows], draw=k) for k in range(2)]

    def draw(count: int) -> None:
        for _ in sample(images, missing, np.stack(addresses[:count]), estimate):
            pass

    alone = _time(lambda: mean(images, missing))
    one, two = _time(lambda: draw(1)), _time(lambda: draw(2))
    each = max(two - one, 0.1 * one)  # two cannot cost as much as one: the clock was disturbed
    return Costs(alone / size, max(one - each, 0.0) / size, each / size)


def _time(function: Callable[[], object]) -> float:
    """Seconds a call, the first one, which compiles, left out."""
    function()
    start, runs = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < TIMED_SECONDS or not runs:
        function()
        runs += 1
    return elapsed / runs


def _first_readable(trained: TrainedModel, subjects: list[Subject]) -> SubjectInputs:
    refused = None
    for subject in subjects:
        try:
            return load_inputs(trained, subject)[1]
        except (InputError, OSError) as error:
            refused = error
    raise InputError(str(refused))
