"""How long each method of a study may train: equal images, or equal seconds."""

import functools
import json
import pathlib
import time

import jax

from ummcsgm.config import build
from ummcsgm.config.build_data import prepare
from ummcsgm.config.build_methods import BY_SECONDS, build_budget, build_trainable, method_folder
from ummcsgm.data.loader import Batches
from ummcsgm.distributed import devices, processes
from ummcsgm.training.logging import training_seconds
from ummcsgm.training.train import training_batches
from ummcsgm.types import Config, InputError
from ummcsgm.utils.atomic_io import read_json, write_atomic

WARM, TIMED = 3, 20  # steps


def allowed(config: Config, workdir: pathlib.Path, name: str) -> Config:
    """The config with the steps that the method of this name may make.

    As many as the mm-CSN; or, where config.study.budget is seconds, as many as the
    method makes here in the time that the mm-CSN trained. That number is measured once
    and kept in the method's allowance.json, so that a stopped run goes on as it began;
    it is measured anew when the mm-CSN has trained for longer.

    Raises:
        InputError: seconds are wanted, and the mm-CSN has not been trained here.
    """
    if build_budget(config) != BY_SECONDS:
        return config
    path = method_folder(workdir, name) / "allowance.json"
    seconds = training_seconds(workdir)
    if seconds is None:
        raise InputError(
            f"config.study.budget is 'seconds', those that the mm-CSN trained, and "
            f"{workdir} has no log of it: train it there first."
        )
    if not path.is_file() or read_json(path)["seconds"] != seconds:
        steps = max(1, round(seconds / _seconds_per_step(config, workdir, name)))
        told = {"seconds": seconds, "steps": steps}
        processes.main_process_first(functools.partial(_write_first, path, told))
    return build.with_steps(config, read_json(path)["steps"])


def _write_first(path: pathlib.Path, told: dict) -> None:
    """Of several processes the first one's measurement counts for all."""
    if processes.is_main():
        write_atomic(path, json.dumps(told))


def _seconds_per_step(config: Config, workdir: pathlib.Path, name: str) -> float:
    _, stores = prepare(config, workdir)
    course, plan = build_trainable(config, name), build.build_train_options(config)
    batches: Batches = training_batches(stores["train"], plan)
    state = devices.replicate(course.start(jax.random.key(plan.seed)))
    step = functools.partial(devices.pmap_step(course.step), jax.random.key(0))
    rows = [devices.shard(batches.at(number)) for number in range(WARM + TIMED)]
    start = 0.0
    for number, one in enumerate(rows):
        if number == WARM:
            jax.block_until_ready(state)
            start = time.perf_counter()
        state, _ = step(state, one)
    jax.block_until_ready(state)
    return (time.perf_counter() - start) / TIMED
