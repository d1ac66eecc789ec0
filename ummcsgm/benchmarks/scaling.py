"""How fast training is over several processes of this machine, beside one.

    python -m ummcsgm.benchmarks.scaling [--config FILE] [--counts 1 2 4] [--repeats R]
                                         [--steps S] [--json FILE]

For each count so many processes start and train together: each has one device and its
share of a constant batch of config.train.batch. In turn they take training steps, and the
same steps with sums over their own device alone: the difference is the share of time in
collectives, waiting for slower processes included.

The speed-up is images/s divided by those of the first count; the efficiency is the speed-up divided
by the ratio of the process counts. On a CPU all processes share the cores, and one device uses
about one and a half: that bounds the speed-up, and so do the sums, which go through sockets. One
process with a device a core, as training runs alone, is faster.

Prints a table, then one JSON object.
"""

import argparse
import functools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from ummcsgm.benchmarks.networks import read_config, start_training
from ummcsgm.benchmarks.report import make_parser, print_report
from ummcsgm.config import build
from ummcsgm.distributed import devices, processes
from ummcsgm.types import Batch, Config


def make_runs(config: Config, process_count: int) -> dict[str, Callable]:
    """run(count): waits for so many training steps; of all processes together, and of
    each one alone."""
    model, step, start = start_training(config)
    space = build.build_space(config)
    examples = build.build_train_options(config).batch // process_count
    images = np.full((examples, *space.grid, model.network.channels()), 0.5, np.float16)
    present = np.ones((examples, len(space.modalities)), bool)
    batch = devices.shard(Batch(images, present, np.ones(examples, bool)))

    def steps(run: Callable, count: int) -> None:
        state = devices.replicate(start)
        for _ in range(count):
            state, metrics = run(jax.random.key(1), state, batch)
        jax.block_until_ready((state, metrics))

    return {
        "together": functools.partial(steps, devices.pmap_step(step)),
        "alone": functools.partial(steps, devices.pmap_step(step, jax.local_devices())),
    }


def seconds(work: Callable[[int], None], count: int) -> float:
    """How long `count` steps take, started by all processes at once."""
    processes.barrier("a turn")
    start = time.perf_counter()
    work(count)
    return time.perf_counter() - start


def take_part(flags: argparse.Namespace) -> None:
    """Measures as one of the processes that the environment variables describe; the first
    one writes the seconds of each turn to --json."""
    with processes.in_job(lambda error: None, lambda: "nothing is kept"):
        config = read_config(flags.config)
        runs = make_runs(config, processes.process_index_and_count()[1])
        for work in runs.values():
            seconds(work, 2)
        turns = [
            {name: seconds(work, flags.steps) for name, work in runs.items()}
            for _ in range(flags.repeats)
        ]
        if processes.is_main():
            flags.json.write_text(json.dumps(turns))


def measure(flags: argparse.Namespace, count: int) -> list[dict[str, float]]:
    """The seconds of each turn with `count` processes.

    Raises:
        subprocess.CalledProcessError: one of them failed.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "turns.json"
        command = [sys.executable, "-m", "ummcsgm.benchmarks.scaling", "--take-part"]
        command += ["--config", flags.config, "--json", str(file)]
        command += ["--steps", str(flags.steps), "--repeats", str(flags.repeats)]
        variables = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_NUM_CPU_DEVICES": "1",
        }
        children = []
        for k in range(count):
            ids = {"JAX_PROCESS_ID": str(k), "JAX_LOCAL_DEVICE_IDS": str(k)}
            environment = os.environ | variables | ids
            children.append(subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL))
        codes = [child.wait() for child in children]
        if any(codes):
            raise subprocess.CalledProcessError(max(codes), command)
        return json.loads(file.read_text())


def summarise(turns: list[dict[str, float]], images: int) -> dict[str, float]:
    """Medians over the turns, in each of which `images` were trained on."""
    shares = [1 - turn["alone"] / turn["together"] for turn in turns]
    rates = [images / turn["together"] for turn in turns]
    return {
        "images_per_s": round(statistics.median(rates), 2),
        "collectives": round(statistics.median(shares), 3),
        "turns_images_per_s": [round(rate, 2) for rate in rates],
        "turns_collectives": [round(share, 3) for share in shares],
    }


def main() -> None:
    """Prints a table and the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--counts", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--take-part", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.take_part:
        return take_part(flags)
    config = read_config(flags.config)
    batch = build.build_train_options(config).batch
    if wrong := [count for count in flags.counts if count < 1 or batch % count]:
        parser.error(f"--counts {wrong[0]} does not divide the batch of {batch}")
    rows = [
        {"processes": count} | summarise(measure(flags, count), flags.steps * batch)
        for count in flags.counts
    ]
    for row in rows:
        row["speedup"] = round(row["images_per_s"] / rows[0]["images_per_s"], 3)
        share = row["processes"] / rows[0]["processes"]
        row["efficiency"] = round(row["speedup"] / share, 3)
    report = {"batch": batch, "steps": flags.steps, "cores": os.cpu_count()}
    report |= {"device": jax.devices()[0].device_kind, "rows": rows}
    print("processes | images/s | speed-up | efficiency | in collectives")
    for row in rows:
        cells = [row[name] for name in ("processes", "images_per_s", "speedup", "efficiency")]
        print(" | ".join(map(str, (*cells, f"{row['collectives']:.0%}"))))
    print_report(report, flags.json)


if __name__ == "__main__":
    main()
