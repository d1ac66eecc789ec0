"""What `lax.scan` and the sampler cost beside the network, in one run.

    python -m ummcsgm.benchmarks.sampling [--config FILE] [--batch N] [--repeats R]

Times Algorithm 1 (1000 steps, one compiled scan) against 1000 calls of the jitted
network forward on the same batch, in turn, `repeats` times, and prints each ratio and
their median. Parameters are random: time does not depend on them.
"""

import argparse
import json
import runpy
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ummcsgm import build
from ummcsgm.completion import ask, configurations
from ummcsgm.denoiser import make_denoise
from ummcsgm.sampling import address_keys, algorithm1
from ummcsgm.types import Array

STEPS = 1000


def make_contestants(config_file: str, batch: int) -> tuple[Callable, Callable]:
    """(one network forward, Algorithm 1), jitted, each a function of nothing."""
    config = runpy.run_path(config_file)["get_config"]()
    model, space = build.build_model(config), build.build_space(config)
    modalities = len(space.modalities)
    images = jnp.ones((batch, *space.grid, model.network.channels()))
    table = jnp.asarray(configurations(modalities, proper=True))
    missing = table[jnp.arange(batch) % modalities]
    level = jnp.zeros(batch)
    params = model.network.init(jax.random.key(0), images, missing, level)
    keys = address_keys(0, jnp.arange(batch)[:, None])

    @jax.jit
    def draw(params, images: Array) -> Array:
        denoise = make_denoise(model, params, ask(images, missing))
        like = images[..., :modalities]
        return algorithm1(keys, model.sde, denoise, like, STEPS)

    forward = jax.jit(model.network.apply)
    return (
        lambda: forward(params, images, missing, level),
        lambda: draw(params, images),
    )


def seconds(work: Callable, calls: int) -> float:
    """How long `calls` calls take, the last one's result awaited."""
    start = time.perf_counter()
    for _ in range(calls):
        result = work()
    jax.block_until_ready(result)
    return time.perf_counter() - start


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    forward, draw = make_contestants(flags.config, flags.batch)
    seconds(forward, 2), seconds(draw, 1)
    pairs = [(seconds(forward, STEPS), seconds(draw, 1)) for _ in range(flags.repeats)]
    ratios = [drawn / forwards for forwards, drawn in pairs]
    report = {
        "device": jax.devices()[0].device_kind,
        "batch": flags.batch,
        "forwards_s": [round(pair[0], 2) for pair in pairs],
        "algorithm1_s": [round(pair[1], 2) for pair in pairs],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
