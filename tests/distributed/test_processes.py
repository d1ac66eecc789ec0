"""Several processes on this machine, by the launcher that a user has, over gloo."""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import yaml
from tiny_run import (
    ENVIRONMENT,
    ROOT,
    files_under,
    run_main,
    tiny_config,
    write_config,
    write_subjects,
)

from ummcsgm.cli import commands
from ummcsgm.config import build
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.distributed import processes
from ummcsgm.training import checkpoint, train
from ummcsgm.types import InputError

STEPS, EVERY, LOGGED = 32, 8, 4
ALONE = {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
ALONE["PATH"] = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
LOST = r"ummcsgm: another process of this job ended \(.*\): start the same command "
LOST += r"again, it continues from step (\d+)'s checkpoint\.\n"


class Running:
    """`launch/local.sh N`, its processes, and what they print."""

    def __init__(self, count, root, workdir, *flags):
        self.log = pathlib.Path(f"{workdir}.{time.monotonic_ns()}.log")
        command = ["bash", str(ROOT / "launch" / "local.sh"), count, root / "tiny.py"]
        with self.log.open("w") as file:
            self.shell = subprocess.Popen(
                [*map(str, command), str(workdir), *map(str, flags)],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT | ALONE,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.checkpoints = pathlib.Path(workdir) / "checkpoints"

    def signal_at(self, step, which, number):
        """Sends `number` to process `which` when the checkpoint of `step` is there."""
        while not (self.checkpoints / str(step)).is_dir():
            assert self.shell.poll() is None, self.log.read_text()
            time.sleep(0.02)
        here = pathlib.Path(f"/proc/{self.shell.pid}/task/{self.shell.pid}/children")
        os.kill(int(here.read_text().split()[which]), number)

    def ended(self):
        """(exit code, seconds until then, what was printed)."""
        start = time.monotonic()
        code = self.shell.wait(timeout=120)
        return code, time.monotonic() - start, self.log.read_text()


def state_at(workdir, step, folder):
    """The leaves of the whole state in the checkpoint of `step`, read in `folder`."""
    here = workdir / "checkpoints" / str(step)
    shutil.copytree(here, folder / "checkpoints" / str(step))
    config = build.config_from_json(checkpoint.restore_metadata(folder)["config"])
    start = build_trainable(config, "mm-csn").start
    return jax.tree.leaves(train.start_or_restore(folder, start, 0))


def saved_steps(workdir):
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    # One that was being written when its run was killed has a longer name.
    return sorted(int(name) for name in names if name.isdigit())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """subjects/, tiny.py, and a whole study in run/ by two processes: stdout.txt."""
    root = tmp_path_factory.mktemp("job")
    changes = {"save_every": EVERY, "log_every": LOGGED, "steps": STEPS, "keep_checkpoints": 99}
    changes["schedule"] = "constant"  # a shorter run is the beginning of a longer one
    changes["optimizer"] = "adam"  # Muon enlarges the rounding of other sums
    config = tiny_config(
        write_subjects(root / "subjects"),
        data__split=(1, 2, 2),
        evaluate__draw_subjects=2,
        evaluate__slab_subjects=2,
        **{f"train__{name}": value for name, value in changes.items()},
    )
    write_config(root / "tiny.py", config)
    code, _, said = Running(2, root, root / "run").ended()
    assert code == 0, said
    (root / "stdout.txt").write_text(said)
    return root


@pytest.fixture
def begin(straight, tmp_path):
    """begin(count, *flags): a job on a new workdir whose slices are prepared."""
    for name in ("prepared", "split.json"):
        source, target = straight / "run" / name, tmp_path / "run" / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return lambda count, *flags: Running(
        count, straight, tmp_path / "run", "--mode", "train", *flags
    )


@pytest.mark.slow
def test_what_all_processes_share_is_written_and_told_once(straight):
    run, said = straight / "run", (straight / "stdout.txt").read_text()
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().split("\n")[:-1]]
    assert [one["step"] for one in records] == list(range(LOGGED, STEPS + 1, LOGGED))
    (start,) = json.loads((run / "manifest.json").read_text())["starts"]
    assert start["processes"] == 2 and len(start["devices"]) == 2
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert saved_steps(run) == list(range(EVERY, STEPS + 1, EVERY))
    names = list(files_under(run))
    assert not [name for name in names if "process_1" in name or "tmp" in name]
    for line in ("preparing: 5/5", f"step {STEPS}/{STEPS}: ", "evaluated 1/2: P1, mm-csn"):
        assert said.count(line) == 1, said
    assert "Traceback" not in said and "ummcsgm:" not in said


@pytest.mark.slow
def test_two_processes_train_what_two_devices_of_one_do(straight, tmp_path):
    flags = ("--mode", "train", f"--config.train.steps={EVERY}")
    one = ("--config", straight / "tiny.py", "--workdir", tmp_path / "one")
    assert run_main(*one, *flags) == 0
    logs = [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (straight / "run" / "log.jsonl", tmp_path / "one" / "log.jsonl")
    ]
    assert len(logs[1]) == EVERY // LOGGED
    for several, one in zip(*logs, strict=False):
        assert several["loss"] == pytest.approx(one["loss"], rel=ROUNDING)
    assert_close(
        state_at(straight / "run", EVERY, tmp_path / "a"),
        state_at(tmp_path / "one", EVERY, tmp_path / "b"),
    )


# Sums over rows and devices may be taken in another order: float32 rounding, 6e-8 of
# a gradient, which Adam divides by its own size, so that a weight moves by the learning
# rate, 3e-3, times the relative error of a gradient that is small. Measured after 8
# steps: 0 for two processes beside two devices; 2e-2 where all read the same rows.
ROUNDING = 1e-4


def assert_close(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.slow
def test_a_killed_and_a_stopped_run_go_on_as_the_uninterrupted_one_bit_for_bit(
    straight, begin, tmp_path
):
    run = tmp_path / "run"
    killed = begin(2)
    killed.signal_at(EVERY, 1, signal.SIGKILL)
    code, seconds, said = killed.ended()
    assert code == 128 + signal.SIGKILL and seconds < 60
    newest = saved_steps(run)[-1]
    assert re.findall(LOST, said) == [str(newest)], said
    assert "Traceback" not in said

    stopped = begin(2)
    stopped.signal_at(newest + EVERY, 1, signal.SIGTERM)  # of two, one alone
    code, seconds, said = stopped.ended()
    assert code == 128 + signal.SIGTERM and seconds < 60
    told = re.findall(r"(\S+ ?\S*): saved at step (\d+); the same command", said)
    last = saved_steps(run)[-1]
    assert sorted(told)[0] == ("SIGTERM", str(last)) and len(told) == 2, said
    assert told[0][1] == told[1][1] and newest + EVERY <= last < STEPS

    code, _, said = begin(2).ended()
    assert code == 0, said
    ours = state_at(run, STEPS, tmp_path / "a")
    theirs = state_at(straight / "run", STEPS, tmp_path / "b")
    assert [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]
    starts = json.loads((run / "manifest.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, newest, last]


@pytest.mark.slow
def test_of_four_processes_three_end_when_the_first_is_killed(straight, begin, tmp_path):
    killed = begin(4)
    killed.signal_at(EVERY, 0, signal.SIGKILL)
    code, seconds, said = killed.ended()
    assert code == 128 + signal.SIGKILL and seconds < 60
    assert len(re.findall(LOST, said)) == 3, said
    assert_close(
        state_at(tmp_path / "run", EVERY, tmp_path / "a"),
        state_at(straight / "run", EVERY, tmp_path / "b"),
    )


@pytest.mark.slow
def test_two_processes_evaluate_to_the_very_files_of_one(straight, tmp_path):
    shutil.copytree(straight / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    (tmp_path / "run" / "calibration.json").unlink()
    alone = Running(1, straight, tmp_path / "run", "--mode", "evaluate")
    assert alone.ended()[0] == 0  # with as many rows a device, bit for bit
    one, two = (files_under(root / "run" / "evaluation") for root in (tmp_path, straight))
    assert one.keys() == two.keys() and len(one) > 20
    for name in one:
        assert one[name] == two[name], name
    fitted = [(root / "run" / "calibration.json") for root in (tmp_path, straight)]
    assert fitted[0].read_text() == fitted[1].read_text()


@pytest.mark.slow
def test_two_processes_complete_what_one_does_and_tell_of_their_own(straight, tmp_path):
    subjects = shutil.copytree(straight / "subjects", tmp_path / "subjects")
    (subjects / "LGG" / "P2" / "P2_flair.nii.gz").write_bytes(b"no scan")
    flags = ["--mode", "complete", "--input", subjects, "--missing", "t1c"]
    flags += ["--budget-seconds", 20, "--output"]
    job = Running(2, straight, straight / "run", *flags, tmp_path / "two")
    code, _, said = job.ended()
    assert code == 1, said
    assert said.count("s a slice for the mean") == 1  # measured by the first alone
    assert len(re.findall(r"^P\d \|.*synthesised t1c", said, re.MULTILINE)) == 4
    assert len(re.findall(r"^P2 \|.*FAILED", said, re.MULTILINE)) == 1
    alone = Running(1, straight, straight / "run", *flags, tmp_path / "one")
    assert alone.ended()[0] == 1
    assert files_under(tmp_path / "two") == files_under(tmp_path / "one")


# Two processes of a few lines: what they do when things go wrong.
LINES = """
import sys, time, jax
from ummcsgm.distributed import devices, processes
from ummcsgm.types import InputError
processes.START_TIMEOUT, processes.HEARTBEAT_TIMEOUT = 3, 3
def exit_code_of(error):
    if isinstance(error, InputError):
        print(f"ummcsgm: {error}", file=sys.stderr, flush=True)
        return 2
with processes.in_job(exit_code_of, lambda: "all is kept"):
    index = processes.process_index_and_count()[0]
"""


def run_lines(lines, count=2, start=2):
    """[(exit code, standard error)] of `start` of the `count` processes of a job."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        names = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
    names |= {"JAX_NUM_PROCESSES": str(count)}
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", LINES + lines],
            env=os.environ | ENVIRONMENT | ALONE | names | {"JAX_PROCESS_ID": str(k)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)[-start:]
    ]
    said = [part.communicate(timeout=60)[1] for part in parts]
    return [(part.returncode, text) for part, text in zip(parts, said, strict=True)]


def sentences(text):
    return [line for line in text.splitlines() if line.startswith("ummcsgm: ")]


def test_an_error_in_one_process_ends_the_one_that_waits_for_it():
    lines = "    if index: raise InputError('this host lacks a file')\n"
    (waits, told), (failed, said) = run_lines(lines + "    processes.barrier('x')")
    assert failed == 2 and sentences(said) == ["ummcsgm: this host lacks a file"]
    assert waits == processes.EXIT_PEER_LOST and len(sentences(told)) == 1
    assert "start the same command again, all is kept." in told


@pytest.mark.parametrize("place", ["barrier", "allgather", "training step"])
def test_a_lost_peer_is_known_by_the_place_of_the_error(place):
    """Whatever the text of the error says, and whichever collective raised it."""
    lines = {
        "barrier": "    processes.barrier('x')",
        "allgather": "    processes.check_same_on_all(0, 'x')",
        "training step": "    with processes.abort_if_peer_lost():\n"
        "        while True: state = step(key, state, devices.shard(np.ones((1, 4))))",
    }
    lost = """
    import os, threading
    import numpy as np
    sum_batch = lambda key, state, batch: state + devices.sum_over_devices(batch.sum())
    step, key = devices.pmap_step(sum_batch), jax.random.key(0)
    state = devices.replicate(np.float32(0))
    if index: threading.Timer(2, os._exit, (9,)).start()
"""
    if place != "training step":
        lost += "    if index: time.sleep(60)\n"
    (code, printed), (died, _) = run_lines(lost + lines[place])
    assert died == 9 and code == processes.EXIT_PEER_LOST
    assert len(sentences(printed)) == 1 and "Traceback" not in printed


@pytest.mark.parametrize("kind", ["RuntimeError", "ValueError", "jax.errors.JaxRuntimeError"])
def test_an_error_of_ones_own_is_a_traceback_whatever_its_text(kind):
    lines = f"    if index: raise {kind}('gloo: connection to the barrier is UNAVAILABLE')\n"
    (waits, _), (failed, printed) = run_lines(lines + "    processes.barrier('x')")
    assert failed == 1 and "Traceback" in printed and not sentences(printed)
    assert waits == processes.EXIT_PEER_LOST


@pytest.mark.parametrize("error", ["callback", "runtime"])
def test_a_step_that_fails_in_one_live_process_is_a_traceback(tmp_path, error):
    """Not the advice to start again; the other, in the same step, does lose a process."""
    lines = f"""
    import pathlib
    import numpy as np
    from ummcsgm.training.checkpoint import open_checkpoints
    def fail(x): raise MemoryError("the memory is full")
    def callback(key, state, batch):
        if index: batch = jax.pure_callback(fail, batch, batch)
        return state + devices.sum_over_devices(batch.sum())
    step = devices.pmap_step(callback)
    def runtime(*arguments):
        if index: raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: the memory is full")
        return step(*arguments)
    take = step if {error!r} == "callback" else runtime
    with open_checkpoints(pathlib.Path({str(tmp_path)!r}), keep=1), processes.abort_if_peer_lost():
        take(jax.random.key(0), np.float32(0), devices.shard(np.ones((1, 4)))).block_until_ready()
"""
    (waits, told), (failed, printed) = run_lines(lines)
    assert failed == 1 and "Traceback" in printed and "the memory is full" in printed
    assert not sentences(printed) and "start the same command" not in printed
    assert waits == processes.EXIT_PEER_LOST and len(sentences(told)) == 1


def test_a_step_that_cannot_be_traced_is_an_error_of_ones_own():
    lines = """
    def step(key, state, batch): raise ValueError("gloo: connection closed")
    with processes.abort_if_peer_lost():
        devices.pmap_step(step)(jax.random.key(0), jax.numpy.zeros(()), jax.numpy.ones((1, 4)))
"""
    for code, printed in run_lines(lines):
        assert code == 1 and "ValueError: gloo: connection closed" in printed
        assert not sentences(printed)


def test_processes_that_do_not_see_the_same_run_say_so():
    results = run_lines("    processes.check_same_on_all(index, 'they differ')\n")
    for code, said in results:
        assert code == 2 and sentences(said) == ["ummcsgm: they differ"]


def test_a_job_whose_first_process_is_not_there_is_told_in_a_sentence():
    ((code, said),) = run_lines("    raise AssertionError('joined')\n", start=1)
    assert code == 2, said
    (sentence,) = sentences(said)
    assert "no job of several processes came about at 127.0.0.1:" in sentence
    assert "within 3 s" in sentence


def test_a_port_that_is_taken_is_an_error_of_python():
    with socket.create_server(("", 0)) as taken:
        wanted = processes.job_from_environment(environment(taken.getsockname()[1]))
        with pytest.raises(OSError, match="in use"):
            processes._join(wanted)


def environment(port=8476, count="2", process_id="0"):
    values = (f"127.0.0.1:{port}", count, process_id)
    return dict(zip(processes.NAMES, values, strict=True))


SLURM = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, None),
        (environment(count="1"), None),
        (SLURM, None),  # a batch script
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # an interactive shell
        (SLURM | {"SLURM_STEP_NUM_TASKS": "8"}, {}),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "8", "OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"SLURM_STEP_NUM_TASKS": "8", "JAX_COORDINATOR_ADDRESS": "node3:80"}, {}),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, {}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({processes.CLUSTER: "gcetpu"}, {"cluster_detection_method": "gcetpu"}),
        (
            environment(process_id="1"),
            {
                "coordinator_address": "127.0.0.1:8476",
                "num_processes": 2,
                "process_id": 1,
                "cluster_detection_method": "deactivate",
            },
        ),
    ],
)
def test_a_job_is_what_the_environment_names(given, wanted):
    assert processes.job_from_environment(given) == wanted


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_NUM_PROCESSES is set and JAX_COORDINATOR_AD"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID is"),
        (environment(process_id="2"), "which of them this is, from 0 on"),
        (environment(count="two"), "'two'"),
        (environment() | {"JAX_COORDINATOR_ADDRESS": "host"}, "HOST:PORT"),
    ],
)
def test_half_a_job_is_refused_in_a_sentence(given, sentence):
    with pytest.raises(InputError, match=sentence):
        processes.job_from_environment(given)


@pytest.mark.slow
def test_half_a_job_stops_the_command_but_not_the_doctor(straight, monkeypatch, capsys):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert run_main("--mode", "doctor", "--input", straight / "subjects") in (0, 1)
    capsys.readouterr()
    assert run_main("--workdir", straight / "run", "--mode", "evaluate") == 2
    assert sentences(capsys.readouterr().err)[0].startswith("ummcsgm: JAX_NUM_PROC")


def test_part_is_each_processs_own_and_refused_beside_it(monkeypatch):
    assert commands.parse_part(None) == (0, 1) and commands.parse_part("2/3") == (1, 3)
    monkeypatch.setattr(processes, "process_index_and_count", lambda: (1, 4))
    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    assert commands.parse_part(None) == (1, 4)
    with pytest.raises(InputError, match="one of 4 processes .* leave out --part"):
        commands.parse_part("2/3")


@pytest.mark.parametrize("place", range(3))
def test_every_process_does_its_share_before_it_looks_at_the_others(monkeypatch, place):
    done = []
    monkeypatch.setattr(processes, "process_index_and_count", lambda: (place, 3))
    monkeypatch.setattr(processes, "barrier", lambda name: done.append(name))
    assert processes.map_across_processes(lambda at: done.append(at) or 10 * at, 5) == [
        0,
        10,
        20,
        30,
        40,
    ]
    shares = [[0, 3], [1, 4], [2]]
    others = [at for at in range(5) if at not in shares[place]]
    assert done == [*shares[place], "map_across_processes", *others]


@pytest.mark.parametrize(("own", "order"), [(True, "do, wait"), (False, "wait, do")])
def test_the_first_process_goes_before_the_others(monkeypatch, own, order):
    events = []
    monkeypatch.setattr(processes, "is_main", lambda: own)
    monkeypatch.setattr(processes, "barrier", lambda name: events.append("wait"))
    assert processes.main_process_first(lambda: events.append("do") or 3) == 3
    assert ", ".join(events) == order


def test_the_job_set_has_as_many_processes_as_pods_and_one_coordinator():
    jobs = yaml.safe_load((ROOT / "launch" / "kubernetes.yaml").read_text())
    assert jobs["kind"] == "JobSet" and jobs["spec"]["failurePolicy"]["maxRestarts"] > 0
    (one,) = jobs["spec"]["replicatedJobs"]
    spec = one["template"]["spec"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    (container,) = spec["template"]["spec"]["containers"]
    values = {entry["name"]: entry for entry in container["env"]}
    name, (port,) = jobs["metadata"]["name"], container["ports"]
    host = f"{name}-{one['name']}-0-0.{name}"
    address = values["JAX_COORDINATOR_ADDRESS"]["value"]
    assert address == f"{host}:{port['containerPort']}"
    count = int(values["JAX_NUM_PROCESSES"]["value"])
    assert spec["parallelism"] == spec["completions"] == count > 1
    place = values["JAX_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert place == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    named = {name: values.get(name, {}).get("value", "0") for name in processes.NAMES}
    assert processes.job_from_environment(named)["num_processes"] == count
    command = container["command"]
    assert command[:3] == ["python", "-m", "ummcsgm.main"]
    assert (ROOT / command[command.index("--config") + 1]).is_file()


@pytest.mark.parametrize("name", ["local.sh", "slurm.sbatch", "tpu_pod.sh"])
def test_every_launcher_ends_in_the_same_command(name):
    text = (ROOT / "launch" / name).read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert text.count("python -m ummcsgm.main") == 1
    assert '--config "$config" --workdir "$workdir" "$@"' in text
