"""A finished study of every method for many tests; a plugin, as `tiny_study`."""

import contextlib
import shutil

import numpy as np
import pytest
from tiny_run import (
    AFFINE,
    NAMES,
    SHAPE,
    brain,
    path_of,
    run_main,
    tiny_config,
    write_config,
    write_subjects,
)

from ummcsgm.data.nifti import write_new

METHODS = ("regression", "mm-gan")
OTHERS = ("cocagan", "ucdgan", "hi-net", "mm-syn")  # in slow tests
CHANGES = {
    "data__labels": True,
    "missingness__keep_one_seen": True,
    "missingness__size_probabilities": "0.6,0.2,0.2",
    "train__steps": 4,
    "train__save_every": 2,
    "train__log_every": 2,
    "study__methods": METHODS,
    "study__width_scale": (1.0, 0.02),
    "study__lr_scale": (1.0, 1.0),
    "study__patterns_per_image": (1, 2),
    "study__segmenter_steps": 4,
    "study__gallery_slices": 3,
}


def write_tumours(folder):
    """Subjects as `write_subjects` has them, with a tumour in all but the last."""
    write_subjects(folder)
    for index, name in enumerate(NAMES):
        labels = np.zeros(SHAPE, np.uint8)
        if index < len(NAMES) - 1:
            labels[5:10, 6:12, 1:5] = 2
            labels[6:8, 7:10, 2:4] = 1
            labels[6:7, 7:10, 2:4] = 4
        labels[~brain()] = 0
        scan = path_of(folder, name, "t1")
        where = scan.with_name(scan.name.replace("_t1", "_seg"))
        write_new(where, labels, AFFINE)
    return folder


def table_config(folder, **changes):
    """The tiny config of a study of all methods."""
    return tiny_config(folder, **{**CHANGES, **changes})


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A finished study, made once: subjects/, table.py, run/ and stdout.txt.

    Read only: a test that writes takes `own_table`.
    """
    root = tmp_path_factory.mktemp("table")
    folder = write_tumours(root / "subjects")
    config = write_config(root / "table.py", table_config(folder))
    log = root / "stdout.txt"
    with log.open("w") as file, contextlib.redirect_stdout(file):
        code = run_main("--config", config, "--workdir", root / "run")
    assert code == 0, log.read_text()
    return root


@pytest.fixture
def own_table(table, tmp_path):
    """A copy of the finished study, for a test that changes it."""
    shutil.copytree(table, tmp_path / "table")
    return tmp_path / "table"
