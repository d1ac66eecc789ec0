"""The benchmarks of waiting: for the input of a step, and for the first step at all."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from tiny_run import ROOT, printed, run_main, tiny_config, write_config

from ummcsgm.benchmarks import input as waiting
from ummcsgm.benchmarks import launch
from ummcsgm.data.loader import Batches
from ummcsgm.types import InputError


@pytest.fixture
def tiny(tmp_path):
    """The file of a config whose network is small and whose data is a phantom."""
    shape = {"phantom__shape": (32, 32, 8), "data__min_brain_fraction": 0.05}
    config = tiny_config("", data__grid=(32, 32), **shape)
    return write_config(tmp_path / "tiny.py", config)


SMALL = ("--subjects", 1, "--steps", 10, "--processes", 1)


def test_training_is_timed_on_a_constant_batch_and_on_those_it_reads(
    tiny, tmp_path, monkeypatch, capsys, quick_compile
):
    """Batches that come late are told of, and on the constant one nothing waits."""
    from_step, begun = Batches.from_step, []

    def late(self, step):
        begun.append(step)
        for batch in from_step(self, step):
            time.sleep(0.2)
            yield batch

    monkeypatch.setattr(waiting, "WARM", 2)
    monkeypatch.setattr(Batches, "from_step", late)
    file = tmp_path / "told.json"
    flags = ("--config", tiny, "--repeats", 3, "--json", file, *SMALL)
    told = printed(waiting, monkeypatch, capsys, *flags)
    assert json.loads(file.read_text()) == told
    assert len(begun) == len(told["read_ms"]) == len(told["constant_ms"]) == 3
    assert told["grid"] == [32, 32, 4] and told["devices"] == 2
    assert told["median_ratio"] == sorted(told["ratios"])[1]
    first = told["read_ms"][0] / told["constant_ms"][0]
    assert told["ratios"][0] == pytest.approx(first, rel=1e-2)
    # The loop fetches a batch ahead: of so many steps all but one wait.
    late = 200 * (1 - 1 / told["steps"])
    assert min(told["read_ms"]) > 0.97 * late > 2 * min(told["constant_ms"])


def test_so_many_steps_are_timed_after_the_warm_ones(tiny, tmp_path, monkeypatch):
    """A clock that runs a second a step that was taken."""
    taken, fit = [], waiting.run_training

    def counting(step, state, *rest):
        def counted(*arguments):
            taken.append(0)
            return step(*arguments)

        return fit(counted, state, *rest)

    monkeypatch.setattr(waiting, "run_training", counting)
    monkeypatch.setattr(waiting.time, "perf_counter", lambda: float(len(taken)))
    config = waiting.read_config(str(tiny), None)
    store = waiting.prepared(tmp_path, config, flags_of(shape=None))
    batches = waiting.batches_of(store, config.train.batch)
    timer = waiting.make_timer(config, tmp_path, 5)
    for own in (batches, waiting.Constant(batches.at(0))):
        taken.clear()
        assert timer(own) == 1000
        assert len(taken) == 5 + waiting.WARM


def flags_of(**changes):
    return waiting.argparse.Namespace(subjects=1, processes=1, **changes)


def test_the_benchmark_of_input_needs_no_pytorch():
    """Where it is installed TensorBoard's writer imports it: here nobody can."""
    code = "import sys; sys.modules['torch'] = None; import ummcsgm.benchmarks.input"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_launch_prints_the_lines_that_are_waited_for(tiny, tmp_path, capsys):
    """And prepares nothing that was prepared."""
    for mode in ("prepare", "train"):
        _, *command = launch.make_command(str(tiny), tmp_path / "run", mode)
        assert command[:2] == ["-m", "ummcsgm.main"]
        if mode == "train":
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
            command = [word.replace("/run", "/copy") for word in command]
        assert run_main(*command[2:]) == 0
        lines = capsys.readouterr().out.splitlines()
        marks = ["prepared"] if mode == "prepare" else ["prepared", "step"]
        for name, words in launch.MARKS.items():
            told = [line for line in lines if line.startswith(words)]
            assert len(told) == (name in marks)
        assert any(line.startswith("preparing") for line in lines) == (mode != "train")
    (line,) = (tmp_path / "copy" / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1


CHILD = """
import os, pathlib, sys, time
workdir = pathlib.Path(sys.argv[1])
assert (workdir / "slices").read_text() == "whole" and not (workdir / "log").exists()
(workdir / "log").touch()
compiled = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "program"
time.sleep(0.2)
print("phantom: 6 subjects")
print("prepared: 1 slice", flush=True)
time.sleep(0.1 if compiled.exists() else 1.0)
compiled.write_text("x")
print("step 1/1: loss 1", flush=True)
time.sleep(0.7)
"""


WAYS = ("cold", "warm")


def test_launches_are_told_apart_by_what_they_print(tmp_path, monkeypatch):
    """Of a program that sleeps where training works; each has slices of its own."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "slices").write_text("whole")
    monkeypatch.setattr(
        launch, "make_command", lambda _, at, mode: [sys.executable, "-c", CHILD, str(at)]
    )
    for _ in range(2):
        told = launch.turn(tmp_path, "")
        rest = {way: told[way]["step"] - told[way]["prepared"] for way in WAYS}
        assert min(told[way]["prepared"] for way in WAYS) > 0.2
        assert max(told[way]["step"] for way in WAYS) < 20
        assert 0 < rest["warm"] < rest["cold"] - 0.5
        assert told["files"] == 1 and told["mib"] == 2**-20
    assert [own.name for own in tmp_path.iterdir()] == ["prepared"]


def test_the_seconds_of_launches_are_summed_up(tiny, tmp_path, monkeypatch):
    """Of every turn, and the middle one of the ratios."""
    made = iter((0.5, 0.2, 0.4))
    prepared = tmp_path / "prepared"
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: prepared.mkdir())

    def turn(folder, config):
        cold, warm = {"prepared": 2.0, "step": 10.0}, {"prepared": 1.0}
        warm["step"] = 10 * next(made)
        return {"cold": cold, "warm": warm, "files": 3, "mib": 1.0}

    monkeypatch.setattr(launch, "turn", turn)
    flags = waiting.argparse.Namespace(config=str(tiny), repeats=3)
    told = launch.measure(tmp_path, flags)
    assert told["cold_s"] == [10] * 3 and told["warm_s"] == [5, 2, 4]
    assert told["warm_prepared_s"] == [1] * 3 and told["warm_rest_s"] == [4, 1, 3]
    assert told["ratios"] == [0.5, 0.2, 0.4] and told["median_ratio"] == 0.4


@pytest.mark.parametrize("code", ["print('prepared:')", "raise SystemExit(3)"])
def test_a_launch_that_takes_no_step_is_refused(tmp_path, code):
    with pytest.raises(InputError, match="wanted prepared, step"):
        launch.seconds([sys.executable, "-c", code], tmp_path)
