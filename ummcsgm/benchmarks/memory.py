"""How much memory training takes, by batch, and completing a subject, by draws.

    python -m ummcsgm.benchmarks.memory [--config FILE] [--parts training,completing]
        [--grid H W] [--batches 1,2,4,8] [--shape X Y Z] [--draws 4,32] [--few N]
        [--json FILE]

training    MiB of a training step of the config's network, with rematerialisation at
            every level and without, and the slope of a line through them, MiB an
            example. `compiled` is what XLA tells that the compiled step needs:
            arguments, results and all between. `kept` is what the forward pass of the
            loss leaves for the gradient, parameters and all, as JAX tells it before
            anything is compiled: the backend does not matter. On a CPU look at `kept`:
            XLA there finds that what is computed again is what was computed before,
            and keeps it after all, so that `compiled` hardly differs. Where the device
            tells its own peak, one step is run, and that told too.
completing  The peak of a process that completes a phantom subject by `complete` itself,
            files and all, with one modality missing and so many draws of `warm`: in
            MiB, how much the last is above the first, and their ratio. The network is
            a small one and takes `--few` steps: what it needs does not depend on draws.

Every number is of a process of its own.
"""

import argparse
import contextlib
import copy
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.benchmarks.data import peak_mib
from ummcsgm.benchmarks.report import make_parser, tell
from ummcsgm.benchmarks.training import start_of
from ummcsgm.benchmarks.untrained import random_params, read_config, untrained, write_subject
from ummcsgm.config import build
from ummcsgm.data.phantom.make import FIELD_OF_VIEW
from ummcsgm.diffusion.loss import draw_dsm_inputs, dsm_and_variance_losses
from ummcsgm.distributed import devices
from ummcsgm.inference.complete import complete
from ummcsgm.inference.results import CompletionOptions
from ummcsgm.training import checkpoint
from ummcsgm.types import Array, Batch, Config, InputError, Params

PARTS = ("training", "completing")
MIB = 2**20
SMALL = {
    "train.remat": (False,),
    "network.widths": (32,),
    "network.blocks": (1,),
    "network.pixel_width": 8,
    "network.pixel_layers": 1,
    "network.context_channels": 2,
}


def with_remat(config: Config, on: bool) -> Config:
    """The config, with rematerialisation at every level of the network or at none."""
    config = copy.deepcopy(config)
    config.train.remat = (on,) * len(config.network.widths)
    return config


def apart(work: Callable, *arguments: Any) -> Any:
    """`work(*arguments)` in a new process, whose memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, *arguments).result()


def step_mib(file: str, grid: tuple[int, int], batch: int, remat: bool) -> dict:
    """MiB of a training step of `batch` slices: `compiled`, as XLA tells; `kept`, what
    the forward pass leaves for the gradient; and `device`, the peak that one step
    reaches, None where that is not told."""
    config = with_remat(read_config(file, grid), remat)
    config.train.accumulate = 1  # the batch is one microbatch
    model, step, state = start_of(config)
    modalities = model.network.modalities
    images = np.ones((batch, *config.data.grid, model.network.channels()), np.float16)
    present = np.ones((batch, modalities), bool)
    rows = devices.shard(Batch(images, present, np.ones(batch, bool)))
    asked = (jax.random.key(1), devices.replicate(state), rows)
    compiled = devices.pmap_step(step).lower(*asked).compile()
    told = compiled.memory_analysis()
    total = told.argument_size_in_bytes + told.output_size_in_bytes
    total += told.temp_size_in_bytes - told.alias_size_in_bytes
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        jax.block_until_ready(compiled(*asked))
        stats = jax.local_devices()[0].memory_stats()
    peak = None if stats is None else round(stats["peak_bytes_in_use"] / MIB, 1)
    told = {"compiled": round(total / MIB, 1), "device": peak}
    own = jax.tree.map(lambda leaf: leaf[0], rows)
    return told | {"kept": round(kept_bytes(config, state.params, own) / MIB, 1)}


def kept_bytes(config: Config, params: Params, batch: Batch) -> int:
    """What the forward pass of training's loss leaves for the gradient, by JAX."""
    model, objective = build.build_model(config), build.build_objective(config)
    rows = len(batch.valid)

    def left(key: jax.Array, params: Params, batch: Batch) -> Any:
        images = batch.images.astype(jnp.float32)
        place, full = jnp.arange(rows), batch._replace(images=images)
        questions = draw_dsm_inputs(key, objective, model.sde, full, place, rows)

        def total(params: Params) -> Array:
            own = dsm_and_variance_losses(model, params, objective, images, questions)
            return sum(one.sum() for one in own if one is not None)

        return jax.vjp(total, params)[1]  # a tree of what it remembers

    leaves = jax.tree.leaves(jax.eval_shape(left, jax.random.key(0), params, batch))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def measure_training(flags: argparse.Namespace) -> dict:
    """Peaks of the training step by batch, without rematerialisation and with it."""
    batches = [int(number) for number in flags.batches.split(",")]
    ways = {"plain": False, "rematerialised": True}
    asked = (flags.config, tuple(flags.grid))
    told = {
        name: [apart(step_mib, *asked, batch, remat) for batch in batches]
        for name, remat in ways.items()
    }
    report: dict[str, Any] = {"batches": batches}
    for name, peaks in told.items():
        report[name] = {"device_peak_mib": [peak["device"] for peak in peaks]}
        for kind in ("compiled", "kept"):
            mib = [peak[kind] for peak in peaks]
            report[name][f"{kind}_mib"] = mib
            if len(batches) > 1:
                slope = round(float(np.polyfit(batches, mib, 1)[0]), 2)
                report[name][f"{kind}_mib_an_example"] = slope
    plain, rematerialised = (told[name][-1] for name in ways)
    for kind in ("compiled", "kept"):
        report[f"{kind}_ratio"] = round(rematerialised[kind] / plain[kind], 3)
    return report


