"""Compiled programs: kept between runs, what they cost, and where their time goes."""

import contextlib
import os
import pathlib
import platform
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

QUICK = "jax_persistent_cache_min_compile_time_secs"
LARGEST = 2 * 2**30  # bytes of compiled programs that are kept; the oldest go first
TRACED = (10, 20)  # steps after the first one of a run, of which a trace is written

# FLOP/s of a device in bfloat16, dense, from the vendors' data sheets.
PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def enable_compilation_cache() -> None:
    """Programs that are compiled are found again by the next process that wants them.

    In JAX's persistent cache: where JAX_COMPILATION_CACHE_DIR says, else in ummcsgm/ of
    the user's cache folder, apart for each kind of CPU.
    """
    if jax.config.jax_compilation_cache_dir is None:
        caches = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
        try:
            folder = pathlib.Path(caches).expanduser() / "ummcsgm" / _machine()
        except RuntimeError:  # a user without a home
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", LARGEST)
    if QUICK.upper() not in os.environ:
        jax.config.update(QUICK, 0.2)


def _machine() -> str:
    """A name that two machines share if code for one runs on the other."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"


def peak_of(kind: str) -> float | None:
    """FLOP/s that a device of this kind could do; None where it is not known.

    `kind` is JAX's name of it, which may go on after ours: NVIDIA H100 80GB HBM3.
    """
    names = [name for name in PEAKS if f"{kind} ".startswith((f"{name} ", f"{name}-"))]
    return PEAKS[max(names, key=len)] if names else None


def flops_of(program: Callable, *arguments: Any) -> float:
    """The FLOPs of one call of a jitted or mapped `program`, on one of its devices.

    As XLA counts them in the program before it chooses kernels, which it does not look
    into. The body of a loop counts once. The devices are to be CPUs: XLA's clients of
    others do not count.
    """
    return float(program.lower(*arguments).cost_analysis()["flops"])


@contextlib.contextmanager
def profiler_trace(folder: pathlib.Path | None) -> Iterator[Callable[[int], None]]:
    """at(n), to be called before the n-th step of a run, from 0 on: `folder` gets a
    trace of steps TRACED, for XProf or TensorBoard; or nothing, if it is None."""
    writing = False

    def at(number: int) -> None:
        nonlocal writing
        if folder is not None and number == TRACED[0]:
            jax.profiler.start_trace(str(folder))
            writing = True
        elif writing and number == TRACED[1]:
            jax.profiler.stop_trace()
            writing = False

    try:
        yield at
    finally:
        if writing:
            jax.profiler.stop_trace()
