"""The cores of a CPU as devices."""

import os
import subprocess
import sys

import pytest
from tiny_run import ROOT

DEVICES = """
import sys, jax
from ummcsgm.distributed import devices
if "used" in sys.argv: jax.devices()
devices.use_cpu_cores(eval(sys.argv[1]))
print(jax.device_count())
"""


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
