"""Each benchmark runs on a small case and reports its numbers."""

import json
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_run import ENVIRONMENT, ROOT, printed, tiny_config, write_config
from tiny_slices import look, made, write_three

from ummcsgm.benchmarks import (
    data,
    dial,
    doctor,
    launch,
    memory,
    preconditioning,
    sampling,
    scaling,
)
from ummcsgm.benchmarks import input as input_benchmark
from ummcsgm.distributed import devices
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.subject_posterior import SubjectPosterior
from ummcsgm.types import Estimate


@pytest.fixture
def tiny(tmp_path):
    """The file of a config with a small network."""
    config = tiny_config(tmp_path)
    config.data.grid = (56, 48)
    return write_config(tmp_path / "tiny.py", config)


SUBJECT = ("--shape", 64, 64, 40, "--grid", 56, 48)


@pytest.mark.slow
def test_the_sampler_is_timed_beside_the_network(tiny, monkeypatch, capsys, quick_compile):
    monkeypatch.setattr(sampling, "STEPS", 3)
    flags = ("--config", tiny, "--batch", 2, "--repeats", 3, "--parts", "overhead")
    report = printed(sampling, monkeypatch, capsys, *flags)
    assert report["batch"] == 2 and not {"volume", "growth"} & set(report)
    report = report["overhead"]
    assert len(report["ratios"]) == 3
    assert report["median_ratio"] == sorted(report["ratios"])[1] > 0
    assert min(report["forwards_s"] + report["algorithm1_s"]) >= 0


def record_calls(monkeypatch):
    """A list of the examples of each call of a compiled program, and "clock" for each
    reading of the clock."""
    events, over_rows = [], devices.shard_over_rows
    clock = sampling.time.perf_counter

    def record(fill):
        shared = over_rows(fill)

        def call(params, *rows):
            events.append(len(rows[0]))
            return shared(params, *rows)

        return call

    def now():
        events.append("clock")
        return clock()

    monkeypatch.setattr(devices, "shard_over_rows", record)
    # The benchmark's own clock alone: others read the module's too.
    monkeypatch.setattr(sampling, "time", SimpleNamespace(perf_counter=now))
    return events


