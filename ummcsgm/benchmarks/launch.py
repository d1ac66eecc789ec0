"""How long training takes from its launch to its first step, with and without a cache.

    python -m ummcsgm.benchmarks.launch [--config FILE] [--repeats R] [--json FILE]

A small phantom is prepared once. Then, in turn, `repeats` times, each on a copy of it: `python -m
ummcsgm.main --mode train` of one step with an empty compilation cache (cold), and again with what
the first launch left in the cache (warm). Reported are the seconds from each launch until it prints
the line of its step, and the ratio of warm to cold, whose median should be a third at most.
`prepared_s` of them end with the line "prepared:": imports and a check of the slices. `rest_s` is
tracing, compiling or loading compiled programs, and the step.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ummcsgm.benchmarks.networks import read_config
from ummcsgm.benchmarks.report import make_parser, report_in_folder, summarise_ratios, system_load
from ummcsgm.types import InputError

WANTED = 1 / 3  # of the median ratio, at most
CACHE = "JAX_COMPILATION_CACHE_DIR"
SUBJECTS, SLICES = 6, 16  # of the phantom
LINES = {"prepared": "prepared:", "step": "step 1/"}  # how printed lines begin
ONE_STEP = {"steps": 1, "warmup": 0, "log_every": 1}


def make_command(config: str, workdir: Path, mode: str) -> list[str]:
    """The command line of one step on a small phantom."""
    *plane, slices = read_config(config).phantom.shape
    shape = (*plane, min(slices, SLICES))
    fields = {f"train.{name}": value for name, value in ONE_STEP.items()}
    fields |= {"phantom.subjects": SUBJECTS, "phantom.shape": shape, "data.folder": ""}
    command = [sys.executable, "-m", "ummcsgm.main", "--config", config]
    command += ["--workdir", str(workdir), "--mode", mode]
    return command + [f"--config.{name}={value}" for name, value in fields.items()]


def seconds_to_lines(command: list[str], cache: Path) -> dict[str, float]:
    """Runs `command`; returns the seconds until it first prints each of LINES.

    Raises:
        InputError: it failed, or did not print them all.
    """
    seconds: dict[str, float] = {}
    environment = os.environ | {CACHE: str(cache)}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            now = time.perf_counter() - start
            for name, beginning in LINES.items():
                if line.startswith(beginning):
                    seconds.setdefault(name, now)
    if child.returncode or len(seconds) < len(LINES):
        raise InputError(
            f"{' '.join(command)} ended with {child.returncode}; of the lines "
            f"{', '.join(LINES)} it printed: {', '.join(seconds) or 'none'}."
        )
    return seconds


def launch(folder: Path, config: str, cache: Path) -> dict[str, float]:
    """`seconds_to_lines` of training on a copy of folder/prepared."""
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        workdir = Path(copy) / "run"
        shutil.copytree(folder / "prepared", workdir)
        return seconds_to_lines(make_command(config, workdir, "train"), cache)


def run_turn(folder: Path, config: str) -> dict:
    """Both launches with one cache, and the number and MiB of the files in it."""
    with tempfile.TemporaryDirectory(dir=folder) as cache_folder:
        cache = Path(cache_folder)
        cold = launch(folder, config, cache)
        files = [file for file in cache.rglob("*") if file.is_file()]
        mib = sum(file.stat().st_size for file in files) / 2**20
        warm = launch(folder, config, cache)
    return {"cold": cold, "warm": warm, "files": len(files), "mib": mib}


def measure(folder: Path, flags: argparse.Namespace) -> dict:
    """The report; fills `folder`."""
    command = make_command(flags.config, folder / "prepared", "prepare")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    turns = [run_turn(folder, flags.config) for _ in range(flags.repeats)]
    report: dict = {}
    for way in ("cold", "warm"):
        times = [(turn[way]["prepared"], turn[way]["step"]) for turn in turns]
        report[f"{way}_s"] = [round(step, 2) for _, step in times]
        report[f"{way}_prepared_s"] = [round(prepared, 2) for prepared, _ in times]
        report[f"{way}_rest_s"] = [round(step - prepared, 2) for prepared, step in times]
    ratios = [turn["warm"]["step"] / turn["cold"]["step"] for turn in turns]
    return report | {
        **summarise_ratios(ratios, 3),
        "wanted": round(WANTED, 3),
        "cache_files": [turn["files"] for turn in turns],
        "cache_mib": [round(turn["mib"], 1) for turn in turns],
        "load": system_load(),
    }


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    report_in_folder(parser, flags, measure)


if __name__ == "__main__":
    main()
