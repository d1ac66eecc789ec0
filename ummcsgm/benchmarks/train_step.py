"""The training step beside what a PyTorch user would run, in one run.

    python -m ummcsgm.benchmarks.train_step [--config FILE] [--batch N] [--repeats R]

Three contestants on one constant batch and one device, in turn, `repeats` times: ours,
the very step of training; its PyTorch twin, channels last, with the same parameters,
whose answers are checked against ours first; MONAI's DiffusionModelUNet with as many
FLOPs as ours. Every PyTorch step draws, perturbs, weighs, clips, runs Adam and averages
parameters as ours does; eager on a CPU, by torch.compile on a GPU or with --compile.
Told are images a second, their ratios, and the GFLOP/s of ours and MONAI's step, a step
taken for three forward passes, beside those of one large matrix product, which no
network reaches. Wants the extra `bench`.
"""

import argparse
import functools
import runpy
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np

from ummcsgm.benchmarks.report import make_parser, tell
from ummcsgm.benchmarks.rivals import (
    Rival,
    forward_flops,
    make_monai,
    make_twin,
    product_rate,
    torch_has_gpu,
)
from ummcsgm.benchmarks.training import start_of
from ummcsgm.benchmarks.twin import Twin
from ummcsgm.config import build
from ummcsgm.distributed import devices
from ummcsgm.types import Batch, Config

AGREED = {"float32": 1e-4, "bfloat16": 0.1}  # of the largest value of an answer


def make_ours(config: Config, batch: int) -> SimpleNamespace:
    """`step` and `answer`, functions of nothing, and what they are made of."""
    config.train.batch = batch
    devices.use_cpu_cores(batch // config.train.accumulate)
    build.check_config(config, jax.device_count())
    model, step, state = start_of(config)
    params = jax.tree.map(_stirred, state.params)  # a new network answers 0
    step = functools.partial(devices.pmap_step(step), jax.random.key(1))
    modalities = model.network.modalities
    rng = np.random.default_rng(0)
    shape = (batch, *config.data.grid, model.network.channels())
    images = rng.normal(size=shape).astype(np.float32) * config.data.image_std
    everything = np.ones((batch, modalities), bool), np.ones(batch, bool)
    rows = devices.shard(Batch(images, *everything))
    missing = np.eye(modalities, dtype=bool)[np.arange(batch) % modalities]
    asked = (images, missing, np.linspace(-1, 1, batch, dtype=np.float32))
    states = [devices.replicate(state.replace(params=params))]
    forward = devices.shard_over_rows(model.network.apply)
    laid = devices.replicate(params)

    def take_step() -> jax.Array:
        states[0], told = step(states[0], rows)
        return told["loss"]

    return SimpleNamespace(
        network=model.network,
        params=params,
        asked=asked,
        step=take_step,
        answer=lambda: forward(laid, *asked),
    )


def _stirred(leaf: jax.Array) -> np.ndarray:
    noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return np.asarray(leaf) + 0.02 * noise.astype(np.float32)


def check_twin(ours: SimpleNamespace, twin: Rival) -> dict:
    """How the twin agrees with ours. Raises ValueError if it does not."""
    answer, other = np.asarray(ours.answer()), twin.answer().cpu().numpy()
    count = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    if answer.shape != other.shape or count != twin.parameters:
        raise ValueError(
            f"the twin answers {other.shape} with {twin.parameters} parameters, and "
            f"the network {answer.shape} with {count}."
        )
    apart = float(np.abs(answer - other).max() / np.abs(answer).max())
    if not apart <= AGREED[np.dtype(ours.network.dtype).name]:
        raise ValueError(f"the twin's answers differ from the network's by {apart:.2g}.")
    return {"parameters": count, "answer": [*answer.shape], "apart": round(apart, 7)}


def rates(
    contestants: dict[str, tuple[Callable, Callable]], calls: int, images: int
) -> dict[str, float]:
    """Images a second of each (work, wait), in turn, `calls` calls each."""
    found = {}
    for name, (work, wait) in contestants.items():
        start = time.perf_counter()
        for _ in range(calls):
            result = work()
        wait(result)
        found[name] = calls * images / (time.perf_counter() - start)
    return found


def measure(flags: argparse.Namespace) -> dict:
    """What is printed."""
    ours = make_ours(runpy.run_path(flags.config)["get_config"](), flags.batch)
    compiled = flags.compile or torch_has_gpu()
    twin = make_twin(ours.network, ours.params, ours.asked, compiled=compiled)
    agreed = check_twin(ours, twin)
    flops = forward_flops(Twin(ours.network, ours.params), ours.asked)
    monai, size = make_monai(flops, ours.asked, compiled=compiled)
    rivals = {"twin": twin, "monai": monai}
    report = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch": flags.batch,
        "torch": "compiled" if compiled else "eager",
        "twin": agreed,
        "gflop_an_image": flops / 1e9,
        "monai": size,
    }
    for kind in ("step", "answer"):
        works = {"ours": (getattr(ours, kind), jax.block_until_ready)} | {
            name: (getattr(own, kind), own.wait) for name, own in rivals.items()
        }
        rates(works, 3, flags.batch)  # compiles
        turns = [rates(works, flags.calls, flags.batch) for _ in range(flags.repeats)]
        report[f"{kind}_images_per_s"] = {
            name: [round(turn[name], 1) for turn in turns] for name in works
        }
        for name in rivals:
            ratios = [turn["ours"] / turn[name] for turn in turns]
            report[f"{kind}_to_{name}"] = [round(ratio, 3) for ratio in ratios]
            report[f"median_{kind}_to_{name}"] = round(statistics.median(ratios), 3)
    sizes = {"ours": flops / 1e9, "monai": size["gflop_an_image"]}
    report["step_gflop_per_s"] = {
        name: round(3 * own * statistics.median(report["step_images_per_s"][name]))
        for name, own in sizes.items()  # forward, and twice that for the gradient
    }
    report["product_gflop_per_s"] = round(product_rate(ours.network.dtype))
    return report


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", type=int, default=30, help="a turn")
    told = "PyTorch compiles; on a CPU with a C++ compiler"
    parser.add_argument("--compile", action="store_true", help=told)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    tell(measure(flags), flags.json)


if __name__ == "__main__":
    main()