@pytest.mark.slow
@pytest.mark.parametrize("timed", [0, 2])
def test_some_microbatches_of_a_volume_are_timed_or_all(
    tiny, monkeypatch, capsys, quick_compile, timed
):
    """The calls between two readings of the clock: the mean, a draw, 3 draws, Algorithm 1. Before
    draws comes what all of a slice share, once."""
    monkeypatch.setattr(sampling, "STEPS", 2)
    events = record_calls(monkeypatch)
    flags = ("--config", tiny, "--batch", 4, "--repeats", 2, "--parts", "volume")
    flags += ("--draws", 3, "--timed", timed, "--timed-algorithm1", timed // 2)
    volume = printed(sampling, monkeypatch, capsys, *flags, *SUBJECT)["volume"]
    slices = volume["slices"]
    each = -(-slices // 4)
    totals = [each, each, -(-3 * slices // 4), each]
    timers = ("mean", "warm_draw", "warm_draws", "algorithm1_2")
    counts = [timed, timed, 3 * timed, timed // 2] if timed else totals
    shared = [0, timed, timed, timed // 2] if timed else [0, each, each, each]
    assert volume["timed"] == {
        name: f"{count} of {total}"
        for name, count, total in zip(timers, counts, totals, strict=True)
    }
    events = events[events.index("clock") :]
    between = [
        sum(event != "clock" for event in part)
        for part in np.split(events, np.flatnonzero(np.array(events) == "clock"))[1::2]
    ]
    assert between == [sum(pair) for pair in zip(counts, shared, strict=True)] * 2
    assert volume["algorithm1_steps_timed"] == [2]
    assert set(events) == {"clock", 4}
    assert 0 < volume["computed_share"] < 1
    assert volume["computed_share"] == pytest.approx(slices * 56 * 48 / (64 * 64 * 40), abs=1e-3)
    first = volume["mean_and_draws_s"][0] / volume["algorithm1_s"][0]
    assert volume["ratios"][0] == pytest.approx(first, rel=0.02)
    assert volume["warm_s"][0] > volume["mean_s"][0]


def test_timed_microbatches_are_multiplied_to_the_volume(monkeypatch):
    """A clock that runs a second a reading: 2 microbatches of 5 are 2.5 times it."""
    readings, calls = iter(range(100)), []
    monkeypatch.setattr(sampling.time, "perf_counter", lambda: next(readings))

    def mean(images, missing):
        calls.append(0)
        return Estimate(images, None)

    def draws(images, missing, addresses, estimate):
        calls.append(len(addresses))
        return (images for _ in addresses)

    images = np.zeros((10, 2, 2, 4), np.float32)
    inputs = SubjectInputs("P", np.arange(10), images, np.ones(4, bool))
    posterior = SubjectPosterior(mean, draws)
    for count, timed, scale in ((0, 2, 2.5), (1, 2, 2.5), (3, 2, 2.5), (3, 0, 1), (3, 5, 1)):
        timer, description = sampling.make_timer(posterior, inputs, 2, count, timed)
        total = 5 * max(count, 1)
        assert description == f"{(timed or 5) * max(count, 1)} of {total}"
        # All is compiled before the clock starts.
        assert calls == ([0, 1] if count else [0, 0])
        assert timer() == pytest.approx(scale)
        assert calls[2:] == [count]
        calls.clear()


def test_few_steps_of_algorithm_1_are_extended_by_the_line_through_two_numbers():
    scoring = SimpleNamespace(algorithm1_steps=1000)
    for few, numbers in ((0, [1000]), (100, [100, 200]), (500, [1000]), (499, [499, 998])):
        flags = SimpleNamespace(steps_algorithm1=few)
        assert sampling.algorithm1_numbers(scoring, flags) == numbers
    # 3 seconds of what all steps share, and 0.1 a step.
    assert sampling.extend([100, 200], [13.0, 23.0], 1000) == pytest.approx(103)
    assert sampling.extend([1000], [7.0], 1000) == 7.0


@pytest.mark.slow
def test_growth_is_the_slope_of_logarithms(tiny, monkeypatch, capsys, quick_compile):
    assert sampling.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
    assert sampling.exponent([8, 16], [5.0, 5.0]) == pytest.approx(0)
    monkeypatch.setattr(sampling, "SIZES", (1, 2))
    events = record_calls(monkeypatch)
    flags = ("--config", tiny, "--batch", 2, "--repeats", 1, "--parts", "growth")
    growth = printed(sampling, monkeypatch, capsys, *flags, *SUBJECT)["growth"]
    assert growth["slices"]["sizes"] == [2, 4] and growth["draws"]["sizes"] == [1, 2]
    for part in growth.values():
        slope = np.log(part["seconds"][1] / part["seconds"][0]) / np.log(2)
        assert part["exponent"] == pytest.approx(slope, abs=0.05)
    first = events.index("clock")
    timed = [event for event in events[first:] if event != "clock"]
    # batch 1 is 2 rows on two devices; then draws, of what they share and of steps, and slices of
    # 1; and all again of 2.
    assert timed == [2] * 10


@pytest.mark.slow
def test_what_is_printed_is_also_written(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "STEPS", 2)
    file = tmp_path / "below" / "report.json"
    flags = ("--config", tiny, "--batch", 2, "--repeats", 1, "--parts", "overhead")
    report = printed(sampling, monkeypatch, capsys, *flags, "--json", file)
    assert json.loads(file.read_text()) == report and report["overhead"]


@pytest.mark.parametrize(
    "module",
    [data, dial, doctor, input_benchmark, launch, memory, preconditioning, sampling, scaling],
)
def test_every_benchmark_has_the_flag_json(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--help"])
    with pytest.raises(SystemExit):
        module.main()
    printed_help = " ".join(capsys.readouterr().out.split())
    assert "--json FILE" in printed_help and module.__doc__.splitlines()[0] in printed_help


@pytest.fixture
def deep(tmp_path):
    """The file of a config whose network is mostly blocks."""
    deeper = {"network.blocks": (3,), "network.patch": 2}
    config = tiny_config(tmp_path)
    config.update_from_flattened_dict(deeper)
    return write_config(tmp_path / "deep.py", config)


TRAINING = ("--parts", "training", "--grid", 64, 64, "--batches", "2,8")


@pytest.mark.slow
def test_the_memory_of_training_grows_with_the_batch_and_less_when_rematerialised(
    deep, monkeypatch, capsys, quick_compile
):
    """Computed before anything runs, so that one process is enough here."""
    monkeypatch.setattr(memory, "run_in_new_process", lambda work, *inputs: work(*inputs))
    report = printed(memory, monkeypatch, capsys, "--config", deep, *TRAINING)["training"]
    assert report["batches"] == [2, 8]
    for way in ("plain", "rematerialised"):
        for kind, least in (("compiled", 1.5), ("kept", 2)):
            two, eight = report[way][f"{kind}_mib"]
            assert least * two < eight < 4 * two
            slope = report[way][f"{kind}_mib_an_example"]
            assert slope == pytest.approx((eight - two) / 6, abs=0.02)
    kept = [report[way]["kept_mib"][1] for way in ("plain", "rematerialised")]
    assert kept[1] < 0.9 * kept[0]
    assert report["kept_ratio"] == pytest.approx(kept[1] / kept[0], abs=1e-3)
    assert 0 < report["compiled_ratio"] < 1.1


@pytest.mark.slow
def test_the_memory_of_a_step_includes_parameters_and_activations(tmp_path, quick_compile):
    """Parameters, their average and Adam's two moments; activations take more than the
    images."""
    file = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    report = memory.step_mib(str(file), (16, 16), 6, False)
    model = memory.build.build_model(memory.read_config(str(file), (16, 16)))
    params = memory.random_params(model, (16, 16))
    held = 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(params)) / 2**20
    images = 6 * 16 * 16 * 4 * 4 / 2**20
    assert report["compiled"] > held + images
    # On one of the two devices; the parameters are kept for the gradient too.
    assert report["kept"] > held / 4 + images / 2
    stats = jax.local_devices()[0].memory_stats()
    assert (report["device"] is None) == (stats is None)


@pytest.mark.slow
@pytest.mark.skipif(not data.PROCESS_STATUS.is_file(), reason="the system reports no peak memory")
def test_the_memory_of_completing_hardly_grows_with_draws(tiny, monkeypatch, capsys):
    flags = ("--config", tiny, "--parts", "completing", "--draws", "2,200", *SUBJECT)
    report = printed(memory, monkeypatch, capsys, *flags)["completing"]
    assert report["draws"] == [2, 200] and min(report["peak_mib"]) > 50
    few, many = report["peak_mib"]
    assert report["growth_mib"] == pytest.approx(many - few, abs=1)
    assert report["ratio"] == pytest.approx(many / few, abs=0.01)
    # 198 more draws of what is missing alone are 75 MiB.
    assert report["growth_mib"] < 40


@pytest.mark.slow
def test_reading_the_store_is_timed_beside_nifti(monkeypatch, capsys):
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
    larger = data.repeat_store(store, 3)
    slices = store.read(np.arange(len(store)))[0]
    assert np.array_equal(larger.read(np.arange(3 * len(store)))[0], np.concatenate([slices] * 3))
    assert len({entry.name for entry in larger.subjects}) == 9


@pytest.mark.skipif(not data.PROCESS_STATUS.is_file(), reason="the system reports no peak memory")
def test_the_peak_of_a_process_stays_after_memory_is_freed():
    code = (
        "import numpy as np\nfrom ummcsgm.benchmarks.data import peak_mib\n"
        "before = peak_mib()\nheld = np.ones(2**27, np.uint8)\ndel held\n"
        "print(peak_mib() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 110 < float(run.stdout) < 146


def test_the_rate_is_slices_over_seconds(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr(data.time, "perf_counter", lambda: next(times))
    assert data.slices_per_second(lambda: 64) == 32


@pytest.mark.slow
def test_training_is_timed_over_processes(tmp_path, monkeypatch, capsys):
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(name, value)
    config = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    file = tmp_path / "scaling.json"
    flags = ["--config", config, "--counts", 1, 2, "--steps", 3, "--repeats", 2]
    flags = ["scaling", *map(str, flags), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", flags)
    scaling.main()
    title, *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == json.loads(file.read_text())
    single, two = json.loads(last)["rows"]
    assert [single["processes"], two["processes"]] == [1, 2] and len(lines) == 2
    assert title.startswith("processes | images/s") and lines[1].startswith("2 | ")
    assert single["efficiency"] == single["speedup"] == 1 and len(two["turns_images_per_s"]) == 2
    ratio = two["images_per_s"] / single["images_per_s"]
    assert two["speedup"] == pytest.approx(ratio, abs=1e-3)
    assert two["efficiency"] == pytest.approx(ratio / 2, abs=1e-3)
    assert two["collectives"] > 0.01  # two processes wait for one another, at least


def test_the_scaling_summary_is_of_medians():
    turns = [{"together": t, "alone": a} for t, a in ((2.0, 1.0), (4.0, 3.0), (5.0, 5.0))]
    report = scaling.summarise(turns, images=40)
    assert report["images_per_s"] == 10 and report["collectives"] == 0.25
    assert report["turns_images_per_s"] == [20, 10, 8]


def test_a_process_count_that_does_not_divide_the_batch_is_refused(tmp_path, monkeypatch, capsys):
    config = write_config(tmp_path / "tiny.py", tiny_config(tmp_path))
    flags = ["scaling", "--config", str(config), "--counts", "3"]
    monkeypatch.setattr(sys, "argv", flags)
    with pytest.raises(SystemExit):
        scaling.main()
    assert "--counts 3 does not divide the batch of 4" in capsys.readouterr().err
