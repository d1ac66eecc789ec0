"""What a run tells: log.jsonl, TensorBoard's event files, and a line or a bar."""

import functools
import io
import json
import struct
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tiny_run import EDM, quickstart, tiny_config, write_subjects

from ummcsgm.config import build
from ummcsgm.config.build_data import prepare
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.distributed import devices
from ummcsgm.training import logging, train
from ummcsgm.training.logging import TrainingLog, peak_flops, program_flops


def plan(steps=10, every=3, batch=4):
    config = quickstart()
    changes = {"train.steps": steps, "train.log_every": every, "train.batch": batch}
    config.update_from_flattened_dict(changes)
    return build.build_train_options(config)


def metrics(step, skipped=0.0):
    return {"loss": float(step), "grad_norm": 10.0 * step, "skipped": skipped}


def write_log(workdir, first, last, **changes):
    with TrainingLog(workdir, plan(**changes), first) as log:
        for step in range(first + 1, last + 1):
            log.add(step, metrics(step))


def records(workdir):
    lines = (workdir / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def events(workdir):
    """(step, name, value) of every scalar in TensorBoard's files (TFRecord)."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            at += 16 + size
    return found


def test_a_record_is_the_mean_of_its_steps_and_the_last_step_has_one(tmp_path):
    write_log(tmp_path, 0, 10)
    assert [(r["step"], r["loss"], r["grad_norm"]) for r in records(tmp_path)] == [
        (3, 2.0, 20.0),
        (6, 5.0, 50.0),
        (9, 8.0, 80.0),
        (10, 10.0, 100.0),
    ]


def test_skipped_steps_are_counted_not_averaged(tmp_path, capsys):
    with TrainingLog(tmp_path, plan(steps=3), 0) as log:
        for step, skipped in ((1, 0.0), (2, 1.0), (3, 2.0)):
            log.add(step, metrics(step, skipped))
    assert records(tmp_path)[0]["skipped"] == 2.0
    assert "2 steps skipped" in capsys.readouterr().out


def test_a_step_that_is_not_finite_is_left_out_of_the_mean_and_log_stays_json(tmp_path):
    nan, inf = float("nan"), float("inf")
    with TrainingLog(tmp_path, plan(steps=6), 0) as log:
        for step, loss in enumerate((1.0, nan, 3.0, nan, inf, nan), 1):
            log.add(step, {**metrics(step), "loss": loss})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    first, second = (json.loads(line, parse_constant=refuse) for line in lines)
    assert first["loss"] == 2.0 and first["grad_norm"] == 20.0
    assert "loss" not in second and second["grad_norm"] == 50.0
    losses = [event for event in events(tmp_path) if event[1] == "train/loss"]
    assert losses == [(3, "train/loss", 2.0)]


def test_the_rate_is_of_images_in_the_time_since_the_last_record(tmp_path, monkeypatch):
    clock = iter([100.0, 106.0, 107.0, 109.0, 110.0])  # writing takes a second
    monkeypatch.setattr(logging, "time", SimpleNamespace(monotonic=clock.__next__))
    write_log(tmp_path, 0, 6, steps=6, every=3, batch=8)
    rates = [record["images_per_second"] for record in records(tmp_path)]
    assert rates == [3 * 8 / 6.0, 3 * 8 / 2.0]


def test_tensorboard_has_the_same_numbers_at_the_same_steps(tmp_path):
    write_log(tmp_path, 0, 10)
    expected = [
        (record["step"], f"train/{name}", pytest.approx(value, rel=1e-6))
        for record in records(tmp_path)
        for name, value in record.items()
        if name != "step"
    ]
    assert sorted(events(tmp_path), key=str) == sorted(expected, key=str)
    assert (10, "train/loss", 10.0) in events(tmp_path)


def test_a_resumed_log_forgets_what_came_after_the_checkpoint(tmp_path):
    write_log(tmp_path, 0, 9)
    write_log(tmp_path, 6, 10)
    assert [(r["step"], r["loss"]) for r in records(tmp_path)] == [
        (3, 2.0),
        (6, 5.0),
        (9, 8.0),
        (10, 10.0),
    ]


def test_a_line_cut_short_by_a_kill_is_forgotten(tmp_path):
    write_log(tmp_path, 0, 6)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    write_log(tmp_path, 6, 9)
    assert [record["step"] for record in records(tmp_path)] == [3, 6, 9]


def test_not_on_a_terminal_there_is_a_plain_line_a_record(tmp_path, capsys):
    write_log(tmp_path, 0, 10)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"step {step}/10" for step in (3, 6, 9, 10)]
    assert "loss 5.0000" in lines[1] and "images/s" in lines[1]
    assert not any("\x1b" in line or "\r" in line for line in lines)
    assert lines[-1].endswith("0:00 left")


def test_on_a_terminal_there_is_one_bar_and_no_plain_line(tmp_path, monkeypatch, capsys):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(logging, "Console", lambda: console)
    write_log(tmp_path, 0, 10)
    shown = screen.getvalue()
    assert "training" in shown and "10/10" in shown and "loss 10.0000" in shown
    assert "\x1b[" in shown
    assert capsys.readouterr().out == ""
    assert [record["step"] for record in records(tmp_path)] == [3, 6, 9, 10]


def test_on_a_device_whose_peak_is_known_its_share_is_told(tmp_path, capsys):
    with TrainingLog(tmp_path, plan(steps=2), 0, 1e-6) as log:
        for step in (1, 2):
            log.add(step, metrics(step))
    (record,) = records(tmp_path)
    rate = record["images_per_second"] / 4  # of a batch
    np.testing.assert_allclose(record["utilisation"], 1e-6 * rate)
    assert "% of peak FLOP/s" in capsys.readouterr().out
    write_log(tmp_path / "b", 0, 3)
    assert "utilisation" not in records(tmp_path / "b")[0]
    assert "peak" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("cpu", None),
        ("NVIDIA H1000", None),
    ],
)
def test_the_peak_is_that_of_the_kind_and_of_no_other(kind, peak):
    assert peak_flops(kind) == peak


def test_flops_are_those_of_one_device_and_of_the_products_in_the_program():
    a, b = jnp.ones((64, 96)), jnp.ones((96, 32))
    count = program_flops(jax.jit(jnp.dot), a, b)
    assert count == 2 * 64 * 96 * 32
    mapped = jax.pmap(jnp.dot, in_axes=(0, None))
    halves = a.reshape(2, 32, 96)
    assert program_flops(mapped, halves, b) == pytest.approx(count / 2, rel=0.01)


def test_a_step_at_the_peak_takes_its_flops_however_it_is_computed(tmp_path, monkeypatch):
    """Neither accumulating nor computing again makes a model's step more."""
    monkeypatch.setattr(train, "peak_flops", lambda kind: 1e9)
    subjects = write_subjects(tmp_path / "subjects")
    store = prepare(tiny_config(subjects), tmp_path)[1]["train"]
    seconds = []
    for changes in ({}, {"train__remat": (True,)}, {"train__accumulate": 2}):
        config = tiny_config(subjects, **EDM, **changes)
        method = build_trainable(config, "mm-csn")
        state = method.start(jax.random.key(0))
        batches = train.training_batches(store, build.build_train_options(config))
        arguments = (method.counted, devices.replicate(state), batches)
        seconds.append(train._min_step_seconds(*arguments))
    assert seconds[0] == seconds[1] == seconds[2]
    # About three times the forward pass of the two rows of a device.
    network = build.build_model(config).network
    images = jnp.zeros((2, *config.data.grid, 4))
    forward = jax.jit(functools.partial(network.apply, state.params))
    arguments = (images, jnp.zeros((2, 4), bool), jnp.zeros(2))
    ratio = seconds[0] * 1e9 / program_flops(forward, *arguments)
    assert 2 < ratio < 4
    monkeypatch.setattr(train, "peak_flops", lambda kind: None)
    assert train._min_step_seconds(method.counted, state, batches) is None
