"""The training step beside what a PyTorch user would run, in one run.

    python -m ummcsgm.benchmarks.train_step [--config FILE] [--batch N] [--repeats R]

Three networks on one constant batch and one device, in turn, `repeats` times: ours, with the
training step itself; its PyTorch twin, channels last, with the same parameters, whose outputs are
compared with ours first; MONAI's DiffusionModelUNet with as many FLOPs as ours. The twin
is of the mm-CSN whose score is about 0, trained by Adam: `network.preconditioning` is edm and
`train.optimizer` is adam here, whatever the config says. Every PyTorch step draws noise, weighs
the loss, clips, runs Adam and averages parameters as ours does: eagerly on a CPU, by torch.compile
on a GPU or with --compile. Reported are images a second, their ratios, and the GFLOP/s of our step
and MONAI's (a step counts as three forward passes) beside those of one large matrix product, which
no network reaches. Needs the extra `bench`.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import jax
import numpy as np

from ummcsgm.benchmarks.networks import read_config, start_training, with_edm
from ummcsgm.benchmarks.report import make_parser, print_report
from ummcsgm.benchmarks.torch_mm_csn import TorchMMCSN
from ummcsgm.benchmarks.torch_networks import (
    TorchNetwork,
    forward_flops,
    make_monai,
    make_torch_twin,
    product_rate,
    torch_has_gpu,
)
from ummcsgm.config import build
from ummcsgm.distributed import devices
from ummcsgm.types import Batch, Config

# The largest difference of the outputs, as a share of the largest output.
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.1}


def make_ours(config: Config, batch: int) -> SimpleNamespace:
    """`step()` and `answer()` of our network with the preconditioning `edm`, and what they run
    on."""
    config = with_edm(config)
    config.train.batch = batch
    config.train.optimizer = "adam"  # as the PyTorch twin's
    devices.use_cpu_cores(batch // config.train.accumulate)
    build.check_config(config, jax.device_count())
    model, step, state = start_training(config)
    params = jax.tree.map(_perturb, state.params)  # a new network's output is 0
    step = functools.partial(devices.pmap_step(step), jax.random.key(1))
    modalities = model.network.modalities
    rng = np.random.default_rng(0)
    shape = (batch, *config.data.grid, model.network.channels())
    images = rng.normal(size=shape).astype(np.float32) * config.data.image_std
    present = np.ones((batch, modalities), bool)
    shards = devices.shard(Batch(images, present, np.ones(batch, bool)))
    missing = np.eye(modalities, dtype=bool)[np.arange(batch) % modalities]
    inputs = (images, missing, np.linspace(-1, 1, batch, dtype=np.float32))
    states = [devices.replicate(state.replace(params=params))]
    forward = devices.shard_over_rows(model.network.apply)
    replicated = devices.replicate(params)

    def take_step() -> jax.Array:
        states[0], metrics = step(states[0], shards)
        return metrics["loss"]

    return SimpleNamespace(
        network=model.network,
        params=params,
        inputs=inputs,
        step=take_step,
        answer=lambda: forward(replicated, *inputs),
    )


def _perturb(leaf: jax.Array) -> np.ndarray:
    noise = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return np.asarray(leaf) + 0.02 * noise.astype(np.float32)


def check_twin(ours: SimpleNamespace, twin: TorchNetwork) -> dict:
    """How far the twin's outputs are from ours. Raises ValueError if too far."""
    output, other = np.asarray(ours.answer()), twin.answer().cpu().numpy()
    count = sum(leaf.size for leaf in jax.tree.leaves(ours.params))
    if output.shape != other.shape or count != twin.parameters:
        raise ValueError(
            f"the twin has {twin.parameters} parameters and outputs {other.shape}; the "
            f"network has {count} and outputs {output.shape}."
        )
    difference = float(np.abs(output - other).max() / np.abs(output).max())
    if not difference <= AGREEMENT[np.dtype(ours.network.dtype).name]:
        raise ValueError(f"the twin's outputs differ from the network's by {difference:.2g}.")
    return {"parameters": count, "answer": [*output.shape], "apart": round(difference, 7)}


def images_per_second(
    networks: dict[str, tuple[Callable, Callable]], calls: int, images: int
) -> dict[str, float]:
    """The rate of each (work, wait), in turn, with `calls` calls each of so many images."""
    rates = {}
    for name, (work, wait) in networks.items():
        start = time.perf_counter()
        for _ in range(calls):
            result = work()
        wait(result)
        rates[name] = calls * images / (time.perf_counter() - start)
    return rates


def measure(flags: argparse.Namespace) -> dict:
    """The report."""
    ours = make_ours(read_config(flags.config), flags.batch)
    compiled = flags.compile or torch_has_gpu()
    twin = make_torch_twin(ours.network, ours.params, ours.inputs, compiled=compiled)
    agreement = check_twin(ours, twin)
    flops = forward_flops(TorchMMCSN(ours.network, ours.params), ours.inputs)
    monai, size = make_monai(flops, ours.inputs, compiled=compiled)
    torch_networks = {"twin": twin, "monai": monai}
    report = {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "batch": flags.batch,
        "preconditioning": "edm",
        "torch": "compiled" if compiled else "eager",
        "twin": agreement,
        "gflop_an_image": flops / 1e9,
        "monai": size,
    }
    for kind in ("step", "answer"):
        works = {"ours": (getattr(ours, kind), jax.block_until_ready)} | {
            name: (getattr(network, kind), network.wait) for name, network in torch_networks.items()
        }
        images_per_second(works, 3, flags.batch)  # compiles
        turns = [images_per_second(works, flags.calls, flags.batch) for _ in range(flags.repeats)]
        report[f"{kind}_images_per_s"] = {
            name: [round(turn[name], 1) for turn in turns] for name in works
        }
        for name in torch_networks:
            ratios = [turn["ours"] / turn[name] for turn in turns]
            report[f"{kind}_to_{name}"] = [round(ratio, 3) for ratio in ratios]
            report[f"median_{kind}_to_{name}"] = round(statistics.median(ratios), 3)
    sizes = {"ours": flops / 1e9, "monai": size["gflop_an_image"]}
    report["step_gflop_per_s"] = {
        name: round(3 * gflop * statistics.median(report["step_images_per_s"][name]))
        for name, gflop in sizes.items()  # forward, and twice that for the gradient
    }
    report["product_gflop_per_s"] = round(product_rate(ours.network.dtype))
    return report


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", type=int, default=30, help="a turn")
    explanation = "compile PyTorch; on a CPU this needs a C++ compiler"
    parser.add_argument("--compile", action="store_true", help=explanation)
    parser.add_argument("--repeats", type=int, default=7)
    flags = parser.parse_args()
    print_report(measure(flags), flags.json)


if __name__ == "__main__":
    main()
