"""manifest.json: all that is needed to repeat a run from its workdir alone."""

import functools
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import time
from typing import Any

import jax

from ummcsgm.types import InputError
from ummcsgm.utils.atomic_io import digest, read_json, sha256_of_file, write_atomic

PACKAGES = "ummcsgm jax jaxlib flax optax orbax-checkpoint grain numpy scipy nibabel"

PACKAGE = pathlib.Path(__file__).parents[1]
NUMERIC_CODE = (  # of the package: what can change a number of an evaluation
    "types.py",
    "baselines",
    "config",
    "data",
    "diffusion",
    "distributed",
    "evaluation",
    "inference",
    "models",
    "study/downstream.py",
    "training/segmenter_step.py",
)
NUMERIC_PACKAGES = "jax jaxlib flax numpy scipy".split()

CONFIG_FILE = '''"""A run's config, written by it: --config takes it again."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The run's config."""
    return ConfigDict({fields!r})
'''


def write_manifest(
    workdir: pathlib.Path, config: dict, split: dict[str, list[str]], step: int
) -> None:
    """Writes config.py, a config to run again, and manifest.json beside it.

    The manifest holds config, seed, split, and for each start of the run the step it
    began at, versions, devices, processes and the commit of the code.
    """
    path = workdir / "manifest.json"
    starts = read_json(path)["starts"] if path.is_file() else []
    manifest = {
        "config": config,
        "seed": config["seed"],
        "split": split,
        "starts": [*starts, {"step": step, "config": config, **environment_facts()}],
    }
    write_atomic(path, json.dumps(manifest, indent=1))
    text = CONFIG_FILE.format(fields=lists_to_tuples(config))
    write_atomic(workdir / "config.py", text)


def saved_config(workdir: pathlib.Path) -> dict:
    """The config that the workdir's run was started with, as JSON values.

    Raises:
        InputError: nothing was started there.
    """
    path = workdir / "manifest.json"
    if not path.is_file():
        raise InputError(f"--config is missing, and {workdir} has no run to continue.")
    return read_json(path)["config"]


def environment_facts() -> dict:
    """When, with which versions, on which devices and from which commit."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "versions": versions(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
        "commit": commit(),
    }


def versions() -> dict[str, str]:
    """The versions of this package and of those that decide its numbers."""
    found = {}
    for name in PACKAGES.split():
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"  # a checkout that is run from its folder
    return found


def code_digest() -> str:
    """The SHA-256 of the code that computes an evaluation's numbers, in hexadecimal.

    Of the source of NUMERIC_CODE and the versions of NUMERIC_PACKAGES; read once a
    process. A result that is kept on disk has it in its key.
    """
    return _code_digest(PACKAGE)


@functools.cache
def _code_digest(package: pathlib.Path) -> str:
    paths = [package / name for name in NUMERIC_CODE]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) or [path])]
    sources = {str(file.relative_to(package)): sha256_of_file(file) for file in files}
    installed = versions()
    return digest([sources, [installed[name] for name in NUMERIC_PACKAGES]])


def commit() -> str | None:
    """The commit of the checkout this code runs from, marked if changed; else None."""
    folder = pathlib.Path(__file__).parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def lists_to_tuples(value: Any) -> Any:
    """Returns JSON values as config values: every list, at any depth of dicts, a tuple."""
    if isinstance(value, dict):
        return {key: lists_to_tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
