"""The neighbours of what is seen: where they come from, who sees them, and no leak."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tiny_run import EDM, MODALITIES, run_main, tiny_config, write_config, write_subjects
from tiny_slices import MODALITIES as THREE
from tiny_slices import SETTINGS, look, made, write_three

from ummcsgm.config.build import build_evaluation_options, build_objective
from ummcsgm.config.build_data import find_anywhere
from ummcsgm.data.crop import SliceView, uncrop
from ummcsgm.data.loader import make_batches
from ummcsgm.data.subjects import network_slices, network_stacks, prepare_subject, stack_neighbours
from ummcsgm.diffusion.loss import DSMInputs, training_losses
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import ScoreModel, make_denoise
from ummcsgm.diffusion.sde import VP
from ummcsgm.inference import acquisition_value
from ummcsgm.inference.inputs import SubjectInputs
from ummcsgm.inference.predictor import load_trained_model, make_mean_predictor
from ummcsgm.models.mm_csn import CONDITIONINGS
from ummcsgm.study.compare import study_notes
from ummcsgm.types import Estimate

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = {"widths": (32,), "blocks": (1,), "attention_max_grid": 0, "patch": 4}
QUESTIONS = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1]], bool)
UNKNOWN = np.tile(QUESTIONS, 3)[:, None, None]  # of stacks of 3 slices


def numbered(z):
    """[N, 1, 1, 2]: modality m of slice z is 10 z + m + 1."""
    return 10.0 * np.asarray(z)[:, None, None, None] + np.array([1.0, 2.0])


def test_a_stack_has_the_slice_then_its_neighbours_from_below():
    stacks = stack_neighbours(numbered([2, 3, 4, 6]), np.array([2, 3, 4, 6]), np.array([3, 4]), 2)
    assert stacks.shape == (2, 1, 1, 10)
    np.testing.assert_array_equal(
        stacks[:, 0, 0],
        [[31, 32, 0, 0, 21, 22, 41, 42, 0, 0], [41, 42, 21, 22, 31, 32, 0, 0, 61, 62]],
    )
    alone = stack_neighbours(numbered([2, 3]), np.array([2, 3]), np.array([3]), 0)
    np.testing.assert_array_equal(alone, numbered([3]))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_three(tmp_path_factory.mktemp("raw"))


def prepared(raw, neighbours):
    """Subject b, which has no t2."""
    return prepare_subject(look(raw)[1], THREE, SliceView((8, 16), 0.0, False, neighbours))


def test_the_neighbours_of_a_subject_are_its_own_slices_and_0_beyond_its_ends(raw):
    whole = network_slices(prepared(raw, 0), THREE, np.arange(7))
    z = np.array([0, 3, 6])
    np.testing.assert_array_equal(network_stacks(prepared(raw, 0), THREE, z), whole[z])
    stacks = network_stacks(prepared(raw, 2), THREE, z)
    padded = np.pad(whole, [(2, 2), (0, 0), (0, 0), (0, 0)])
    places = (0, -2, -1, 1, 2)
    expected = np.concatenate([padded[z + 2 + own] for own in places], axis=-1)
    np.testing.assert_array_equal(stacks, expected)
    assert not stacks[..., 1::3].any()  # t2, which was never scanned
    own = [stacks[..., 3 * copy : 3 * copy + 3].any(axis=(1, 2, 3)) for copy in range(5)]
    assert np.array_equal(own[2], [False, True, True])  # z - 1
    assert np.array_equal(own[3], [True, True, False])  # z + 1


@pytest.fixture(scope="module")
def stores(raw, tmp_path_factory):
    """By the neighbours, the store of all three subjects."""
    view = {n: SliceView((8, 16), 0.0, False, n) for n in (0, 1)}
    return {
        n: made(
            tmp_path_factory.mktemp("store"),
            {"train": look(raw)},
            SETTINGS.__class__(THREE, view[n], SETTINGS.min_brain),
        )[0]["train"]
        for n in view
    }


def test_a_store_has_neighbours_that_are_too_small_to_train_on(raw, stores):
    plain, near = stores[0], stores[1]
    assert [e.slices for e in near.subjects] == [e.slices for e in plain.subjects]
    for name in "abc":
        np.testing.assert_array_equal(near.subject_slices(name), plain.subject_slices(name))
    (entry,) = (e for e in near.subjects if e.name == "b")
    stacks, _ = near.read(near.slice_indices("b"))
    expected = network_stacks(prepared(raw, 1), THREE, np.array(entry.slices))
    np.testing.assert_array_equal(stacks, expected.astype(np.float16))
    assert entry.slices[0] - 1 not in entry.slices and stacks[0, ..., 3:6].any()


def test_a_batch_mirrors_a_slice_with_its_neighbours(stores):
    """The same visits and flips as without them: what is added is beside it."""
    how = {"batch": 4, "seed": 3, "flip": True, "process": 0, "processes": 1}
    plain, near = (make_batches(stores[n], **how) for n in (0, 1))
    rows = {row.tobytes(): row for row in stores[1].read(np.arange(len(stores[1])))[0]}
    flips = set()
    for step in range(4):
        batch = near.at(step)
        assert batch.images.shape == (4, 8, 16, 9)
        np.testing.assert_array_equal(batch.images[..., :3], plain.at(step).images)
        np.testing.assert_array_equal(batch.images, near.at(step).images)
        for image in batch.images:
            turned = image.tobytes() not in rows
            flips.add(turned)
            assert not turned or image[:, ::-1].tobytes() in rows
    assert flips == {True, False}


def stacks_of(seed, rows=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 16, 16, 12)).astype(np.float32)


@pytest.fixture(scope="module", params=CONDITIONINGS)
def model(request, make_network, random_params):
    network = make_network(neighbour_slices=1, conditioning=request.param, **TINY)
    shapes = jax.eval_shape(
        network.init,
        jax.random.key(0),
        jnp.zeros((1, 16, 16, 12)),
        jnp.zeros((1, 4), bool),
        jnp.zeros(1),
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )
    return ScoreModel(network, VP(0.1, 20.0), 0.4), params


def test_only_the_neighbours_of_what_is_seen_reach_the_answer(model):
    model, params = model
    noised = jnp.asarray(stacks_of(1)[..., :4])

    @jax.jit
    def answer(images):
        denoise = make_denoise(model, params, mask_inputs(images, jnp.asarray(QUESTIONS)))
        return denoise(noised, jnp.full(3, 0.5))

    images = stacks_of(0)
    hidden = np.where(UNKNOWN, np.nan, images)
    np.testing.assert_array_equal(answer(hidden), answer(images))
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(answer(x) ** 2)))(images))
    unknown = np.broadcast_to(UNKNOWN, gradient.shape)
    assert not gradient[unknown].any()
    reach = np.abs(gradient).max(axis=(1, 2))
    assert np.all(reach[~UNKNOWN[:, 0, 0]] > 1e-6)


def test_the_network_is_shown_neighbours_in_units_of_the_data():
    class Spy:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            self.near = np.asarray(inputs[..., 4:])
            return 0 * inputs[..., :4]

    spy, images = Spy(), stacks_of(0)
    denoise = make_denoise(
        ScoreModel(spy, VP(0.1, 20.0), 0.4), None, mask_inputs(images, jnp.asarray(QUESTIONS))
    )
    denoise(jnp.asarray(images[..., :4]), jnp.full(3, 0.5))
    expected = np.where(UNKNOWN, 0, images / 0.4)[..., 4:]
    np.testing.assert_allclose(spy.near, expected, rtol=1e-6)


def test_the_loss_knows_nothing_of_the_neighbours_of_what_is_missing(model):
    model, params = model
    config = tiny_config("", missingness__size_probabilities="uniform", **EDM)
    noise, token = jnp.asarray(stacks_of(1)[..., :4]), jnp.zeros(3, bool)
    missing = jnp.asarray(QUESTIONS)
    questions = DSMInputs(missing, missing, jnp.full(3, 0.5), noise, token)

    @jax.jit
    def loss(images):
        return training_losses(model, params, build_objective(config), images, questions)[0]

    images = stacks_of(0)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: loss(x).sum()))(images))
    near, unknown = gradient[..., 4:], np.broadcast_to(UNKNOWN, gradient.shape)[..., 4:]
    assert not near[unknown].any() and near[~unknown].all()
    assert gradient[..., :4].all()  # what is drawn is the slice itself
    other = np.where(UNKNOWN & (np.arange(12) >= 4), 7.0, images)
    np.testing.assert_array_equal(loss(other), loss(images))


def test_without_neighbours_no_parameter_is_another(make_network):
    def shapes(neighbours):
        network = make_network(neighbour_slices=neighbours, predict_variance=True, **TINY)
        images = jnp.zeros((1, 16, 16, network.channels()))
        missing, level = jnp.zeros((1, 4), bool), jnp.zeros(1)
        own = jax.eval_shape(network.init, jax.random.key(0), images, missing, level)
        flat = flatten_dict(own["params"], sep="/")
        return {name: leaf.shape for name, leaf in flat.items()}

    plain, near = shapes(0), shapes(1)
    changed = {name for name in near if near[name] != plain.get(name)}
    assert near.keys() == plain.keys() and changed == {"still/stem/kernel"}
    # A patch of 4 x 4 of each of 4 modalities, noise or tissue; the flags; neighbours.
    assert plain["stem/kernel"] == (3, 3, 16 * 4, 32)
    assert plain["still/stem/kernel"] == (3, 3, 16 * 4 + 4, 32)
    assert near["still/stem/kernel"] == (3, 3, 16 * (4 + 8) + 4, 32)


def test_a_scan_that_would_be_acquired_has_the_neighbours_it_would_have():
    asked = []

    def mean(images, missing):
        asked.append((images, missing))
        return Estimate(images[..., :4], None)

    z, missing = np.array([4, 5, 7]), np.array([True, False, True, False])
    images = np.where(np.tile(missing, 3), 0, stacks_of(0))
    drawn = stacks_of(1)[..., :4]
    posterior = SimpleNamespace(mean=mean)
    acquisition_value._mean_given(posterior, SubjectInputs("P1", z, images, missing), drawn, 2)
    ((given, absent),) = asked
    assert np.array_equal(absent, [[True, False, False, False]] * 3)
    blank = 0 * drawn[0]
    below, above = [blank, drawn[0], blank], [drawn[1], blank, blank]
    for copy, expected in enumerate((drawn, below, above)):
        own = np.stack(expected)[..., 2]
        np.testing.assert_array_equal(given[..., 4 * copy + 2], own)
    others = np.arange(12) % 4 != 2
    np.testing.assert_array_equal(given[..., others], images[..., others])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole study with neighbours: trained, evaluated, from one command."""
    root = tmp_path_factory.mktemp("near")
    folder = write_subjects(root / "subjects")
    changes = {"network__neighbour_slices": 1, "train__steps": 40, "train__save_every": 20}
    config = write_config(root / "near.py", tiny_config(folder, **changes))
    assert run_main("--config", config, "--workdir", root / "run") == 0
    return root


