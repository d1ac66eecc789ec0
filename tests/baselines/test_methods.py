"""What every published method promises, whatever its networks are.

A method's losses and both gradients are compiled once and then read by several tests.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_gan_batch

from ummcsgm.baselines.cocagan import make_cocagan
from ummcsgm.baselines.hi_net import make_hi_net
from ummcsgm.baselines.mm_gan import make_mm_gan
from ummcsgm.baselines.mm_syn import make_mm_syn
from ummcsgm.baselines.ucdgan import cross_entropy, make_ucdgan
from ummcsgm.diffusion.missingness import mask_inputs

pytestmark = pytest.mark.usefixtures("quick_compile")

MAKERS = {
    "mm-gan": make_mm_gan,
    "hi-net": make_hi_net,
    "mm-syn": make_mm_syn,
    "ucdgan": make_ucdgan,
    "cocagan": make_cocagan,
}
every_method = pytest.mark.parametrize("name", MAKERS)
GRID = (18, 12)  # halved to odd sides
# Example 0 lacks one; 1 lacks two, one of them never scanned; 2 lacks two; 3 is padding:
# one was never scanned, and nothing is scored.
MISSING = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
SCORED = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 0]], bool)
BATCH = tiny_gan_batch.make_batch(3, GRID, MISSING, SCORED)


@functools.cache
def make(name):
    return MAKERS[name](3, width=0.125, scale=0.4, axis=None)


@functools.cache
def init(name):
    """As at the start, but with running variances nearer those of the features."""
    params = tiny_gan_batch.init(make(name), GRID)
    params["statistics"] = jax.tree.map(lambda leaf: 0.1 * leaf, params["statistics"])
    return params


@functools.cache
def losses_and_gradients(name):
    """run(batch) -> (losses, the generator's gradient, the discriminator's)."""

    @jax.jit
    def run(params, batch):
        def totals(params):
            keys = jax.random.split(jax.random.key(0), tiny_gan_batch.EXAMPLES)
            losses = make(name).losses(keys, params, batch)
            return (losses.generator.sum(), losses.discriminator.sum()), losses

        _, pull_back, losses = jax.vjp(totals, params, has_aux=True)
        return losses, pull_back((1.0, 0.0))[0], pull_back((0.0, 1.0))[0]

    return functools.partial(run, init(name))


@functools.cache
def usual(name):
    return losses_and_gradients(name)(BATCH)


@functools.cache
def compiled_complete(name):
    return jax.jit(make(name).complete)


def complete(name, images, missing):
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(missing))
    return np.asarray(compiled_complete(name)(init(name), condition))


def largest(tree):
    return np.array([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree)])


@every_method
def test_seen_images_come_back_and_missing_ones_are_predicted(name):
    images = tiny_gan_batch.make_images(3, GRID)
    completed = complete(name, images, MISSING)
    channels, truth = completed.transpose(0, 3, 1, 2), images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(channels[~MISSING], truth[~MISSING])
    assert np.isfinite(completed).all()
    # A prediction is an image and is not the truth.
    assert (channels[MISSING].std(axis=(1, 2)) > 1e-6).all()
    assert (np.abs(channels[MISSING] - truth[MISSING]).mean(axis=(1, 2)) > 0.01).all()


@every_method
def test_a_prediction_depends_on_every_seen_image_of_its_example_and_nothing_else(name):
    images, missing = tiny_gan_batch.make_images(3, GRID), MISSING.copy()
    completed = complete(name, images, missing)
    changed = np.where(missing[:, None, None], 7.0, images)
    np.testing.assert_array_equal(complete(name, changed, missing)[0], completed[0])
    changed[1:], missing[1:] = 3 * images[:3], ~MISSING[1:]
    np.testing.assert_array_equal(complete(name, changed, missing)[0], completed[0])
    for seen in (1, 2):
        changed = images.copy()
        changed[0, ..., seen] = np.roll(images[0, ..., seen], 3, axis=0)
        assert np.abs(complete(name, changed, MISSING) - completed)[0, ..., 0].max() > 1e-6


@every_method
def test_each_loss_trains_its_own_network_alone(name):
    losses, of_generator, of_discriminator = usual(name)
    assert (largest(of_generator["discriminator"]) == 0).all()
    assert (largest(of_discriminator["generator"]) == 0).all()
    assert (largest(of_generator["statistics"]) == 0).all()
    assert (largest(of_generator["generator"]) > 0).mean() > 0.9
    assert (np.asarray(losses.generator)[:3] > 0).all()
    if name == "mm-syn":
        assert (np.asarray(losses.discriminator) == 0).all()
        return
    assert (largest(of_discriminator["discriminator"]) > 0).all()
    assert (np.asarray(losses.discriminator)[:3] > 0).all()


@every_method
def test_padding_and_what_was_never_scanned_are_in_no_loss_and_no_gradient(name):
    losses, *grads = usual(name)
    values = [losses.generator, losses.discriminator, *losses.metrics.values()]
    assert [float(loss[3]) for loss in values] == [0.0] * len(values)
    images = BATCH.images.at[3].multiply(-5.0).at[1, ..., 2].set(9.0)
    missing = BATCH.missing.at[3].set(jnp.array([True, False, True]))
    same = losses_and_gradients(name)(BATCH._replace(images=images, missing=missing))
    jax.tree.map(np.testing.assert_array_equal, (losses, *grads), same)


@every_method
def test_a_batch_of_padding_alone_changes_nothing(name):
    empty = BATCH._replace(scored=jnp.zeros_like(BATCH.scored))
    for batch in (empty, empty._replace(missing=jnp.ones_like(empty.missing))):
        losses, *grads = losses_and_gradients(name)(batch)
        assert (np.asarray(losses.generator) == 0).all()
        assert (np.asarray(losses.discriminator) == 0).all()
        assert (largest(grads) == 0).all()
        before = init(name)["statistics"]
        jax.tree.map(np.testing.assert_array_equal, losses.statistics, before)


@every_method
def test_the_l1_loss_is_of_the_scored_modalities_of_each_example(name):
    before, *_ = usual(name)
    images = BATCH.images.at[0, ..., 0].add(3.0)
    after, *_ = losses_and_gradients(name)(BATCH._replace(images=images))
    moved = np.abs(np.asarray(after.metrics["l1"] - before.metrics["l1"]))
    assert moved[0] > 1
    assert (moved[1:] == 0).all()


def test_methods_have_their_names_and_say_what_is_not_as_published():
    for name in MAKERS:
        assert make(name).name == name
        assert make(name).note.split()[0].strip(":") in ("Adapted", "Reconstructed")
    assert "all available modalities" in make("cocagan").note
    assert "one modality alone" in dataclasses.replace(make("cocagan"), input_modality=0).note


# Learning rates as multiples of the published ones, which are meant for many more steps.
TRAINING = {
    "mm-gan": dict(width=0.125, rate=10, steps=100, most=0.4),
    "hi-net": dict(width=0.25, rate=2, steps=150, most=0.45),
    "mm-syn": dict(width=0.125, rate=50, steps=150, most=0.4),
    "ucdgan": dict(width=0.125, rate=(10, 100), steps=100, most=0.4),
    "cocagan": dict(width=0.125, rate=10, steps=100, most=0.4),
}


@pytest.mark.slow
@every_method
def test_training_memorises_four_slices(name):
    options = TRAINING[name]
    method = MAKERS[name](2, width=options["width"], scale=0.4, axis=None)
    batch = tiny_gan_batch.make_batch(2)
    params = tiny_gan_batch.train(method, batch, steps=options["steps"], rate=options["rate"])
    assert tiny_gan_batch.relative_error(method, params, batch) < options["most"]
    if name == "ucdgan":  # the discriminator tells the real images' modalities apart
        modality = jnp.argmax(batch.scored, axis=1)
        index = modality[:, None, None, None]
        shown = jnp.take_along_axis(2 * batch.images - 1, index, axis=-1)
        _, classes = method.discriminator.apply({"params": params["discriminator"]}, shown)
        assert (cross_entropy(classes, modality) < 0.75 * np.log(2)).all()
