"""Processes of one job: joining it, waiting for each other, sharing work, losing a peer.

When a process of a job dies, JAX's runtime aborts the others. Here they first say in one
sentence what happened and what to do.
"""

import contextlib
import ctypes
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from ummcsgm.distributed.devices import CollectiveError
from ummcsgm.types import InputError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
CLUSTER = "UMMCSGM_CLUSTER"  # a method by which JAX finds all three: gcetpu, mpi4py
START_TIMEOUT = 300  # seconds that processes wait for the last one to start
HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which a process is dead
ALIVE_KEY = "ummcsgm_alive"  # in the coordination service; a key for each process below it
BARRIER_TIMEOUT = 7 * 24 * 3600  # seconds; a process that ends is noticed long before
EXIT_PEER_LOST = 75  # the exit code: trying again helps


class PeerLostError(RuntimeError):
    """A collective or a barrier failed: another process of the job is gone."""


class Stopped(SystemExit):
    """All processes of a job end after the same step, because one received a signal."""


def process_index_and_count() -> tuple[int, int]:
    """(index of this process from 0 on, number of processes); (0, 1) alone."""
    return jax.process_index(), jax.process_count()


def is_multiprocess() -> bool:
    """Whether this process belongs to a job of several."""
    return jax.process_count() > 1


def is_main() -> bool:
    """Whether this process writes what all share."""
    return jax.process_index() == 0


@contextlib.contextmanager
def silence_nonmain() -> Iterator[None]:
    """Inside, processes other than the main one print nothing."""
    if is_main():
        yield
        return
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        yield


@contextlib.contextmanager
def collective(*types: type[Exception]) -> Iterator[None]:
    """Inside, the processes of a job wait for each other: an error of JAX's runtime, or
    of one of `types`, is a PeerLostError if another process is gone. JAX has the same type
    for a lost process and for a failure of this one, such as memory that is full: the error
    stays what it is if all processes are alive, and for an InputError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, CollectiveError, *types) as error:
        if isinstance(error, InputError) or not is_multiprocess() or _all_alive():
            raise
        raise PeerLostError(_first_line(error)) from error


def _all_alive() -> bool:
    """Whether every process of the job reports within half of HEARTBEAT_TIMEOUT from now."""
    client = multihost.get_jax_distributed_client()
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT / 2
    try:
        before = dict(client.key_value_dir_get(ALIVE_KEY))
        while time.monotonic() < deadline:
            time.sleep(HEARTBEAT_TIMEOUT / 60)
            now = dict(client.key_value_dir_get(ALIVE_KEY))
            # Two reports: a lost process may have sent one that arrives now.
            reports = [int(now[key]) - int(before.get(key, 0)) for key in now]
            if len(reports) == jax.process_count() and min(reports) > 1:
                return True
    except jax.errors.JaxRuntimeError:  # the process that answers is gone
        pass
    return False


@contextlib.contextmanager
def _reports_alive() -> Iterator[None]:
    """Inside, a thread reports that this process is alive, also while it waits for others."""
    client, stop = multihost.get_jax_distributed_client(), threading.Event()
    key = f"{ALIVE_KEY}/{jax.process_index()}"

    def report() -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the main process is gone
            for count in itertools.count(1):
                client.key_value_set(key, str(count), allow_overwrite=True)
                if stop.wait(HEARTBEAT_TIMEOUT / 60):
                    break

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(HEARTBEAT_TIMEOUT / 10)  # not for ever: the call may wait for a lost process


def barrier(name: str) -> None:
    """Returns when every process of the job has called `barrier` with this name.

    Through JAX's coordination service and not through devices, whose collectives give
    up on a process that is late.

    Raises:
        PeerLostError: another process is gone.
    """
    if is_multiprocess():
        wait = multihost.get_barrier_sync_fn()
        with collective():
            _interruptible(lambda: wait(key=name, timeout_ms=1000 * BARRIER_TIMEOUT))


def check_same_on_all(value: object, message: str) -> None:
    """Raises InputError, with `message`, unless `value` is the same in all processes."""
    barrier("check_same_on_all")
    checksum = np.uint32(zlib.crc32(repr(value).encode()))
    with collective(ValueError):  # as JAX's jit raises it
        checksums = multihost_utils.process_allgather(checksum)
    if len(np.unique(checksums)) > 1:
        raise InputError(message)


def main_process_first(function: Callable[[], Any]) -> Any:
    """function(), called by the main process alone, then by the others, which find its
    files on disk."""
    if not is_main():
        barrier("main_process_first")
    result = function()
    if is_main():
        barrier("main_process_first")
    return result


def map_across_processes(function: Callable[[int], Any], count: int) -> list:
    """[function(0), ..., function(count - 1)], each first called by one process.

    `function` must store its result on disk, and find there what another process stored.
    """
    process, processes = process_index_and_count()
    results = {index: function(index) for index in range(process, count, processes)}
    barrier("map_across_processes")
    return [results[i] if i in results else function(i) for i in range(count)]


def _interruptible(wait: Callable[[], Any]) -> Any:
    """wait(), called in a thread: signals are not handled during a call of C++."""
    results: list = []

    def run() -> None:
        try:
            results.append((wait(), None))
        except Exception as error:  # raised below, in the thread of the caller
            results.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    value, error = results[0]
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def in_job(
    exit_code_of: Callable[[BaseException], int | None], describe_resume: Callable[[], str]
) -> Iterator[None]:
    """Inside, this process belongs to a job, if the environment names one of several.

    The block ends, also with `Stopped`, when it has ended in all processes. With any other error
    this process ends at once, and thereby the others: with exit_code_of(error), which prints the
    error, or with a traceback where it is None. Where another process ended, with EXIT_PEER_LOST
    and a sentence that says how to resume (`describe_resume()`).

    Raises:
        InputError: the environment names half a job.
    """
    job = job_from_environment(os.environ)
    if job is None:
        yield
        return
    end = _make_end()
    with _on_abort(lambda: end(2, _no_job(job, "see above"))):
        try:
            _join(job)
        except Exception as error:  # from sockets or the cluster's interfaces
            end(2, _no_job(job, _first_line(error)))
    with _on_abort(
        lambda: end(
            EXIT_PEER_LOST, _peer_lost("or this one was aborted: see above", describe_resume())
        )
    ):
        try:
            with _reports_alive():
                yield
                barrier("end of the job")
        except Stopped:
            barrier("end of the job")
            jax.distributed.shutdown()
            raise
        except PeerLostError as error:
            end(EXIT_PEER_LOST, _peer_lost(_first_line(error), describe_resume()))
        except BaseException as error:
            code = _print_and_code(error, exit_code_of)
            if is_main():
                time.sleep(1)  # the others end with it: let them print first
            end(code)
        jax.distributed.shutdown()


@contextlib.contextmanager
def abort_if_peer_lost() -> Iterator[None]:
    """Inside `collective()`; where another process is lost this one aborts, as JAX's
    runtime does, and so with the sentence of `in_job`. It does not close what is around:
    Orbax would wait for the lost process."""
    try:
        with collective():
            yield
    except PeerLostError as error:
        print(error, file=sys.stderr, flush=True)
        os.abort()


def _make_end() -> Callable[..., NoReturn]:
    """end(code, sentence): ends this process at once, without waiting for the others."""
    ending = threading.Lock()

    def end(code: int, sentence: str = "") -> NoReturn:
        ending.acquire()  # never released: of two threads that end the process, one does
        sys.stdout.flush()
        if sentence:
            os.write(2, f"ummcsgm: {sentence}\n".encode())
        os._exit(code)

    return end


def _print_and_code(error: BaseException, exit_code_of: Callable) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    code = exit_code_of(error)
    if code is None:
        traceback.print_exception(error)
    return 1 if code is None else code


def job_from_environment(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`; None for a process on its own.

    A process belongs to a job if its environment has all of NAMES; if it is a task of a
    SLURM step, of mpirun or of a TPU slice on Kubernetes, where JAX finds all by itself;
    or by the method that CLUSTER names.

    Raises:
        InputError: some of NAMES are set and some are not, or they are no job.
    """
    given = [name for name in NAMES if environment.get(name)]
    if len(given) == len(NAMES):
        return _explicit_job(*(environment[name] for name in NAMES))
    if environment.get(CLUSTER):
        return {"cluster_detection_method": environment[CLUSTER]}
    scheduled = _is_scheduled(environment)
    if given and not (scheduled and given == [NAMES[0]]):
        missing = " and ".join(name for name in NAMES if name not in given)
        raise InputError(
            f"{' and '.join(given)} is set and {missing} is not: set all of "
            f"{', '.join(NAMES)}, or none."
        )
    return {} if scheduled else None


