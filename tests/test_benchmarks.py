"""Each benchmark runs, on a small case, and prints the ratio it is there for."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import tiny_config, write_config
from tiny_slices import look, made, write_three

from ummcsgm.benchmarks import data, sampling


def printed(module, monkeypatch, capsys, *flags):
    """What `module` prints when it is run with `flags`."""
    monkeypatch.setattr(sys, "argv", ["benchmark", *map(str, flags)])
    module.main()
    return json.loads(capsys.readouterr().out)


def test_the_sampler_is_timed_beside_the_network(
    tmp_path, monkeypatch, capsys, quick_compile
):
    monkeypatch.setattr(sampling, "STEPS", 3)
    config = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    flags = ("--config", config, "--batch", 2, "--repeats", 3)
    report = printed(sampling, monkeypatch, capsys, *flags)
    assert report["batch"] == 2 and len(report["ratios"]) == 3
    assert report["median_ratio"] == sorted(report["ratios"])[1] > 0
    assert min(report["forwards_s"] + report["algorithm1_s"]) >= 0


def test_the_store_is_timed_beside_nifti_and_its_memory_weighed(monkeypatch, capsys):
    flags = ["--subjects", 1, "--shape", 64, 64, 16, "--grid", 64, 64, "--batch", 4]
    flags += ["--batches", 20, "--random", 1, "--repeats", 3, "--processes", 1]
    report = printed(data, monkeypatch, capsys, *flags)
    assert report["grid"] == [64, 64, 4] and 0 < report["slices"] <= 16
    for way in ("store", "nifti", "nifti_random"):
        rates = report[f"{way}_slices_per_s"]
        assert len(rates) == 3 and min(rates) > 0
    assert report["median_ratio"] == sorted(report["ratios"])[1] > 0
    first = report["store_slices_per_s"][0] / report["nifti_slices_per_s"][0]
    assert report["ratios"][0] == pytest.approx(first, abs=0.051, rel=0.02)
    assert report["median_ratio_random"] >= 0 and len(report["peak_growth_mib"]) == 2


@pytest.fixture
def store(tmp_path):
    subjects = look(write_three(tmp_path / "raw"))
    return made(tmp_path / "s", {"train": subjects})[0]["train"]


def test_the_larger_store_has_the_same_slices_several_times(store):
    larger = data.repeated(store, 3)
    slices = store.read(np.arange(len(store)))[0]
    assert np.array_equal(
        larger.read(np.arange(3 * len(store)))[0], np.concatenate([slices] * 3)
    )
    assert len({entry.name for entry in larger.subjects}) == 9


@pytest.mark.skipif(not data.STATUS.is_file(), reason="no peak memory is told here")
def test_the_memory_of_a_process_is_weighed():
    """A peak stays: 128 MiB that are held and given back are still told of."""
    code = (
        "import numpy as np\nfrom ummcsgm.benchmarks.data import peak_mib\n"
        "before = peak_mib()\nheld = np.ones(2**27, np.uint8)\ndel held\n"
        "print(peak_mib() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 110 < float(run.stdout) < 146


def test_the_rate_is_slices_by_time(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(times))
    assert data.rate(lambda: 64) == 32
