"""Each benchmark runs, on a small case, and prints the ratio it is there for."""

import json
import subprocess
import sys

import numpy as np
import pytest
from tiny_run import ENVIRONMENT, ROOT, tiny_config, write_config
from tiny_slices import look, made, write_three

from ummcsgm.benchmarks import data, sampling, scaling


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


def test_training_is_timed_over_processes(tmp_path, monkeypatch, capsys):
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    told = tmp_path / "scaling.json"
    flags = ["--config", config, "--counts", 1, 2, "--steps", 3, "--repeats", 2]
    flags = ["scaling", *map(str, flags), "--json", str(told)]
    monkeypatch.setattr(sys, "argv", flags)
    scaling.main()
    title, *lines = capsys.readouterr().out.splitlines()
    one, two = json.loads(told.read_text())["rows"]
    assert [one["processes"], two["processes"]] == [1, 2] and len(lines) == 2
    assert title.startswith("processes | images/s") and lines[1].startswith("2 | ")
    assert one["efficiency"] == 1 and len(two["turns_images_per_s"]) == 2
    ratio = two["images_per_s"] / one["images_per_s"]
    assert two["efficiency"] == pytest.approx(ratio, abs=1e-3)
    assert two["collectives"] > 0.01  # two processes wait for one another, at least


def test_the_scaling_summary_is_of_medians():
    turns = [
        {"together": t, "alone": a} for t, a in ((2.0, 1.0), (4.0, 3.0), (5.0, 5.0))
    ]
    told = scaling.summary(turns, images=40)
    assert told["images_per_s"] == 10 and told["collectives"] == 0.25
    assert told["turns_images_per_s"] == [20, 10, 8]


def test_a_process_count_that_does_not_divide_the_batch_is_refused(
    tmp_path, monkeypatch, capsys
):
    config = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    flags = ["scaling", "--config", str(config), "--counts", "3"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit):
        scaling.main()
    assert "--counts 3 does not divide the batch of 4" in capsys.readouterr().err
