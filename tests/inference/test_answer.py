"""A trained network answers the question that it is asked, and nothing else matters."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import MODALITIES

from ummcsgm.config import build
from ummcsgm.data.store import open_store
from ummcsgm.diffusion.correlated_noise import ar1_noise
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import make_denoise
from ummcsgm.diffusion.samplers import address_keys, algorithm1, make_noise, sample_from_mean
from ummcsgm.diffusion.time_grids import log_uniform_times
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import (
    load_trained_model,
    make_answer,
    make_draws,
    sampler_facts,
    slice_addresses,
)
from ummcsgm.training import checkpoint
from ummcsgm.training.plans import EvaluationOptions
from ummcsgm.types import Estimate, InputError

pytest_plugins = ["tiny_study"]

QUESTIONS = np.array([[0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], bool)


def scoring(microbatch=4, seed=0):
    return EvaluationOptions(
        seed=seed,
        steps=3,
        few=2,
        lowest=0.01,
        start=3.0,
        draws=4,
        draw_subjects=0,
        draw_slices=0,
        slab=4,
        slab_subjects=0,
        microbatch=microbatch,
        algorithm1_subjects=0,
        algorithm1_slices=0,
        penalty=1e-4,
    )


@pytest.fixture(scope="module")
def trained(study, quick_compile):
    return load_trained_model(study / "run")


@pytest.fixture(scope="module")
def answers(trained):
    """answers(sampler): compiled once for the module."""
    made = {}

    def answer(sampler):
        if sampler not in made:
            made[sampler] = make_answer(trained, sampler, scoring())
        return made[sampler]

    return answer


@pytest.fixture(scope="module")
def images(study):
    return open_store(study / "run" / "prepared", "train").subject_slices("P3")[:4]


ADDRESSES = slice_addresses("P3", np.arange(4), draw=0)


def noise_at(rho):
    """The noise of ADDRESSES."""
    return functools.partial(ar1_noise, slices=ADDRESSES[:, 1], rho=rho)


def test_what_is_loaded_is_the_newest_average_and_its_config(trained, study):
    assert trained.step == 150
    assert trained.space.modalities == MODALITIES and trained.space.grid == (16, 16)
    average = checkpoint.restore_ema(study / "run", trained.params)
    for loaded, saved in zip(
        jax.tree.leaves(trained.params), jax.tree.leaves(average), strict=True
    ):
        assert np.array_equal(loaded, saved)
    store = open_store(study / "run" / "prepared", "train")
    for name in MODALITIES:
        scales = sorted(store.scales(name).values())
        assert len(scales) == 3 and trained.scales[name] == scales[1]


def test_the_digest_is_that_of_the_parameters(trained, study, tmp_path):
    assert load_trained_model(study / "run").digest == trained.digest
    older = shutil.copytree(study / "run", tmp_path / "run")
    shutil.rmtree(older / "checkpoints" / "150")
    earlier = load_trained_model(older)
    assert earlier.step == 120 and earlier.digest != trained.digest


def test_the_mean_is_the_networks_answer_to_the_token(trained, answers, images):
    """A row alone, by hand: t = 1, a_t = 0, the averaged parameters."""
    filled = answers("mean")(images, QUESTIONS, ADDRESSES).mean
    for row in range(len(images)):
        missing = QUESTIONS[row : row + 1]
        completion = mask_inputs(jnp.asarray(images[row : row + 1]), jnp.asarray(missing))
        denoise = make_denoise(trained.model, trained.params, completion)
        alone = denoise(jnp.zeros((1, 16, 16, 4)), jnp.ones(1))
        expected = np.where(missing[:, None, None], alone, images[row : row + 1])
        np.testing.assert_allclose(filled[row], expected[0], atol=2e-5)


def test_a_draw_is_algorithm_1_with_the_key_of_its_address(trained, answers, images):
    filled = answers("euler_maruyama")(images, QUESTIONS, ADDRESSES)
    missing = jnp.asarray(QUESTIONS)
    completion = mask_inputs(jnp.asarray(images), missing)
    denoise = make_denoise(trained.model, trained.params, completion)
    keys, sde, like = address_keys(0, ADDRESSES[:, [0, 2]]), trained.model.sde, images
    drawn = jax.jit(lambda like: algorithm1(keys, sde, denoise, like, 3, noise=noise_at(0)))(like)
    expected = np.where(QUESTIONS[:, None, None], drawn, images)
    np.testing.assert_allclose(filled, expected, rtol=1e-4, atol=1e-4)


def test_a_warm_draw_starts_at_the_moments_that_it_is_given(trained, answers, images):
    told = answers("mean")(images, QUESTIONS, ADDRESSES)
    # As much as the first noise level's own: it shows.
    wide = told._replace(variance=9 + told.variance)
    filled = answers("warm")(images, QUESTIONS, ADDRESSES, wide)
    missing, sde = jnp.asarray(QUESTIONS), trained.model.sde
    completion = mask_inputs(jnp.asarray(images), missing)
    denoise = make_denoise(trained.model, trained.params, completion)
    noise = make_noise(address_keys(0, ADDRESSES[:, [0, 2]]), noise_at(0))
    times, (mean, variance) = log_uniform_times(sde, 2, 3.0, 0.01), wide
    mean, variance = jnp.asarray(mean), jnp.asarray(variance)
    drawn = jax.jit(lambda: sample_from_mean(noise, sde, denoise, mean, times, variance=variance))()
    expected = np.where(QUESTIONS[:, None, None], drawn, images)
    np.testing.assert_allclose(filled, expected, rtol=1e-4, atol=1e-4)
    for other in (wide._replace(mean=wide.mean + 0.5), wide._replace(variance=None)):
        elsewhere = answers("warm")(images, QUESTIONS, ADDRESSES, other)
        assert np.abs(elsewhere - filled)[QUESTIONS[:, 2], ..., 2].mean() > 1e-4


@pytest.mark.parametrize("sampler", ["mean", "euler_maruyama"])
def test_the_seen_comes_back_bit_for_bit_and_the_missing_is_not_read(answers, images, sampler):
    def answer(images):
        told = answers(sampler)(images, QUESTIONS, ADDRESSES)
        return told if sampler == "mean" else Estimate(told, np.zeros(images.shape))

    filled, variance = answer(images)
    seen = np.broadcast_to(~QUESTIONS[:, None, None], images.shape)
    assert np.array_equal(filled[seen], images[seen]) and not variance[seen].any()
    spoiled = np.where(seen, images, np.nan)
    for one, other in zip(answer(spoiled), (filled, variance), strict=True):
        assert np.array_equal(one, other)
    assert np.abs(filled - images)[~seen].min() > 0
    assert np.isfinite(filled).all()


def test_a_draw_depends_on_its_address_alone(answers, images):
    answer = answers("euler_maruyama")
    row = np.repeat(images[:1], 6, axis=0)
    missing = np.repeat(QUESTIONS[:1], 6, axis=0)
    addresses = np.concatenate(
        [
            slice_addresses("P3", [3, 3, 4], draw=0),
            slice_addresses("P3", [3], draw=1),
            slice_addresses("P4", [3], draw=0),
            slice_addresses("P3", [3], draw=0),
        ]
    )
    first, again, *others, last = answer(row, missing, addresses)[..., 2]
    np.testing.assert_allclose(again, first, atol=2e-5)
    np.testing.assert_allclose(last, first, atol=2e-5)
    for other in others:
        assert np.abs(other - first).mean() > 0.1
    assert np.array_equal(answer(row, missing, addresses), answer(row, missing, addresses))


def test_another_seed_draws_another_image(trained, answers, images):
    other = make_answer(trained, "euler_maruyama", scoring(seed=1))
    one = answers("euler_maruyama")(images, QUESTIONS, ADDRESSES)
    two = other(images, QUESTIONS, ADDRESSES)
    assert np.abs(one - two)[QUESTIONS[:, 2], ..., 2].mean() > 0.1


@pytest.mark.parametrize("sampler", ["mean", "euler_maruyama"])
def test_the_microbatch_does_not_matter(trained, answers, images, sampler):
    rows = np.tile(images, (2, 1, 1, 1))[:7]
    missing = np.tile(QUESTIONS, (2, 1))[:7]
    addresses = slice_addresses("P3", np.arange(7), draw=0)
    whole = make_answer(trained, sampler, scoring(microbatch=7))
    one, other = (
        jax.tree.leaves(answer(rows, missing, addresses)) for answer in (answers(sampler), whole)
    )
    assert len(one) == (2 if sampler == "mean" else 1)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.fixture(scope="module")
def volume(images):
    """(images, missing, addresses) of 7 neighbouring slices, which are all alike."""
    missing = np.tile(QUESTIONS[:1], (7, 1))
    addresses = slice_addresses("P3", np.arange(30, 37), draw=1)
    return np.repeat(images[:1], 7, axis=0), missing, addresses


@pytest.fixture(scope="module")
def coherent(trained):
    return make_answer(trained, "euler_maruyama", scoring(), rho=0.9)


def steps_between(drawn):
    """How far neighbouring slices are apart, beside slices 4 apart, in channel 2."""
    near = np.abs(np.diff(drawn[..., 2], axis=0)).mean()
    return near / np.abs(drawn[4:, ..., 2] - drawn[:-4, ..., 2]).mean()


def test_with_rho_neighbouring_slices_of_a_draw_go_together(answers, coherent, volume):
    together = steps_between(coherent(*volume))
    assert together < 0.75  # of a normal law, sqrt((1 - .9) / (1 - .9^4)) = 0.54
    assert steps_between(answers("euler_maruyama")(*volume)) > 0.85


def test_a_slice_of_a_coherent_draw_is_the_same_beside_any_others(coherent, volume):
    whole = coherent(*volume)
    for rows in ([5], [6, 0, 3], [4, 5, 6, 3, 2]):
        own = coherent(*(array[rows] for array in volume))
        np.testing.assert_allclose(own, whole[rows], atol=1e-4)


def test_rho_changes_a_draw_and_not_the_mean(trained, answers, coherent, volume):
    independent = answers("euler_maruyama")(*volume)
    assert np.abs(coherent(*volume) - independent)[..., 2].mean() > 0.1
    mean = make_answer(trained, "mean", scoring(), rho=0.9)
    assert np.array_equal(mean(*volume), answers("mean")(*volume))


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("sampler", ["mean", "warm"])
def test_a_rho_that_is_no_correlation_is_refused(trained, sampler, rho):
    with pytest.raises(InputError, match="rho wants to be between 0 and 1"):
        make_answer(trained, sampler, scoring(), rho=rho)


def test_the_facts_of_a_sampler_name_rho_if_it_draws(trained):
    told = sampler_facts("warm", trained, scoring(), 0.5)
    grid = {"lowest": 0.01, "start": 3.0}
    assert told == {"steps": 2, "evaluations": 3, "rho": 0.5} | grid
    told = sampler_facts("ddim", trained, scoring(), 0.5)
    assert told == {"steps": 2, "evaluations": 2, "rho": 0.5, "lowest": 0.01}
    told = sampler_facts("euler_maruyama", trained, scoring(), 0.5)
    assert told == {"steps": 3, "evaluations": 3, "rho": 0.5}


def test_what_lies_on_the_missing_is_no_start_for_a_draw(trained, volume):
    sample_from_mean = make_answer(trained, "warm", scoring())
    with pytest.raises(ValueError, match="warm starts at an estimate"):
        sample_from_mean(*volume)


def test_rho_is_not_told_of_what_is_not_drawn(trained):
    assert "rho" not in sampler_facts("mean", trained, scoring(), 0.5)


def test_the_mean_draws_nothing(answers, images):
    elsewhere = slice_addresses("P9", np.arange(4), draw=7)
    for one, other in zip(
        answers("mean")(images, QUESTIONS, ADDRESSES),
        answers("mean")(images, QUESTIONS, elsewhere),
        strict=True,
    ):
        assert np.array_equal(one, other)


def test_addresses_tell_subjects_slices_and_draws_apart():
    rows = [
        tuple(row)
        for name in ("a", "b", "ab", "ba")
        for draw in (0, 1, 2)
        for row in slice_addresses(name, np.array([0, 1, 154]), draw=draw).tolist()
    ]
    assert len(set(rows)) == len(rows) == 36
    assert np.array_equal(
        slice_addresses("a", [1], draw=2), slice_addresses("a", [0, 1], draw=2)[1:]
    )


def test_an_unknown_sampler_is_named_with_those_there_are(trained):
    with pytest.raises(InputError, match="--sampler is 'heum'.*mean, euler_maruyama"):
        make_answer(trained, "heum", scoring())


def test_the_config_travels_with_the_checkpoint(trained, study):
    from_file = build.config_to_json(trained.config)
    assert from_file == checkpoint.restore_metadata(study / "run")["config"]
    assert trained.config.train.steps == 150
    assert trained.config.data.folder == str(study / "subjects")


# Devices, and how often something is compiled.


@pytest.fixture
def compiled(caplog):
    """compiled(): how many answers were compiled since."""
    jax.config.update("jax_log_compiles", True)
    yield lambda: caplog.text.count("Compiling jit(own_rows)")
    jax.config.update("jax_log_compiles", False)


@pytest.mark.parametrize("sampler", ["mean", "euler_maruyama", "warm"])
def test_one_program_answers_subjects_of_any_slices_and_any_questions(
    trained, images, compiled, sampler
):
    """Two subjects, of 7 and of 4 slices, that lack different modalities, and draws."""
    answer = make_answer(trained, sampler, scoring(microbatch=6))
    draws = make_draws(trained, sampler, scoring(microbatch=6))
    told = Estimate(np.zeros((7, 16, 16, 4), np.float32), None)
    for number, (who, slices) in enumerate(((answer, 7), (answer, 4), (draws, 5))):
        rows = np.resize(images, (slices, *images.shape[1:]))
        missing = np.tile(QUESTIONS[number : number + 1], (slices, 1))
        addresses = slice_addresses(f"P{number}", np.arange(slices), draw=0)
        own = told.map(lambda one, slices=slices: one[:slices])
        if who is answer:
            answer(rows, missing, addresses, own)
            assert compiled() == 1
            continue
        several = [*draws(rows, missing, np.stack([addresses] * 3), own)]
        assert len(several) == 3
    assert compiled() == 2  # that of `draws` is another function


@pytest.mark.parametrize("microbatch", [4, 5])
@pytest.mark.parametrize("sampler", ["mean", "euler_maruyama", "warm"])
def test_the_answer_is_the_same_on_one_device_and_on_two(
    trained, images, monkeypatch, sampler, microbatch
):
    """Not bit for bit: convolutions of other batches round otherwise."""
    rows = np.tile(images, (2, 1, 1, 1))[:7]
    missing, addresses = np.tile(QUESTIONS, (2, 1))[:7], np.tile(ADDRESSES, (2, 1))[:7]
    told = Estimate(rows[::-1].copy(), np.full(rows.shape, 0.1, np.float32))

    def answered():
        answer = make_answer(trained, sampler, scoring(microbatch))
        return jax.tree.leaves(answer(rows, missing, addresses, told))

    assert jax.local_device_count() == 2
    two = answered()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    for one, other in zip(answered(), two, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_a_microbatch_is_shared_by_all_devices(trained, images, monkeypatch):
    """5 rows at a time are 6 on two devices, 3 on each; parameters are laid once."""
    shares, laid = [], []

    def noted(fill):
        shared = real(fill)

        def call(params, *rows):
            laid.append(jax.tree.leaves(params)[0])
            answered = shared(params, *rows)
            for leaf in jax.tree.leaves(answered):
                shards = leaf.addressable_shards
                shares.append({shard.device: len(shard.data) for shard in shards})
            return answered

        return call

    real = devices.shard_over_rows
    monkeypatch.setattr(devices, "shard_over_rows", noted)
    host = jax.tree.map(np.asarray, trained.params)
    host = dataclasses.replace(trained, params=host)
    answer = make_answer(host, "euler_maruyama", scoring(microbatch=5))
    rows = np.tile(images, (2, 1, 1, 1))
    asked = (np.tile(QUESTIONS, (2, 1)), np.tile(ADDRESSES, (2, 1)))
    assert answer(rows, *asked).shape == (8, 16, 16, 4)
    assert shares == [dict.fromkeys(jax.devices(), 3)] * 2 and len(laid) == 2
    assert laid[0] is laid[1] and laid[0].sharding.device_set == set(jax.devices())
    make_answer(trained, "mean", scoring())(rows, *asked)
    assert laid[-1] is jax.tree.leaves(trained.params)[0]  # every answer shares them


def test_draws_are_the_answers_to_their_addresses(trained, answers, images):
    """However draws and slices fall into microbatches: 3 x 4 rows, 8 at a time."""
    draws = make_draws(trained, "warm", scoring(microbatch=8))
    told = answers("mean")(images, QUESTIONS, ADDRESSES)
    each = [slice_addresses("P3", np.arange(4), draw=k) for k in range(3)]
    several = [*draws(images, QUESTIONS, np.stack(each), told)]
    assert len(several) == 3
    for drawn, addresses in zip(several, each, strict=True):
        alone = answers("warm")(images, QUESTIONS, addresses, told)
        np.testing.assert_allclose(drawn, alone, atol=2e-5)
    apart = np.abs(several[0] - several[1])[QUESTIONS[:, 2], ..., 2]
    assert apart.mean() > 1e-3


@pytest.mark.parametrize("slices, size, draws, calls", [(5, 4, 8, 10), (3, 4, 1, 1)])
def test_draws_share_microbatches(trained, monkeypatch, slices, size, draws, calls):
    """8 draws of 5 slices are 10 microbatches of 4, not 8 x 2; a draw comes out before
    those after it are asked for."""
    asked = []

    def over_rows(fill):
        def call(params, images, missing, start, addresses):
            asked.append(addresses[:, 2].tolist())
            return images[..., :4]

        return call

    monkeypatch.setattr(devices, "shard_over_rows", over_rows)
    several = make_draws(trained, "euler_maruyama", scoring(microbatch=size))
    images = np.arange(slices, dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(images, (slices, 2, 2, 4))
    each = [slice_addresses("P", np.arange(slices), draw=k) for k in range(draws)]
    drawn = several(images, np.ones((slices, 4), bool), np.stack(each))
    assert asked == []
    assert np.array_equal(next(drawn), images)
    first = -(-slices // size)
    assert len(asked) == min(first + 1, calls)  # one ahead
    assert all(np.array_equal(one, images) for one in drawn)
    assert len(asked) == calls and all(len(one) == size for one in asked)
    flat = np.concatenate(asked)[: draws * slices]
    assert flat.tolist() == np.repeat(np.arange(draws), slices).tolist()
