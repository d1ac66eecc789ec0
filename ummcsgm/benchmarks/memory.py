"""How much memory training takes, by batch, and completing a subject, by draws.

    python -m ummcsgm.benchmarks.memory [--config FILE] [--parts training,completing]
        [--grid H W] [--batches 1,2,4,8] [--shape X Y Z] [--draws 4,32] [--few N]
        [--json FILE]

training    MiB of a training step of the config's network, with rematerialisation at
            every level and without it, by batch, and the slope of a line through them in
            MiB an example. `compiled` is what XLA says the compiled step needs:
            arguments, results and everything between. `kept` is what the forward pass of
            the loss keeps for the gradient, parameters included, as JAX says before
            anything is compiled, whatever the backend. On a CPU look at `kept`: XLA
            there merges what is computed again with what was computed before, and keeps
            it after all, so that `compiled` hardly differs. Where the device reports its
            own peak, one step is run and the peak is reported too.
completing  The peak of a process that completes a phantom subject with `complete`, files
            included, with one modality missing and K draws of `warm`: in MiB, the
            difference of the last and the first, and their ratio. The network is a small
            one with `--few` steps: its memory does not depend on the draws.

Each number is measured in a new process.
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
from ummcsgm.benchmarks.networks import (
    make_untrained_model,
    random_params,
    read_config,
    start_training,
    write_subject,
)
from ummcsgm.benchmarks.report import make_parser, print_report
from ummcsgm.config import build
from ummcsgm.data.phantom.make import FIELD_OF_VIEW
from ummcsgm.diffusion.loss import draw_dsm_inputs, training_losses
from ummcsgm.distributed import devices
from ummcsgm.inference.complete import complete
from ummcsgm.inference.outputs import CompletionOptions
from ummcsgm.training import checkpoint
from ummcsgm.types import Array, Batch, Config, InputError, Params

PARTS = ("training", "completing")
MIB = 2**20
SMALL = {
    "train.remat": (False,),
    "network.widths": (32,),
    "network.residual_widths": (32,),
    "network.blocks": (1,),
    "network.pixel_width": 8,
    "network.pixel_layers": 1,
    "network.context_channels": 2,
}


def with_remat(config: Config, on: bool) -> Config:
    """The config with rematerialisation at every level of the network, or at none."""
    config = copy.deepcopy(config)
    config.train.remat = (on,) * len(config.network.widths)
    return config


def run_in_new_process(work: Callable, *arguments: Any) -> Any:
    """`work(*arguments)`, computed in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(work, *arguments).result()


def step_mib(file: str, grid: tuple[int, int], batch: int, remat: bool) -> dict:
    """MiB of a training step of `batch` slices: `compiled`, what XLA needs; `kept`, what
    the forward pass keeps for the gradient; `device`, the peak that one step reaches,
    None where the device does not report it."""
    config = with_remat(read_config(file, grid), remat)
    config.train.accumulate = 1  # the batch is one microbatch
    model, step, state = start_training(config)
    modalities = model.network.modalities
    images = np.ones((batch, *config.data.grid, model.network.channels()), np.float16)
    present = np.ones((batch, modalities), bool)
    shards = devices.shard(Batch(images, present, np.ones(batch, bool)))
    arguments = (jax.random.key(1), devices.replicate(state), shards)
    compiled = devices.pmap_step(step).lower(*arguments).compile()
    analysis = compiled.memory_analysis()
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
    total += analysis.temp_size_in_bytes - analysis.alias_size_in_bytes
    stats = jax.local_devices()[0].memory_stats()
    if stats is not None:
        jax.block_until_ready(compiled(*arguments))
        stats = jax.local_devices()[0].memory_stats()
    peak = None if stats is None else round(stats["peak_bytes_in_use"] / MIB, 1)
    shard = jax.tree.map(lambda leaf: leaf[0], shards)
    kept = round(residual_bytes(config, state.params, shard) / MIB, 1)
    return {"compiled": round(total / MIB, 1), "device": peak, "kept": kept}


