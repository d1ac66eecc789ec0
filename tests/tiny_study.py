"""One finished study for many tests; a plugin: `pytest_plugins = ["tiny_study"]`."""

import contextlib
import shutil

import pytest
from tiny_run import run_main, tiny_config, write_config, write_subjects


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """A finished study, made once: subjects/, tiny.py, run/ and stdout.txt.

    Read only: a test that writes takes `own_study`.
    """
    root = tmp_path_factory.mktemp("study")
    folder = write_subjects(root / "subjects")
    config = write_config(root / "tiny.py", tiny_config(folder))
    log = root / "stdout.txt"
    with log.open("w") as file, contextlib.redirect_stdout(file):
        code = run_main("--config", config, "--workdir", root / "run")
    assert code == 0, log.read_text()
    return root


@pytest.fixture
def own_study(study, tmp_path):
    """A copy of the finished study, for a test that changes it."""
    shutil.copytree(study, tmp_path / "study")
    return tmp_path / "study"
