"""The job that this process is one of: joining it, leaving it, losing it.

JAX's own runtime connects the processes, and where one of them dies it aborts the
others: here they say first, in one sentence, what happened and what to do.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

from ummcsgm.distributed import devices
from ummcsgm.types import InputError

ADDRESS, COUNT, PLACE = NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
CLUSTER = "UMMCSGM_CLUSTER"  # a method by which JAX finds all three: gcetpu, mpi4py
PATIENCE = 300  # seconds that processes wait for the last one of them to start
HEARTBEAT = 30  # seconds without a word from a process, after which it is dead
LOST = 75  # the exit code: trying again helps

GONE = re.compile(
    "gloo|nccl|heartbeat|coordination|barrier|UNAVAILABLE|GetKeyValue|connection|socket",
    re.IGNORECASE,
)


class Stopped(SystemExit):
    """All processes of a job end after one step, because one of them was asked to."""


@contextlib.contextmanager
def in_job(verdict: Callable[[BaseException], int | None], kept: Callable[[], str]):
    """Inside, this process is one of a job, if the environment names one of several.

    The block ends, and so it does with `Stopped`, when it has ended in all processes.
    With any other error this process ends at once, and thereby the others: with
    verdict(error), an exit code after the error was told, or with a traceback where it
    is None. Where another process ended, with LOST and a sentence that tells how to go
    on from what kept() says is there.

    Raises:
        InputError: the environment names half a job.
    """
    wanted = job_from_environment(os.environ)
    if wanted is None:
        yield
        return
    end = _make_end()
    with _aborted(lambda: end(2, _unreached(wanted, "see above"))):
        try:
            _join(wanted)
        except Exception as error:  # of sockets, of the cluster's own interfaces
            end(2, _unreached(wanted, _line(error)))
    with _aborted(lambda: end(LOST, _lost("or this one was aborted: see above", kept()))):
        try:
            yield
            devices.barrier("the end")
        except Stopped:
            devices.barrier("the end")
            jax.distributed.shutdown()
            raise
        except BaseException as error:
            if _gone(error):
                end(LOST, _lost(_line(error), kept()))
            code = _code(error, verdict)
            if devices.is_main():
                time.sleep(1)  # the others end when it does: they say first what it is
            end(code)
        jax.distributed.shutdown()


@contextlib.contextmanager
def abort_if_peer_lost() -> Iterator[None]:
    """Inside, where another process is lost this one does not close what is around:
    Orbax would wait for that process. To be used within `in_job`."""
    try:
        yield
    except Exception as error:
        if devices.is_multiprocess() and _gone(error):
            print(_line(error), file=sys.stderr, flush=True)
            os.abort()  # as JAX's runtime does, and so with the sentence of `in_job`
        raise


def _make_end() -> Callable[..., NoReturn]:
    """end(code, sentence): this process ends at once, without a look at the others."""
    ending = threading.Lock()

    def end(code: int, sentence: str = "") -> NoReturn:
        ending.acquire()  # for good: of two threads that end the process, one does
        sys.stdout.flush()
        if sentence:
            os.write(2, f"ummcsgm: {sentence}\n".encode())
        os._exit(code)

    return end


def _code(error: BaseException, verdict: Callable) -> int:
    """The exit code after an error, which is told."""
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    code = verdict(error)
    if code is None:
        traceback.print_exception(error)
    return 1 if code is None else code


def job_from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be told; None for a process of its own.

    Of a job are those whose environment has all of NAMES, and the tasks of a SLURM
    step, of mpirun and of a TPU slice on Kubernetes, where JAX finds all by itself, or
    by the method that CLUSTER names.

    Raises:
        InputError: some of NAMES are there and some are not, or they are no job.
    """
    given = [name for name in NAMES if environment.get(name)]
    if len(given) == len(NAMES):
        return _told(*(environment[name] for name in NAMES))
    if environment.get(CLUSTER):
        return {"cluster_detection_method": environment[CLUSTER]}
    scheduled = _scheduled(environment)
    if given and not (scheduled and given == [ADDRESS]):
        missing = " and ".join(name for name in NAMES if name not in given)
        raise InputError(
            f"{' and '.join(given)} is set and {missing} is not: set all of "
            f"{', '.join(NAMES)}, or none."
        )
    return {} if scheduled else None


def _told(address: str, count: str, place: str) -> dict[str, Any] | None:
    whole = count.isdigit() and place.isdigit() and int(place) < int(count)
    if not whole or not re.fullmatch(r".+:\d+", address):
        raise InputError(
            f"{', '.join(NAMES)} are {address!r}, {count!r}, {place!r}; wanted "
            "HOST:PORT, a number of processes, and which of them this is, from 0 on."
        )
    if count == "1":
        return None
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(place),
        "cluster_detection_method": "deactivate",
    }


def _scheduled(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler that JAX knows has started this process beside others."""
    if "OMPI_COMM_WORLD_SIZE" in environment:  # within SLURM too, where it may be
        return environment["OMPI_COMM_WORLD_SIZE"] != "1"
    # Of the step: a shell in an allocation of several tasks is one process.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return True
    slice_of = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in environment.get(name, "") for name in slice_of)


def _join(wanted: dict[str, Any]) -> None:
    if wanted.get("process_id") == 0:  # a port that is taken crashes the runtime
        port = int(wanted["coordinator_address"].rsplit(":", 1)[1])
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("", port))
    jax.distributed.initialize(
        **wanted, initialization_timeout=PATIENCE, heartbeat_timeout_seconds=HEARTBEAT
    )
    devices.connect_devices()


def _lost(why: str, kept: str) -> str:
    return f"another process of this job ended ({why}): start the same command again, {kept}."


def _unreached(wanted: dict[str, Any], why: str) -> str:
    where = wanted.get("coordinator_address", "what the scheduler names")
    return (
        f"no job of several processes came about at {where} within {PATIENCE} s "
        f"({why}): look whether all of them started and can reach the first one."
    )


@contextlib.contextmanager
def _aborted(say: Callable[[], NoReturn]) -> Iterator[None]:
    """Inside, say() is called where the runtime aborts this process from C++, on a
    thread of its own: neither Python's signal handlers nor `finally` are reached."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: say())
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def _gone(error: BaseException) -> bool:
    """Whether `error` is how JAX tells that another process is no more there."""
    ours = isinstance(error, InputError | OSError)
    kinds = (jax.errors.JaxRuntimeError, RuntimeError, ValueError)
    return not ours and isinstance(error, kinds) and bool(GONE.search(str(error)))


def _line(error: BaseException) -> str:
    """What an error says first."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
