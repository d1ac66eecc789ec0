"""The benchmarks `input` and `launch`."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from tiny_run import ROOT, printed, run_main, tiny_config, write_config

from ummcsgm.benchmarks import input as input_benchmark
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


@pytest.mark.slow
def test_training_is_timed_on_a_constant_batch_and_on_those_it_reads(
    tiny, tmp_path, monkeypatch, capsys, quick_compile
):
    """Late batches show in the report; nothing waits for the constant batch."""
    from_step, starts = Batches.from_step, []

    def late(self, step):
        starts.append(step)
        for batch in from_step(self, step):
            time.sleep(0.4)
            yield batch

    monkeypatch.setattr(input_benchmark, "WARM", 2)
    monkeypatch.setattr(Batches, "from_step", late)
    file = tmp_path / "report.json"
    flags = ("--config", tiny, "--repeats", 3, "--json", file, *SMALL)
    report = printed(input_benchmark, monkeypatch, capsys, *flags)
    assert json.loads(file.read_text()) == report
    assert len(starts) == len(report["read_ms"]) == len(report["constant_ms"]) == 3
    assert report["grid"] == [32, 32, 4] and report["devices"] == 2
    assert report["median_ratio"] == sorted(report["ratios"])[1]
    first = report["read_ms"][0] / report["constant_ms"][0]
    assert report["ratios"][0] == pytest.approx(first, rel=1e-2)
    # The loop fetches a batch ahead: of so many steps all but one wait.
    late = 400 * (1 - 1 / report["steps"])
    assert min(report["read_ms"]) > 0.97 * late > 2 * min(report["constant_ms"])


@pytest.mark.slow
def test_the_steps_after_the_warm_ones_are_timed(tiny, tmp_path, monkeypatch):
    """With a clock that moves a second with each step."""
    taken, run_training = [], input_benchmark.run_training

    def counting(step, state, *rest, log):
        def counted(*arguments):
            taken.append(0)
            return step(*arguments)

        return run_training(counted, state, *rest, log=log)

    monkeypatch.setattr(input_benchmark, "run_training", counting)
    monkeypatch.setattr(input_benchmark.time, "perf_counter", lambda: float(len(taken)))
    config = input_benchmark.read_config(str(tiny))
    store = input_benchmark.prepare_phantom(tmp_path, config, make_flags(shape=None))
    batches = input_benchmark.make_training_batches(store, config.train.batch)
    timer = input_benchmark.make_timer(config, tmp_path, 5)
    for source in (batches, input_benchmark.ConstantBatches(batches.at(0))):
        taken.clear()
        assert timer(source) == 1000
        assert len(taken) == 5 + input_benchmark.WARM


def make_flags(**changes):
    return argparse.Namespace(subjects=1, processes=1, **changes)


@pytest.mark.slow
def test_the_benchmark_of_input_needs_no_pytorch():
    """TensorBoard's writer imports it where it is installed; here it cannot be."""
    code = "import sys; sys.modules['torch'] = None; import ummcsgm.benchmarks.input"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.slow
def test_a_launch_prints_the_lines_that_are_timed(tiny, tmp_path, capsys):
    """And prepares no slices that are there already."""
    for mode in ("prepare", "train"):
        _, *command = launch.make_command(str(tiny), tmp_path / "run", mode)
        assert command[:2] == ["-m", "ummcsgm.main"]
        if mode == "train":
            shutil.copytree(tmp_path / "run", tmp_path / "copy")
            command = [word.replace("/run", "/copy") for word in command]
        assert run_main(*command[2:]) == 0
        lines = capsys.readouterr().out.splitlines()
        expected = ["prepared"] if mode == "prepare" else ["prepared", "step"]
        for name, beginning in launch.LINES.items():
            printed_lines = [line for line in lines if line.startswith(beginning)]
            assert len(printed_lines) == (name in expected)
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


@pytest.mark.slow
def test_a_turn_times_a_cold_and_a_warm_launch(tmp_path, monkeypatch):
    """Of a program that sleeps where training works; each launch has its own slices."""
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "slices").write_text("whole")
    monkeypatch.setattr(
        launch, "make_command", lambda _, workdir, mode: [sys.executable, "-c", CHILD, str(workdir)]
    )
    for _ in range(2):
        turn = launch.run_turn(tmp_path, "")
        rest = {way: turn[way]["step"] - turn[way]["prepared"] for way in WAYS}
        assert min(turn[way]["prepared"] for way in WAYS) > 0.2
        assert max(turn[way]["step"] for way in WAYS) < 20
        assert 0 < rest["warm"] < rest["cold"] - 0.5
        assert turn["files"] == 1 and turn["mib"] == 2**-20
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_the_report_has_the_seconds_of_every_turn(tiny, tmp_path, monkeypatch):
    """And the median of the ratios."""
    ratios = iter((0.5, 0.2, 0.4))
    prepared = tmp_path / "prepared"
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: prepared.mkdir())

    def run_turn(folder, config):
        cold, warm = {"prepared": 2.0, "step": 10.0}, {"prepared": 1.0}
        warm["step"] = 10 * next(ratios)
        return {"cold": cold, "warm": warm, "files": 3, "mib": 1.0}

    monkeypatch.setattr(launch, "run_turn", run_turn)
    flags = argparse.Namespace(config=str(tiny), repeats=3)
    report = launch.measure(tmp_path, flags)
    assert report["cold_s"] == [10] * 3 and report["warm_s"] == [5, 2, 4]
    assert report["warm_prepared_s"] == [1] * 3 and report["warm_rest_s"] == [4, 1, 3]
    assert report["ratios"] == [0.5, 0.2, 0.4] and report["median_ratio"] == 0.4


@pytest.mark.parametrize("code", ["print('prepared:')", "raise SystemExit(3)"])
def test_a_launch_that_takes_no_step_is_refused(tmp_path, code):
    with pytest.raises(InputError, match="of the lines prepared, step"):
        launch.seconds_to_lines([sys.executable, "-c", code], tmp_path)