def residual_bytes(config: Config, params: Params, batch: Batch) -> int:
    """What the forward pass of the training loss keeps for the gradient."""
    model, objective = build.build_model(config), build.build_objective(config)
    examples = len(batch.valid)

    def residuals(key: jax.Array, params: Params, batch: Batch) -> Any:
        images = batch.images.astype(jnp.float32)
        index, batch = jnp.arange(examples), batch._replace(images=images)
        inputs = draw_dsm_inputs(key, objective, model.sde, batch, index, examples)

        def total(params: Params) -> Array:
            *losses, _ = training_losses(model, params, objective, images, inputs)
            return sum(loss.sum() for loss in losses if loss is not None)

        return jax.vjp(total, params)[1]  # a tree of the residuals

    leaves = jax.tree.leaves(jax.eval_shape(residuals, jax.random.key(0), params, batch))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def measure_training(flags: argparse.Namespace) -> dict:
    """Peaks of the training step by batch, without rematerialisation and with it."""
    batches = [int(number) for number in flags.batches.split(",")]
    ways = {"plain": False, "rematerialised": True}
    fixed = (flags.config, tuple(flags.grid))
    measured = {
        name: [run_in_new_process(step_mib, *fixed, batch, remat) for batch in batches]
        for name, remat in ways.items()
    }
    report: dict[str, Any] = {"batches": batches}
    for name, peaks in measured.items():
        report[name] = {"device_peak_mib": [peak["device"] for peak in peaks]}
        for kind in ("compiled", "kept"):
            mib = [peak[kind] for peak in peaks]
            report[name][f"{kind}_mib"] = mib
            if len(batches) > 1:
                slope = round(float(np.polyfit(batches, mib, 1)[0]), 2)
                report[name][f"{kind}_mib_an_example"] = slope
    plain, rematerialised = (measured[name][-1] for name in ways)
    for kind in ("compiled", "kept"):
        report[f"{kind}_ratio"] = round(rematerialised[kind] / plain[kind], 3)
    return report


def write_workdir(workdir: Path, config: Config, shape: tuple[int, int, int]) -> None:
    """A workdir with a checkpoint of random parameters, for the voxels of a phantom of `shape`."""
    trained = make_untrained_model(config)
    spacing = [FIELD_OF_VIEW[axis] / shape[axis] for axis in (1, 0)]
    metadata = {"config": build.config_to_json(config), "scales": trained.scales}
    metadata |= {"ranges": trained.ranges, "spacing": spacing, "data": trained.data}
    metadata |= {"posterior_scales": trained.posterior_scales}
    with checkpoint.open_checkpoints(workdir, keep=1) as checkpoints:
        params = random_params(trained.model, trained.space.grid)
        checkpoint.save(checkpoints, 1, {"step": jnp.int32(1)}, params, metadata)


def prepare_run(folder: Path, flags: argparse.Namespace) -> str:
    """Writes run/ and subjects/ into `folder`; returns the missing modality."""
    config = read_config(flags.config, tuple(flags.grid))
    config.update_from_flattened_dict({**SMALL, "evaluate.sampler_steps": flags.few})
    write_workdir(folder / "run", config, tuple(flags.shape))
    names = tuple(config.data.modalities)
    write_subject(folder / "subjects", names, tuple(flags.shape))
    return names[0]


def completing_mib(folder: Path, missing: str, draws: int) -> float | None:
    """The peak of this process after completing the subject with so many draws."""
    options = CompletionOptions(
        (missing,), draws=draws, sampler="warm", overwrite=True, keep_draws=False
    )
    folders = (str(folder / "subjects"), str(folder / f"{draws}"))
    with contextlib.redirect_stdout(sys.stderr):
        if not complete(folder / "run", None, folders, options, (0, 1)):
            raise InputError("the phantom subject could not be completed.")
    return peak_mib()


def measure_completing(folder: Path, flags: argparse.Namespace) -> dict:
    """Peaks of completing a subject, by the number of draws."""
    missing = run_in_new_process(prepare_run, folder, flags)
    draws = [int(number) for number in flags.draws.split(",")]
    peaks = [run_in_new_process(completing_mib, folder, missing, number) for number in draws]
    report = {"shape": list(flags.shape), "draws": draws, "few": flags.few}
    if None in peaks:  # the system does not report it
        return report | {"peak_mib": None}
    return report | {
        "peak_mib": [round(peak) for peak in peaks],
        "growth_mib": round(peaks[-1] - peaks[0], 1),
        "ratio": round(peaks[-1] / peaks[0], 3),
    }


def main() -> None:
    """Prints the report."""
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
    print_report(report, flags.json)


if __name__ == "__main__":
    main()