@pytest.mark.slow
def test_a_resumed_run_with_neighbours_is_the_straight_one(run, tmp_path):
    straight = load_trained_model(run / "run")
    again = shutil.copytree(run / "run", tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "40")
    assert load_trained_model(again).digest != straight.digest
    words = ("--config", run / "near.py", "--workdir", again, "--mode", "train")
    assert run_main(*words) == 0
    assert load_trained_model(again).digest == straight.digest


@pytest.mark.slow
def test_a_study_with_neighbours_completes_a_subject_by_them(run, tmp_path):
    assert (run / "run" / "evaluation" / "table.md").is_file()
    folder, target = run / "subjects", tmp_path / "out"
    flags = ("--input", folder / "HGG" / "P1", "--output", target, "--missing", "t1c")
    assert run_main("--workdir", run / "run", "--mode", "complete", *flags) == 0
    trained = load_trained_model(run / "run")
    (subject,) = find_anywhere(trained.config, folder / "HGG" / "P1").subjects
    near = prepare_subject(subject, MODALITIES, trained.space.view)
    z = np.flatnonzero(near.brain.any(axis=(1, 2)))
    images = network_stacks(near, MODALITIES, z)
    answer = make_mean_predictor(trained, build_evaluation_options(trained.config))
    missing = np.tile(np.array(MODALITIES) == "t1c", (len(z), 1))
    (path,) = target.rglob("P1_t1ce.nii.gz")
    there = np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)[z, ::-1, ::-1]
    units = json.loads((path.with_name("P1_t1ce.json")).read_text())["units"]

    def off(images):
        """The largest distance of the file's voxels from what these are answered."""
        made = np.clip(answer(images, missing).mean[..., 2], *units["range"])
        voxels = uncrop(near.window, made) * units["scale"]
        return np.abs(voxels - there)[near.brain[z]].max()

    assert off(images) < 0.51  # rounding
    assert off(np.where(np.arange(12) < 4, images, 0)) > 2


def test_a_study_says_who_sees_neighbours():
    facts = {"few": 12, "test_subjects": 5}
    assert "up to 2 away; the published methods see that slice" in study_notes(facts, 2)[0]
    assert study_notes(facts, 0) == study_notes(facts, 2)[1:]
