"""The files of one training step: few, named here, and none that reads NIfTI files."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import ROOT

from ummcsgm.diffusion.loss import NoiseProposal, Objective, weigh_edm
from ummcsgm.diffusion.missingness import missing_patterns, pattern_probabilities
from ummcsgm.diffusion.preconditioning import ScoreModel
from ummcsgm.diffusion.sde import VP
from ummcsgm.distributed import devices
from ummcsgm.models.residual_mm_csn import ResidualMMCSN
from ummcsgm.training.dsm_step import UpdateRule, init_state, make_train_step
from ummcsgm.training.loop import TrainOptions, run_training, with_stop_flag
from ummcsgm.types import Batch

STEP_FILES = {
    "training/loop.py",
    "training/dsm_step.py",
    "distributed/devices.py",
    "diffusion/loss.py",
    "diffusion/missingness.py",
    "diffusion/preconditioning.py",
    "diffusion/sde.py",
    "models/mm_csn.py",
}
ABOUT_MEAN = {"models/residual_mm_csn.py", "diffusion/bands.py", "utils/haar.py"}


class OneBatch:
    """The same batch for every step."""

    def __init__(self, batch):
        self.batch = batch

    def from_step(self, step):
        while True:
            yield self.batch


@pytest.mark.parametrize("kind", ["edm", "mean"])
def test_a_training_step_runs_through_few_files(make_network, quick_compile, kind):
    """The files of the loop, the step and what they call. Batches, saving and logging are
    stubs: data/loader, data/store, training/checkpoint and training/logging are beside
    the step and are not counted."""
    network = make_network(widths=(32,), blocks=(0,), attention_max_grid=0, remat=(False,))
    if kind == "mean":
        network = ResidualMMCSN(network, (32,), 0)
    model, rule = ScoreModel(network, VP(0.1, 20.0), 0.5, kind), UpdateRule(optax.sgd(0.1), 0.5, 1)
    patterns = missing_patterns(4, proper=False)
    proposal = NoiseProposal(0.2, -1.2, 1.4, 0.003, 0.0, 0.25, 1.0)
    probabilities = pattern_probabilities(patterns, ())
    weighting = weigh_edm if kind == "edm" else None
    objective = Objective(patterns, probabilities, proposal, weighting, False)
    state = devices.replicate(init_state(jax.random.key(0), model, rule, (16, 16)))
    step = devices.pmap_step(with_stop_flag(make_train_step(model, objective, rule)))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype(np.float32)
    batches = OneBatch(Batch(images, np.ones((2, 4), bool), np.ones(2, bool)))
    options = TrainOptions(0, 2, False, 1, 1, 1, 1, 1)
    saved, files, package = [], set(), f"{ROOT / 'ummcsgm'}/"

    def record(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            files.add(frame.f_code.co_filename.removeprefix(package))

    sys.setprofile(record)
    try:
        run_training(
            lambda state, inputs: step(jax.random.key(1), state, inputs),
            state,
            batches,
            options,
            lambda done, state: saved.append(jnp.asarray(state.step)),
        )
    finally:
        sys.setprofile(None)
    assert saved == [1]
    assert files == (STEP_FILES if kind == "edm" else STEP_FILES | ABOUT_MEAN)


def test_the_training_step_and_its_batches_do_not_import_the_nifti_reader():
    modules = "training.dsm_step", "training.loop", "training.train", "data.loader"
    program = "".join(f"import ummcsgm.{module}\n" for module in modules)
    program += (
        "import sys\nfound = [m for m in ('nibabel', 'ummcsgm.data.nifti') if m in sys.modules]"
    )
    program += "\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
