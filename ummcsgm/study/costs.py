"""What a method costs: parameters, operations, and seconds of training and answers."""

import json
import pathlib

import numpy as np

from ummcsgm.data.subjects import network_stacks
from ummcsgm.evaluation.contest import Contest
from ummcsgm.evaluation.sitting import sit
from ummcsgm.study.rivals import Rival, seconds_per_slice
from ummcsgm.training.logging import training_seconds
from ummcsgm.utils.atomic_io import read_json, write_atomic

FILE = "costs.json"


def measure(place: pathlib.Path, rival: Rival, contest: Contest) -> None:
    """costs.json in `place` tells how long an answer takes here, unless it does so
    already of these parameters."""
    path = place / FILE
    if path.is_file() and read_json(path)["digest"] == rival.digest:
        return
    sitting = sit(contest.subjects[0], contest.space, contest.questions)
    rows = np.resize(sitting.z, 2 * contest.scoring.microbatch)
    images = network_stacks(sitting.prepared, sitting.modalities, np.unique(rows))
    images = np.resize(images, (len(rows), *images.shape[1:]))
    missing = np.arange(len(sitting.modalities))[None] == 0
    seconds = seconds_per_slice(rival.answer, images, np.repeat(missing, len(rows), 0))
    told = {"digest": rival.digest, "seconds_per_slice": seconds}
    write_atomic(path, json.dumps(told))


def costs_of(place: pathlib.Path, rival: Rival) -> dict:
    """What the study tells of a method's costs: those of the place it was trained in,
    and None for what is not known there."""
    path = place / FILE
    seconds = read_json(path)["seconds_per_slice"] if path.is_file() else None
    return {
        "parameters": rival.parameters,
        "gflop": rival.gflop,
        "train_seconds": training_seconds(place),
        "images_seen": rival.images,
        "steps": rival.step,
        "seconds_per_slice": seconds,
    }