def write_workdir(workdir: Path, config: Config, shape: tuple[int, int, int]) -> None:
    """A workdir whose checkpoint holds a network that was not trained, for subjects of
    such voxels as a phantom of `shape` has."""
    trained = untrained(config)
    spacing = [FIELD_OF_VIEW[axis] / shape[axis] for axis in (1, 0)]
    about = {"config": build.config_to_json(config), "scales": trained.scales}
    about |= {"ranges": trained.ranges, "spacing": spacing, "data": trained.data}
    with checkpoint.open_checkpoints(workdir, keep=1) as checkpoints:
        params = random_params(trained.model, trained.space.grid)
        checkpoint.save(checkpoints, 1, {"step": jnp.int32(1)}, params, about)


def prepare_run(folder: Path, flags: argparse.Namespace) -> str:
    """`folder` holds run/ and subjects/; the modality to do without."""
    config = read_config(flags.config, tuple(flags.grid))
    config.update_from_flattened_dict({**SMALL, "evaluate.sampler_steps": flags.few})
    write_workdir(folder / "run", config, tuple(flags.shape))
    names = tuple(config.data.modalities)
    write_subject(folder / "subjects", names, tuple(flags.shape))
    return names[0]


def completing_mib(folder: Path, missing: str, draws: int) -> float | None:
    """The peak of this process, when it has completed the subject."""
    levels, target = (0.05, 0.5, 0.95), folder / f"{draws}"
    order = CompletionOptions((missing,), (), draws, levels, "warm", overwrite=True, keep=False)
    folders = (str(folder / "subjects"), str(target))
    with contextlib.redirect_stdout(sys.stderr):
        if not complete(folder / "run", None, folders, order, (0, 1)):
            raise InputError("the phantom subject could not be completed.")
    return peak_mib()


def measure_completing(folder: Path, flags: argparse.Namespace) -> dict:
    """Peaks of completing a subject, by the number of draws."""
    missing = apart(prepare_run, folder, flags)
    draws = [int(number) for number in flags.draws.split(",")]
    peaks = [apart(completing_mib, folder, missing, number) for number in draws]
    report = {"shape": list(flags.shape), "draws": draws, "few": flags.few}
    if None in peaks:  # not told here
        return report | {"peak_mib": None}
    return report | {
        "peak_mib": [round(peak) for peak in peaks],
        "growth_mib": round(peaks[-1] - peaks[0], 1),
        "ratio": round(peaks[-1] / peaks[0], 3),
    }


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--parts", default=",".join(PARTS), help="one of them, or both")
    parser.add_argument("--grid", type=int, nargs=2, default=(192, 160))
    parser.add_argument("--batches", default="1,2,4,8", help="slices a training step")
    parser.add_argument("--shape", type=int, nargs=3, default=(240, 240, 155))
    parser.add_argument("--draws", default="4,32", help="of a completed subject")
    parser.add_argument("--few", type=int, default=1, help="steps of a draw")
    flags = parser.parse_args()
    parts, report = flags.parts.split(","), {"grid": list(flags.grid)}
    try:
        if "training" in parts:
            report["training"] = measure_training(flags)
        if "completing" in parts:
            with tempfile.TemporaryDirectory() as folder:
                report["completing"] = measure_completing(Path(folder), flags)
    except InputError as error:
        parser.error(str(error))
    tell(report, flags.json)


if __name__ == "__main__":
    main()
