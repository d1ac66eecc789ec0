"""Compiled programs: kept between runs, their FLOPs, the peak of a device."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tiny_run import ROOT, tiny_config

from ummcsgm.config import build
from ummcsgm.config.build_methods import build_trainable
from ummcsgm.data.store import open_store
from ummcsgm.distributed import devices
from ummcsgm.training import train
from ummcsgm.training.logging import peak_flops, program_flops

pytest_plugins = ["tiny_study"]

DEVICES = """
import sys, jax
from ummcsgm.distributed import devices
if "used" in sys.argv: jax.devices()
devices.use_cpu_cores(eval(sys.argv[1]))
print(jax.device_count())
"""


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


def test_a_step_at_the_peak_takes_its_flops_however_it_is_computed(study, monkeypatch):
    """Neither accumulating nor computing again makes a model's step more."""
    monkeypatch.setattr(train, "peak_flops", lambda kind: 1e9)
    store = open_store(study / "run" / "prepared", "train")
    told = []
    for changes in ({}, {"train__remat": (True,)}, {"train__accumulate": 2}):
        config = tiny_config(study / "subjects", **changes)
        course = build_trainable(config, "mm-csn")
        state = course.start(jax.random.key(0))
        batches = train.training_batches(store, build.build_train_options(config))
        asked = (course.counted, devices.replicate(state), batches)
        told.append(train._min_step_seconds(*asked))
    assert told[0] == told[1] == told[2]
    # About three times the forward pass of the two rows of a device.
    network = build.build_model(config).network
    images = jnp.zeros((2, *config.data.grid, 4))
    forward = jax.jit(functools.partial(network.apply, state.params))
    asked = (images, jnp.zeros((2, 4), bool), jnp.zeros(2))
    ratio = told[0] * 1e9 / program_flops(forward, *asked)
    assert 2 < ratio < 4
    monkeypatch.setattr(train, "peak_flops", lambda kind: None)
    assert train._min_step_seconds(course.counted, state, batches) is None


def count_devices(*arguments, **environment):
    own = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS"):
        if name not in environment:
            own.pop(name, None)
    command = [sys.executable, "-c", DEVICES, *arguments]
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_cpus_cores_are_devices_if_the_rows_divide_over_them():
    cores = len(os.sched_getaffinity(0))
    assert count_devices("None") == cores
    assert count_devices("4") == count_devices("7") == 1  # fewer than 4 each, or not evenly
    if cores == 1:
        pytest.skip("there is one core")
    assert count_devices("8") == 2
    assert count_devices("8", JAX_NUM_CPU_DEVICES="3") == 3
    flags = "--xla_force_host_platform_device_count=5"
    assert count_devices("8", XLA_FLAGS=flags) == 5
    assert count_devices("8", "used") == 1


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    program = """
import jax, jax.numpy as jnp
from ummcsgm.utils import compilation_cache
found = []
jax.monitoring.register_event_listener(lambda name, **_: found.append(name))
compilation_cache.enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))))
print(found.count("/jax/compilation_cache/cache_hits"))
"""
    own = {n: v for n, v in os.environ.items() if not n.startswith("JAX_COMPILATION")}
    own |= {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "caches")}

    def hits(**environment):
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=own | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert hits() == 0
    (folder,) = (tmp_path / "caches" / "ummcsgm").iterdir()
    assert any(folder.iterdir())
    assert hits() > 0
    elsewhere = str(tmp_path / "own")
    assert hits(JAX_COMPILATION_CACHE_DIR=elsewhere) == 0
    assert any((tmp_path / "own").iterdir())
