"""How long training takes from its launch to its first step, cold and warm.

    python -m ummcsgm.benchmarks.launch [--config FILE] [--repeats R] [--json FILE]

A small phantom is prepared once. Then, in turn, `repeats` times, on a copy of it each:
`python -m ummcsgm.main --mode train`, of one step, with an empty folder for compiled
programs, and again with what the first launch left there. Told are the seconds from
each launch until the line that it prints of its step, and the ratio of warm to cold,
whose median should be a third at most. `prepared_s` of them end with the line
"prepared:": they are imports and a look at the slices. `rest_s` is tracing, compiling
or loading what was compiled, and the step.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ummcsgm.benchmarks.report import make_parser, tell
from ummcsgm.benchmarks.untrained import read_config
from ummcsgm.types import InputError

WANTED = 1 / 3  # of the median ratio, at most
CACHE = "JAX_COMPILATION_CACHE_DIR"
SUBJECTS, SLICES = 6, 16  # of the phantom
MARKS = {"prepared": "prepared:", "step": "step 1/"}  # how lines of a launch begin
ONE_STEP = {"steps": 1, "warmup": 0, "log_every": 1}


def make_command(config: str, workdir: Path, mode: str) -> list[str]:
    """The command line of one step on a small phantom."""
    *plane, slices = read_config(config, None).phantom.shape
    shape = (*plane, min(slices, SLICES))
    fields = {f"train.{name}": value for name, value in ONE_STEP.items()}
    fields |= {"phantom.subjects": SUBJECTS, "phantom.shape": shape, "data.folder": ""}
    command = [sys.executable, "-m", "ummcsgm.main", "--config", config]
    command += ["--workdir", str(workdir), "--mode", mode]
    return command + [f"--config.{name}={value}" for name, value in fields.items()]


def seconds(command: list[str], cache: Path) -> dict[str, float]:
    """How long after its launch `command` prints each of MARKS first; it has ended.

    Raises:
        InputError: it failed, or did not print them all.
    """
    seen: dict[str, float] = {}
    environment = os.environ | {CACHE: str(cache)}
    start = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            now = time.perf_counter() - start
            for name, words in MARKS.items():
                if line.startswith(words):
                    seen.setdefault(name, now)
    if child.returncode or len(seen) < len(MARKS):
        raise InputError(
            f"{' '.join(command)} ended with {child.returncode}, and of its lines "
            f"{', '.join(seen)} were seen; wanted {', '.join(MARKS)}."
        )
    return seen


def launch(folder: Path, config: str, cache: Path) -> dict[str, float]:
    """`seconds` of training on a copy of what folder/prepared holds."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        workdir = Path(place) / "run"
        shutil.copytree(folder / "prepared", workdir)
        return seconds(make_command(config, workdir, "train"), cache)


def turn(folder: Path, config: str) -> dict:
    """Both launches with one folder for programs, and how many files are then there."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        cache = Path(place)
        cold = launch(folder, config, cache)
        left = [file for file in cache.rglob("*") if file.is_file()]
        mib = sum(file.stat().st_size for file in left) / 2**20
        warm = launch(folder, config, cache)
    return {"cold": cold, "warm": warm, "files": len(left), "mib": mib}


def measure(folder: Path, flags: argparse.Namespace) -> dict:
    """What is printed; `folder` is filled."""
    command = make_command(flags.config, folder / "prepared", "prepare")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    turns = [turn(folder, flags.config) for _ in range(flags.repeats)]
    report: dict = {}
    for way in ("cold", "warm"):
        both = [(own[way]["prepared"], own[way]["step"]) for own in turns]
        report[f"{way}_s"] = [round(step, 2) for _, step in both]
        report[f"{way}_prepared_s"] = [round(prepared, 2) for prepared, _ in both]
        report[f"{way}_rest_s"] = [round(step - prepared, 2) for prepared, step in both]
    ratios = [own["warm"]["step"] / own["cold"]["step"] for own in turns]
    return report | {
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
        "wanted": round(WANTED, 3),
        "cache_files": [own["files"] for own in turns],
        "cache_mib": [round(own["mib"], 1) for own in turns],
        "load": [round(load, 1) for load in os.getloadavg()],
    }


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = measure(Path(folder), flags)
    except InputError as error:
        parser.error(str(error))
    tell(report, flags.json)


if __name__ == "__main__":
    main()
