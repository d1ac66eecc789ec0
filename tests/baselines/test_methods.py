"""What every competitor of Table 1 promises, whatever it is inside.

A method's outcome and both its gradients are computed once for each lesson; the tests
then read them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lessons

from ummcsgm.baselines.cocagan import make_cocagan
from ummcsgm.baselines.hi_net import make_hi_net
from ummcsgm.baselines.mm_gan import make_mm_gan
from ummcsgm.baselines.mm_syn import make_mm_syn
from ummcsgm.baselines.ucdgan import make_ucdgan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")

MAKERS = {
    "mm-gan": make_mm_gan,
    "hi-net": make_hi_net,
    "mm-syn": make_mm_syn,
    "ucdgan": make_ucdgan,
    "cocagan": make_cocagan,
}
each_method = pytest.mark.parametrize("name", MAKERS)
GRID = (16, 12)
# Row 0 lacks one; row 1 two, of which one was never scanned; row 2 two; row 3 only
# pads: one was never scanned, and nothing is scored.
MISSING = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
SCORED = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)


@functools.cache
def made(name, modalities=3):
    return MAKERS[name](modalities, width=0.125, scale=0.4, axis=None)


@functools.cache
def params_of(name, modalities=3, grid=GRID):
    """As at the start, but with running variances nearer those of the features."""
    params = tiny_lessons.start(made(name, modalities), grid)
    params["statistics"] = jax.tree.map(lambda leaf: 0.1 * leaf, params["statistics"])
    return params


@functools.cache
def taught(name):
    """taught(name)(lesson) -> (outcome, the generator's gradient, the other's)."""

    @jax.jit
    def run(params, lesson):
        def losses(params):
            keys = jax.random.split(jax.random.key(0), tiny_lessons.ROWS)
            found = made(name).losses(keys, params, lesson)
            return (found.generator.sum(), found.discriminator.sum()), found

        _, back, found = jax.vjp(losses, params, has_aux=True)
        return found, back((1.0, 0.0))[0], back((0.0, 1.0))[0]

    return functools.partial(run, params_of(name))


@functools.cache
def usual():
    return tiny_lessons.lesson(3, GRID, MISSING, SCORED)


@functools.cache
def usual_outcome(name):
    return taught(name)(usual())


def sizes(tree):
    return np.array([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)])


def answered(name, images, missing, grid=GRID):
    modalities = missing.shape[1]
    complete = jax.jit(made(name, modalities).complete)
    params = params_of(name, modalities, grid)
    return np.asarray(complete(params, mask_inputs(jnp.asarray(images), jnp.asarray(missing))))


@each_method
@pytest.mark.parametrize(("modalities", "grid"), [(3, GRID), (2, (22, 18))])
def test_seen_images_come_back_and_missing_ones_are_answered(name, modalities, grid):
    images = tiny_lessons.images(modalities, grid)
    missing = np.eye(4, modalities, dtype=bool)
    missing[0, 1] = modalities > 2  # else nothing would be seen
    answer = answered(name, images, missing, grid)
    rows, seen = answer.transpose(0, 3, 1, 2), images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(rows[~missing], seen[~missing])
    assert np.isfinite(answer).all()
    # What is answered is an image and is not the truth.
    assert (rows[missing].std(axis=(1, 2)) > 1e-6).all()
    assert (np.abs(rows[missing] - seen[missing]).mean(axis=(1, 2)) > 0.01).all()


@each_method
def test_an_answer_is_of_what_is_seen_in_its_own_row_alone(name):
    images, missing = tiny_lessons.images(3, GRID), MISSING.copy()
    answer = answered(name, images, missing)
    changed = np.where(missing[:, None, None], 7.0, images)
    np.testing.assert_array_equal(answered(name, changed, missing)[0, ..., 0], answer[0, ..., 0])
    # Other batch-mates, and other questions that they are asked.
    changed[1:], missing[1:] = 3 * images[:3], ~MISSING[1:]
    again = answered(name, changed, missing)
    np.testing.assert_array_equal(again[0, ..., 0], answer[0, ..., 0])
    # Of what is seen: all of it tells.
    for seen in (1, 2):
        changed = images.copy()
        changed[0, ..., seen] = np.roll(images[0, ..., seen], 3, axis=0)
        assert np.abs(answered(name, changed, MISSING) - answer)[0, ..., 0].max() > 1e-6


@each_method
def test_each_loss_teaches_its_own_network(name):
    found, of_generator, of_discriminator = usual_outcome(name)
    assert (sizes(of_generator["discriminator"]) == 0).all()
    assert (sizes(of_discriminator["generator"]) == 0).all()
    assert (sizes(of_generator["statistics"]) == 0).all()
    assert (sizes(of_generator["generator"]) > 0).mean() > 0.9
    assert (np.asarray(found.generator)[:3] > 0).all()
    if name == "mm-syn":
        assert (np.asarray(found.discriminator) == 0).all()
        return
    assert (sizes(of_discriminator["discriminator"]) > 0).all()
    assert (np.asarray(found.discriminator)[:3] > 0).all()


@each_method
def test_a_row_that_pads_has_no_loss_and_no_gradient(name):
    found, *grads = usual_outcome(name)
    told = [found.generator, found.discriminator, *found.told.values()]
    assert [float(loss[3]) for loss in told] == [0.0] * len(told)
    lesson = usual()
    other = lesson._replace(
        images=lesson.images.at[3].multiply(-5.0),
        missing=lesson.missing.at[3].set(jnp.array([True, False, True])),
    )
    same, *same_grads = taught(name)(other)
    jax.tree.map(np.testing.assert_array_equal, (found, grads), (same, same_grads))


@each_method
def test_a_batch_that_only_pads_changes_nothing(name):
    lesson = usual()
    empty = lesson._replace(scored=jnp.zeros_like(lesson.scored))
    for lesson in (empty, empty._replace(missing=jnp.ones_like(empty.missing))):
        found, *grads = taught(name)(lesson)
        assert (np.asarray(found.generator) == 0).all()
        assert (np.asarray(found.discriminator) == 0).all()
        assert (sizes(grads) == 0).all()
        kept = params_of(name)["statistics"]
        jax.tree.map(np.testing.assert_array_equal, found.statistics, kept)


@each_method
def test_what_was_never_scanned_is_in_no_loss(name):
    found, *grads = usual_outcome(name)
    lesson = usual()
    other = lesson._replace(images=lesson.images.at[1, ..., 2].set(9.0))
    same, *same_grads = taught(name)(other)
    jax.tree.map(np.testing.assert_array_equal, (found, grads), (same, same_grads))


@each_method
def test_the_loss_is_of_what_is_scored(name):
    """Moving the scored truth moves the row's loss, and no other row's L1."""
    before, *_ = usual_outcome(name)
    lesson = usual()
    other = lesson._replace(images=lesson.images.at[0, ..., 0].add(3.0))
    after, *_ = taught(name)(other)
    moved = np.abs(np.asarray(after.told["l1"] - before.told["l1"]))
    assert moved[0] > 1
    assert (moved[1:] == 0).all()


def test_the_order_and_the_notes_of_the_table():
    for name, make in MAKERS.items():
        method = make(4, width=0.125, scale=0.4, axis=None)
        assert method.name == name
        assert method.note.split(":")[0].split()[0] in ("Adapted", "Reconstructed")
