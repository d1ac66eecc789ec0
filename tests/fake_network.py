"""A method whose predictions are known, evaluated on subjects whose scaling is exact.

The brightest tissue of a subject is a power of two: a perfect prediction is perfect to
the last bit.
"""

import json
import shutil

import numpy as np
import pytest
from tiny_run import AFFINE, MODALITIES, NAMES, SHAPE, brain, path_of, tiny_config

from ummcsgm.config import build
from ummcsgm.config.build_data import prepare
from ummcsgm.data.intensity import fit_scale
from ummcsgm.data.nifti import write_new
from ummcsgm.data.subjects import network_stacks, prepare_subject
from ummcsgm.evaluation.evaluate import build_specs, evaluate
from ummcsgm.evaluation.methods import Costs, TrainedMethod, ridge_methods
from ummcsgm.inference.predictor import slice_addresses
from ummcsgm.types import Estimate

PEAKS = {"flair": 512, "t1": 1024, "t1c": 2048, "t2": 256}
FRACTION = brain()[..., 1].sum() / (SHAPE[0] * SHAPE[1])  # of the frame, all slices


def plateau(name, modality):
    """Two thirds of the brain at the peak, the rest from a half of it upwards."""
    peak = PEAKS[modality]
    rng = np.random.default_rng([*name.encode(), *modality.encode()])
    values = np.clip(rng.integers(peak // 2, 2 * peak, SHAPE), 0, peak)
    return np.where(brain(), values, 0).astype(np.int16)


PEAK = np.float32(PEAKS["t1"] / fit_scale(plateau("P1", "t1")))  # for the network


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Subjects, and a workdir in which they are split. Read only."""
    root = tmp_path_factory.mktemp("evaluate")
    for name in NAMES:
        for modality in MODALITIES:
            path = path_of(root / "subjects", name, modality)
            write_new(path, plateau(name, modality), AFFINE)
    (root / "run").mkdir()
    prepare(tiny_config(root / "subjects"), root / "run")
    return root


class FakeNetwork:
    """What `fill(sampler, images, missing, addresses, rho)` makes of images, as a network.

    The mean is asked with the addresses of draw 0, and sampler "mean"; `calls` are
    (sampler, missing, addresses) in order. `variance(mean)` is predicted with the mean.
    """

    def __init__(self, world, fill, *, variance=None, **changes):
        self.config = tiny_config(world / "subjects", **changes)
        self.fill, self.variance = fill, variance
        self.calls, self.known = [], {}
        self.world = world

    def addresses(self, images):
        """Those of draw 0 of slices, which are known by their bytes."""
        if any(image.tobytes() not in self.known for image in images):
            self.known = {}
            for subject in self.cohort.subjects.values():
                prepared = prepare_subject(subject, self.space.modalities, self.space.view)
                z = np.arange(len(prepared.brain))
                stacks = network_stacks(prepared, self.space.modalities, z)
                addresses = slice_addresses(subject.name, z, draw=0)
                for image, address in zip(stacks, addresses, strict=True):
                    self.known[image.tobytes()] = address
        return np.array([self.known[image.tobytes()] for image in images])

    def predict(self, images, missing):
        addresses = self.addresses(images)
        self.calls.append(("mean", missing, addresses))
        return self.estimate(images, missing, addresses)

    def estimate(self, images, missing, addresses):
        mean = self.fill("mean", images, missing, addresses)
        return Estimate(mean, None if self.variance is None else self.variance(mean))

    def make_sampler(self, name, rho=0.0):
        correlated = {"rho": rho} if rho else {}

        def sample(images, missing, addresses, estimate=None):
            if name == "warm":  # all draws start from the network's own mean
                expected = self.estimate(images, missing, self.addresses(images))
                np.testing.assert_array_equal(estimate.mean, expected.mean)
                np.testing.assert_equal(estimate.variance, expected.variance)
            for draw in addresses:
                self.calls.append((name, missing, draw))
                yield self.fill(name, images, missing, draw, **correlated)

        return sample

    def evaluate(self, tmp_path, every=False, split=None):
        """`evaluation_results` in a copy of the world's workdir, and in it once more."""
        workdir = tmp_path / "run"
        if not workdir.exists():
            shutil.copytree(self.world / "run", workdir)
            if split is not None:
                (workdir / "split.json").write_text(json.dumps(split))
        self.space = build.build_space(self.config)
        self.cohort, stores = prepare(self.config, workdir)
        specs = build_specs(self.config, self.cohort, every)
        parts = workdir / "evaluation" / "parts"
        costs = Costs(7, 0, 0, lambda: 0.0)
        mm_csn = TrainedMethod(
            "mm-csn", parts / "mm-csn", "", "", self.predict, "digest", costs, self.make_sampler
        )
        floors = ridge_methods(stores["train"], specs[0].options.ridge_penalty, parts)
        return evaluate(workdir, specs, [mm_csn, *floors], {})[0]


def pick(rows, **wanted):
    """The only row with these values."""
    (row,) = (r for r in rows if all(r[k] == v for k, v in wanted.items()))
    return row


def split_of(world):
    """The world's split with one of its training subjects in validation."""
    split = json.loads((world / "run" / "split.json").read_text())
    first, *rest = split["train"]
    return {"train": rest, "validation": [first], "test": split["test"]}
