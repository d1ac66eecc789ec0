"""A run can be repeated from what lies in its workdir."""

import importlib.metadata
import json
import re
import runpy
import subprocess

import jax
import pytest
from tiny_run import quickstart

from ummcsgm.config import build
from ummcsgm.types import InputError
from ummcsgm.utils import provenance

SPLIT = {"train": ["a", "b"], "validation": [], "test": ["c"]}


def fields_of(config):
    return build.config_to_json(config)


def test_the_config_file_gives_the_config_again_tuples_and_all(tmp_path):
    config = quickstart()
    provenance.write_manifest(tmp_path, fields_of(config), SPLIT, 0)
    again = runpy.run_path(str(tmp_path / "config.py"))["get_config"]()
    assert again.to_dict() == config.to_dict()
    assert again.data.grid == (56, 48) and isinstance(again.data.grid, tuple)
    assert [type(v) for v in again.train.values()] == [type(v) for v in config.train.values()]


def test_the_manifest_holds_all_that_decides_the_numbers(tmp_path):
    config = quickstart()
    config.seed = 11
    provenance.write_manifest(tmp_path, fields_of(config), SPLIT, 7)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert build.config_from_json(content["config"]).to_dict() == config.to_dict()
    assert (content["seed"], content["split"]) == (11, SPLIT)
    (start,) = content["starts"]
    assert start["step"] == 7
    assert start["processes"] == 1
    assert start["devices"] == [device.device_kind for device in jax.devices()]
    assert len(start["devices"]) == 2
    for name in ("ummcsgm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        assert start["versions"][name] == importlib.metadata.version(name)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", start["time"])
    assert start["commit"] == provenance.commit()


def test_every_start_of_a_run_is_kept_and_the_newest_config_counts(tmp_path):
    for step, rate in ((0, 1e-3), (40, 2e-3)):
        config = quickstart()
        config.train.learning_rate = rate
        provenance.write_manifest(tmp_path, fields_of(config), SPLIT, step)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert [start["step"] for start in content["starts"]] == [0, 40]
    assert provenance.saved_config(tmp_path)["train"]["learning_rate"] == 2e-3


def test_a_workdir_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match=f"--config is missing, and {tmp_path} has"):
        provenance.saved_config(tmp_path)


def git(folder, *arguments):
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "gc.auto=0"]
    done = subprocess.run(
        ["git", "-C", folder, *settings, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of the code with one commit."""
    module = tmp_path / "package" / "manifest.py"
    module.parent.mkdir()
    module.write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return tmp_path


def test_the_commit_is_that_of_the_code_and_says_whether_it_was_changed(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance.commit() == head and len(head) == 40
    (checkout / "package" / "manifest.py").write_text("2\n")
    assert provenance.commit() == f"{head}-dirty"


def test_installed_code_inside_a_foreign_checkout_has_no_commit(checkout, monkeypatch):
    inside = checkout / "venv" / "package" / "manifest.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert provenance.commit() is None


def test_without_git_there_is_no_commit_and_no_error(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None
