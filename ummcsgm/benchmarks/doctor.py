"""How long the doctor needs to examine one subject, in one process.

    python -m ummcsgm.benchmarks.doctor [--shape X Y Z] [--repeats R] [--json FILE]

A phantom subject of four modalities without faults is written to a temporary folder, as
gzipped files, and examined `repeats` times, reading included.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

from ummcsgm.benchmarks.report import make_parser, report_in_folder, system_load
from ummcsgm.data.layouts.find import find_subjects
from ummcsgm.data.layouts.known import brats
from ummcsgm.data.phantom.make import write_phantom
from ummcsgm.qc.examine import examine_subject

MODALITIES = ("flair", "t1", "t1c", "t2")


def measure(folder: Path, flags: argparse.Namespace) -> dict[str, object]:
    """The report; fills `folder`."""
    shape = tuple(flags.shape)
    write_phantom(folder, subjects=1, shape=shape, seed=flags.seed, processes=1)
    (subject,) = find_subjects(folder, [brats(MODALITIES, "")]).subjects
    seconds = []
    for _ in range(flags.repeats):
        start = time.perf_counter()
        findings = examine_subject(subject, MODALITIES)
        seconds.append(time.perf_counter() - start)
    return {
        "shape": flags.shape,
        "findings": len(findings),
        "seconds": [round(s, 2) for s in seconds],
        "median_seconds": round(statistics.median(seconds), 2),
        "cores": os.cpu_count(),
        "load": system_load(),
    }


def main() -> None:
    """Prints the report."""
    parser = make_parser(__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[240, 240, 155])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the phantom")
    flags = parser.parse_args()
    report_in_folder(parser, flags, measure)


if __name__ == "__main__":
    main()