def _explicit_job(address: str, count: str, process_id: str) -> dict[str, Any] | None:
    valid = count.isdigit() and process_id.isdigit() and int(process_id) < int(count)
    if not valid or not re.fullmatch(r".+:\d+", address):
        raise InputError(
            f"{', '.join(NAMES)} are {address!r}, {count!r}, {process_id!r}; wanted "
            "HOST:PORT, a number of processes, and which of them this is, from 0 on."
        )
    if count == "1":
        return None
    return {
        "coordinator_address": address,
        "num_processes": int(count),
        "process_id": int(process_id),
        "cluster_detection_method": "deactivate",
    }


def _is_scheduled(environment: Mapping[str, str]) -> bool:
    """Whether a scheduler that JAX knows started this process beside others."""
    if "OMPI_COMM_WORLD_SIZE" in environment:  # also within SLURM
        return environment["OMPI_COMM_WORLD_SIZE"] != "1"
    # Of the step: a shell in an allocation of several tasks is one process.
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return True
    hosts = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")
    return any("," in environment.get(name, "") for name in hosts)


def _join(job: dict[str, Any]) -> None:
    if job.get("process_id") == 0:  # a port that is taken crashes the runtime
        port = int(job["coordinator_address"].rsplit(":", 1)[1])
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind(("", port))
    jax.distributed.initialize(
        **job, initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT
    )
    # Connects the devices now: at the first step, a process that is half a minute late
    # would fail to.
    multihost_utils.sync_global_devices("connect devices")


def _peer_lost(reason: str, resume: str) -> str:
    return f"another process of this job ended ({reason}): start the same command again, {resume}."


def _no_job(job: dict[str, Any], reason: str) -> str:
    address = job.get("coordinator_address", "what the scheduler names")
    return (
        f"no job of several processes came about at {address} within {START_TIMEOUT} s "
        f"({reason}): look whether all of them started and can reach the first one."
    )


@contextlib.contextmanager
def _on_abort(function: Callable[[], NoReturn]) -> Iterator[None]:
    """Inside, function() is called where the runtime aborts this process from C++, in a
    thread of its own: Python's signal handlers and `finally` are not reached."""
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: function())
    before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        libc.signal(signal.SIGABRT, before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
