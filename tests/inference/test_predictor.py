"""A trained network predicts means and samples draws: of each slice alone, in any batch."""

import dataclasses
import functools
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import EDM, MODALITIES, tiny_config
from tiny_slices import open_store

from ummcsgm.config import build
from ummcsgm.diffusion.correlated_noise import ar1_noise
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import init_params, make_denoise
from ummcsgm.diffusion.samplers import address_keys, algorithm1, make_noise, sample_from_mean
from ummcsgm.diffusion.time_grids import log_uniform_times, noise_level_at
from ummcsgm.distributed import devices
from ummcsgm.inference.predictor import (
    load_trained_model,
    make_mean_predictor,
    make_sampler,
    read_rho,
    regroup,
    run_in_microbatches,
    sampler_facts,
    slice_addresses,
)
from ummcsgm.training import checkpoint
from ummcsgm.types import Estimate, InputError
from ummcsgm.utils.provenance import code_digest

pytest_plugins = ["tiny_study"]

MISSING = np.array([[0, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
ADDRESSES = slice_addresses("P3", np.arange(4), draw=0)


@pytest.fixture(scope="module")
def trained(study, quick_compile):
    return load_trained_model(study / "run")


@pytest.fixture(scope="module")
def about_0(trained):
    """A network of the preconditioning `edm`, its parameters random."""
    config = tiny_config("", **EDM)
    model = build.build_model(config)
    shapes = jax.eval_shape(lambda key: init_params(model, key, (16, 16)), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.1) * rng.normal(size=leaf.shape).astype(np.float32), shapes
    )
    return dataclasses.replace(
        trained, config=config, model=model, params=devices.replicate(params)
    )


@pytest.fixture(scope="module")
def options(trained):
    """options(microbatch=4, seed=0): those of the study."""
    base = build.build_evaluation_options(trained.config)
    return lambda microbatch=4, seed=0: dataclasses.replace(base, microbatch=microbatch, seed=seed)


def once(sample):
    """draw(images, missing, addresses [R, 3], estimate): one draw [R, H, W, M]."""

    def draw(images, missing, addresses, estimate=None):
        (drawn,) = sample(images, missing, np.asarray(addresses)[None], estimate)
        return drawn

    return draw


@pytest.fixture(scope="module")
def mean(trained, options):
    return make_mean_predictor(trained, options())


@pytest.fixture(scope="module")
def algorithm1_draw(trained, options):
    return once(make_sampler(trained, "euler_maruyama", options()))


@pytest.fixture(scope="module")
def warm_draw(trained, options):
    return once(make_sampler(trained, "warm", options()))


@pytest.fixture(scope="module")
def images(study):
    return open_store(study / "run" / "prepared", "train").subject_slices("P3")[:4]


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
    saved_config = checkpoint.restore_metadata(study / "run")["config"]
    assert build.config_to_json(trained.config) == saved_config
    assert trained.config.data.folder == str(study / "subjects")


def test_the_digest_is_that_of_the_parameters(trained, study, tmp_path):
    assert load_trained_model(study / "run").digest == trained.digest
    older = shutil.copytree(study / "run", tmp_path / "run")
    shutil.rmtree(older / "checkpoints" / "150")
    earlier = load_trained_model(older)
    assert earlier.step == 120 and earlier.digest != trained.digest


def test_the_mean_is_one_evaluation_at_time_1_without_signal(trained, mean, images):
    """A slice alone, by hand: t = 1, a_t = 0, the averaged parameters of the mean's network."""
    network, params = trained.model.network.mean_network, trained.params["params"]
    std, level = trained.model.data_std, noise_level_at(trained.model.sde, 1)

    @jax.jit
    def alone(image, missing):
        seen = jnp.where(missing[:, None, None], 0, image) / std
        own = {"params": params["mean_network"]}
        output = network.apply(own, seen, missing, jnp.full(1, 0.25 * np.log(level)))
        return level * std / np.hypot(level, std) * output[..., :4]

    filled = mean(images, MISSING).mean
    for index in range(len(images)):
        image, missing = images[index : index + 1], MISSING[index : index + 1]
        expected = np.where(missing[:, None, None], alone(image, missing), image)
        np.testing.assert_allclose(filled[index], expected[0], atol=2e-5)


def test_the_mean_about_0_is_one_evaluation_at_time_1_without_signal(about_0, options, images):
    """As above, of the preconditioning `edm`: what `denoise` says of a_t = 0."""

    @jax.jit
    def alone(image, missing):
        denoise = make_denoise(about_0.model, about_0.params, mask_inputs(image, missing))
        return denoise(jnp.zeros((1, 16, 16, 4)), jnp.ones(1))

    filled = make_mean_predictor(about_0, options())(images, MISSING).mean
    for index in range(len(images)):
        image, missing = images[index : index + 1], MISSING[index : index + 1]
        np.testing.assert_allclose(filled[index], alone(image, missing)[0], atol=2e-5)
        assert not missing.any() or np.abs(filled[index] - image[0]).max() > 0.01


@pytest.mark.parametrize("network", ["trained", "about_0"])
def test_a_draw_is_algorithm_1_with_the_key_of_its_address(network, options, images, request):
    trained = request.getfixturevalue(network)
    sample = once(make_sampler(trained, "euler_maruyama", options()))
    filled = sample(images, MISSING, ADDRESSES)

    @jax.jit
    def draw(images):
        denoise = make_denoise(trained.model, trained.params, mask_inputs(images, MISSING))
        keys = address_keys(0, ADDRESSES[:, [0, 2]])
        return algorithm1(keys, trained.model.sde, denoise, images, 3, noise=noise_at(0))

    expected = np.where(MISSING[:, None, None], draw(images), images)
    np.testing.assert_allclose(filled, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", ["trained", "about_0"])
def test_a_warm_draw_starts_from_the_moments_that_it_is_given(network, options, images, request):
    """And, of each row, at 5 posterior scales of what is missing there."""
    trained = request.getfixturevalue(network)
    warm_draw = once(make_sampler(trained, "warm", options()))
    estimate = make_mean_predictor(trained, options())(images, MISSING)
    starts = [5 * trained.posterior_scale(missing) for missing in MISSING]
    assert len(set(starts[:3])) == 3
    # As much as the first noise level's own: it shows.
    own = np.square(starts).astype(np.float32)[:, None, None, None]
    wide = estimate._replace(variance=own + estimate.variance)
    filled = warm_draw(images, MISSING, ADDRESSES, wide)
    sde = trained.model.sde
    times = np.stack([log_uniform_times(sde, 2, start, 0.004) for start in starts], axis=1)

    @jax.jit
    def draw(images, mean, variance):
        denoise = make_denoise(trained.model, trained.params, mask_inputs(images, MISSING))
        noise = make_noise(address_keys(0, ADDRESSES[:, [0, 2]]), noise_at(0))
        return sample_from_mean(noise, sde, denoise, mean, times, variance=variance)

    drawn = draw(images, *wide)
    expected = np.where(MISSING[:, None, None], drawn, images)
    np.testing.assert_allclose(filled, expected, rtol=1e-4, atol=1e-4)
    for other in (wide._replace(mean=wide.mean + 0.5), wide._replace(variance=None)):
        elsewhere = warm_draw(images, MISSING, ADDRESSES, other)
        assert np.abs(elsewhere - filled)[MISSING[:, 2], ..., 2].mean() > 1e-4
    with pytest.raises(ValueError, match="warm starts from an estimate"):
        warm_draw(images, MISSING, ADDRESSES)


def test_the_seen_comes_back_bit_for_bit_and_the_missing_is_not_read(mean, algorithm1_draw, images):
    seen = np.broadcast_to(~MISSING[:, None, None], images.shape)
    spoiled = np.where(seen, images, np.nan)
    estimate = mean(images, MISSING)
    assert not estimate.variance[seen].any()
    pairs = [
        (estimate.mean, mean(spoiled, MISSING).mean),
        (algorithm1_draw(images, MISSING, ADDRESSES), algorithm1_draw(spoiled, MISSING, ADDRESSES)),
    ]
    for filled, again in pairs:
        assert np.array_equal(filled[seen], images[seen]) and np.array_equal(filled, again)
        assert np.abs(filled - images)[~seen].min() > 0 and np.isfinite(filled).all()


def test_a_draw_depends_on_its_address_and_the_seed_alone(
    trained, options, algorithm1_draw, images
):
    inputs = np.repeat(images[:1], 6, axis=0), np.repeat(MISSING[:1], 6, axis=0)
    addresses = np.concatenate(
        [
            slice_addresses("P3", [3, 3, 4], draw=0),
            slice_addresses("P3", [3], draw=1),
            slice_addresses("P4", [3], draw=0),
            slice_addresses("P3", [3], draw=0),
        ]
    )
    drawn = algorithm1_draw(*inputs, addresses)
    first, again, *others, last = drawn[..., 2]
    np.testing.assert_allclose(again, first, atol=2e-5)
    np.testing.assert_allclose(last, first, atol=2e-5)
    for other in others:
        assert np.abs(other - first).mean() > 0.1
    assert np.array_equal(algorithm1_draw(*inputs, addresses), drawn)
    seeded = once(make_sampler(trained, "euler_maruyama", options(seed=1)))
    assert np.abs(seeded(*inputs, addresses) - drawn)[..., 2].mean() > 0.1


def test_with_rho_neighbouring_slices_go_together_whatever_is_computed_beside_them(
    trained, options, algorithm1_draw, images
):
    """7 neighbouring slices that are all alike."""
    missing, addresses = (
        np.tile(MISSING[:1], (7, 1)),
        slice_addresses("P3", np.arange(30, 37), draw=1),
    )
    volume = (np.repeat(images[:1], 7, axis=0), missing, addresses)

    def steps_between(drawn):
        """How far neighbouring slices are apart, over slices 4 apart, in channel 2."""
        near = np.abs(np.diff(drawn[..., 2], axis=0)).mean()
        return near / np.abs(drawn[4:, ..., 2] - drawn[:-4, ..., 2]).mean()

    coherent = once(make_sampler(trained, "euler_maruyama", options(), rho=0.9))
    whole, independent = coherent(*volume), algorithm1_draw(*volume)
    assert steps_between(whole) < 0.75  # of a normal law, sqrt((1 - .9) / (1 - .9^4)) = 0.54
    assert steps_between(independent) > 0.85
    assert np.abs(whole - independent)[..., 2].mean() > 0.1
    for index in ([5], [6, 0, 3], [4, 5, 6, 3, 2]):
        part = coherent(*(array[index] for array in volume))
        np.testing.assert_allclose(part, whole[index], atol=1e-4)


@pytest.mark.parametrize("rho", [-0.1, 1.5, float("nan")])
def test_a_rho_that_is_no_correlation_is_refused(trained, options, rho):
    with pytest.raises(InputError, match="rho"):
        make_sampler(trained, "warm", options(), rho=rho)


def test_the_facts_of_a_sampler_say_its_steps_levels_and_rho(trained, options):
    known = dataclasses.replace(trained, posterior_scales={"t1c": 0.6, "flair+t2": 0.5, "t1": 0.9})
    grid = {"time_grid": "log_uniform", "sigma_min": 0.004}
    # Of the last pattern nothing was measured: the largest of all.
    for missing, level in zip(MISSING[:3], (3.0, 2.5, 4.5), strict=True):
        facts = sampler_facts("warm", known, options(), 0.5, missing)
        start = {"warm_start_sigma": pytest.approx(level)}
        assert facts == {"steps": 2, "evaluations": 3, "rho": 0.5} | grid | start
    missing = MISSING[0]
    facts = sampler_facts("ddim", trained, options(), 0.5, missing)
    assert facts == {"steps": 2, "evaluations": 2, "rho": 0.5} | grid
    facts = sampler_facts("euler_maruyama", trained, options(), 0.5, missing)
    assert facts == {"steps": 3, "evaluations": 3, "rho": 0.5}
    facts = sampler_facts("mean", trained, options(), 0.5, missing)
    assert facts == {"steps": 1, "evaluations": 1}


def test_addresses_differ_by_subject_slice_and_draw():
    addresses = [
        tuple(address)
        for name in ("a", "b", "ab", "ba")
        for draw in (0, 1, 2)
        for address in slice_addresses(name, np.array([0, 1, 154]), draw=draw).tolist()
    ]
    assert len(set(addresses)) == len(addresses) == 36
    assert np.array_equal(
        slice_addresses("a", [1], draw=2), slice_addresses("a", [0, 1], draw=2)[1:]
    )


def test_an_unknown_sampler_is_named_with_the_known_ones(trained, options):
    with pytest.raises(InputError, match="--sampler is 'heum'.*mean, euler_maruyama"):
        make_sampler(trained, "heum", options())


# Microbatches, devices, and how often a program is compiled.


@pytest.fixture
def compiled(caplog):
    """compiled(): how many programs were compiled since."""
    jax.config.update("jax_log_compiles", True)
    yield lambda: caplog.text.count("Compiling jit(<lambda>)")
    jax.config.update("jax_log_compiles", False)


def test_draws_and_means_are_the_same_in_any_microbatch_and_compile_once(
    trained, options, mean, warm_draw, images, compiled
):
    """However draws and slices fall into microbatches: 3 x 4 examples, 7 at a time."""
    seven = make_mean_predictor(trained, options(microbatch=7))
    estimate = mean(images, MISSING)
    before = compiled()
    for ours, theirs in zip(seven(images, MISSING), estimate, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    seven(np.tile(images, (3, 1, 1, 1)), np.tile(MISSING[::-1], (3, 1)))
    assert compiled() == before + 1
    sample = make_sampler(trained, "warm", options(microbatch=7))
    addresses = np.stack([slice_addresses("P3", np.arange(4), draw=k) for k in range(3)])
    several = [*sample(images, MISSING, addresses, estimate)]
    assert len(several) == 3
    for drawn, address in zip(several, addresses, strict=True):
        alone = warm_draw(images, MISSING, address, estimate)
        np.testing.assert_allclose(drawn, alone, atol=1e-4)
    assert np.abs(several[0] - several[1])[MISSING[:, 2], ..., 2].mean() > 1e-3
    before = compiled()
    for index in ([0], [2, 1]):  # other slices and patterns, by the same program
        part = estimate.map(lambda array, index=index: array[index])
        next(sample(images[index], MISSING[index], addresses[:1, index], part))
    assert compiled() == before


def test_means_and_draws_are_the_same_on_one_device_and_on_two(
    trained, options, mean, warm_draw, images, monkeypatch
):
    """Not bit for bit: convolutions of other batches round otherwise."""
    estimate = Estimate(images[::-1].copy(), np.full(images.shape, 0.1, np.float32))

    def outputs(mean, draw):
        return [*mean(images, MISSING), draw(images, MISSING, ADDRESSES, estimate)]

    assert jax.local_device_count() == 2
    two = outputs(mean, warm_draw)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    one = outputs(
        make_mean_predictor(trained, options(5)), once(make_sampler(trained, "warm", options(5)))
    )
    for ours, theirs in zip(one, two, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_a_microbatch_is_shared_by_all_devices(trained, options, images, monkeypatch):
    """5 examples at a time are 6 on two devices, 3 on each; parameters are placed once."""
    shares, placed = [], []

    def noted(function):
        shared = real(function)

        def call(params, *arrays):
            placed.append(jax.tree.leaves(params)[0])
            output = shared(params, *arrays)
            for leaf in jax.tree.leaves(output):
                shards = leaf.addressable_shards
                shares.append({shard.device: len(shard.data) for shard in shards})
            return output

        return call

    real = devices.shard_over_rows
    monkeypatch.setattr(devices, "shard_over_rows", noted)
    host = jax.tree.map(np.asarray, trained.params)
    host = dataclasses.replace(trained, params=host)
    inputs = np.tile(images, (2, 1, 1, 1)), np.tile(MISSING, (2, 1))
    assert make_mean_predictor(host, options(5))(*inputs).mean.shape == (8, 16, 16, 4)
    assert shares == [dict.fromkeys(jax.devices(), 3)] * 4 and len(placed) == 2
    assert placed[0] is placed[1] and placed[0].sharding.device_set == set(jax.devices())
    make_mean_predictor(trained, options())(*inputs)
    assert placed[-1] is jax.tree.leaves(trained.params)[0]  # shared by all predictors


@pytest.mark.parametrize("slices, size, draws, calls", [(5, 4, 8, 10), (3, 4, 1, 1)])
def test_draws_share_microbatches(trained, options, monkeypatch, slices, size, draws, calls):
    """8 draws of 5 slices are 10 microbatches of 4, not 8 x 2; a draw comes out before
    those after it are computed."""
    computed = []

    def over_rows(function):
        def call(params, images, missing, *draws):
            if draws:  # else it encodes what is seen, for all draws
                _, addresses, _ = draws
                computed.append(addresses[:, 2].tolist())
            return images[..., :4]

        return call

    monkeypatch.setattr(devices, "shard_over_rows", over_rows)
    sample = make_sampler(trained, "euler_maruyama", options(microbatch=size))
    images = np.arange(slices, dtype=np.float32)[:, None, None, None]
    images = np.broadcast_to(images, (slices, 2, 2, 4))
    addresses = [slice_addresses("P", np.arange(slices), draw=k) for k in range(draws)]
    drawn = sample(images, np.ones((slices, 4), bool), np.stack(addresses))
    assert computed == []
    assert np.array_equal(next(drawn), images)
    assert len(computed) == min(-(-slices // size) + 1, calls)  # one ahead
    assert all(np.array_equal(draw, images) for draw in drawn)
    assert len(computed) == calls and all(len(batch) == size for batch in computed)
    flat = np.concatenate(computed)[: draws * slices]
    assert flat.tolist() == np.repeat(np.arange(draws), slices).tolist()


@pytest.mark.parametrize("size", [1, 4, 12, 20])
def test_microbatches_compute_what_one_call_does(size):
    rng = np.random.default_rng(0)
    images, numbers = rng.normal(size=(12, 3, 2)).astype(np.float32), np.arange(12)
    shapes = set()

    def run(images, numbers):
        shapes.add(images.shape)
        return {"image": jnp.asarray(images) * numbers[:, None, None], "none": None}

    parts = [*run_in_microbatches(run, size, 12, lambda index: (images[index], numbers[index]))]
    assert all(isinstance(part["image"], np.ndarray) for part in parts)
    assert [len(part["image"]) for part in parts[:-1]] == [size] * (len(parts) - 1)
    expected = images * numbers[:, None, None].astype(np.float32)
    np.testing.assert_array_equal(np.concatenate([part["image"] for part in parts]), expected)
    assert shapes == {(size, 3, 2)}


class Pending:
    """What a device has yet to compute: reading it is an event."""

    def __init__(self, events, first):
        self.events, self.first = events, first
        events.append(("dispatched", first))

    def __array__(self, dtype=None, copy=None):
        self.events.append(("read", self.first))
        return np.arange(self.first, self.first + 2)


def test_the_next_is_dispatched_before_the_last_is_read_and_two_are_in_memory():
    events = []
    parts = run_in_microbatches(
        lambda index: Pending(events, index[0]), 2, 7, lambda index: (index,)
    )
    assert events == []
    assert next(parts).tolist() == [0, 1]
    assert events == [("dispatched", 0), ("dispatched", 2), ("read", 0)]
    assert [part.tolist() for part in parts] == [[2, 3], [4, 5], [6]]
    pending = np.cumsum([1 if kind == "dispatched" else -1 for kind, _ in events])
    assert pending.max() == 2 and pending[-1] == 0
    assert [first for kind, first in events if kind == "read"] == [0, 2, 4, 6]


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [12], [5, 7], [2, 9, 1]])
@pytest.mark.parametrize("size", [1, 4, 12])
def test_batches_of_any_length_are_regrouped_as_soon_as_a_group_is_whole(lengths, size):
    read = []

    def batches():
        for part in np.split(np.arange(12), np.cumsum(lengths)[:-1]):
            read.append(part[-1])
            yield part, -part

    for index, (positive, negative) in enumerate(regroup(batches(), size)):
        assert positive.tolist() == [*range(index * size, (index + 1) * size)]
        assert np.array_equal(negative, -positive)
        assert read[-1] - positive[-1] < max(lengths)
    assert index + 1 == 12 // size


# The correlation of neighbouring slices.

MODEL = types.SimpleNamespace(digest="abc")
SAVED = {"parameters_sha256": "abc", "code_sha256": code_digest(), "rho": 0.625}


def read(folder, sampler="warm", **changes):
    (folder / "calibration.json").write_text(json.dumps(SAVED | changes))
    return read_rho(folder, MODEL, sampler)


def test_rho_is_of_these_parameters_and_this_code(tmp_path, capsys):
    assert read_rho(tmp_path, MODEL, "warm") == 0
    assert read(tmp_path) == read(tmp_path, "ddim") == 0.625
    assert capsys.readouterr().out == ""
    assert read(tmp_path, parameters_sha256="abd") == 0
    assert "is of another checkpoint; --mode" in capsys.readouterr().out
    assert read(tmp_path, code_sha256="abd") == 0
    assert "is of another version of the code; --mode" in capsys.readouterr().out
    assert read(tmp_path, "mean", parameters_sha256="abd") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("rho", [1.5, "much", None, float("nan"), [1]])
def test_a_damaged_calibration_is_refused_by_the_name_of_its_file(tmp_path, rho):
    with pytest.raises(InputError, match=r"calibration.json is damaged: --mode eval"):
        read(tmp_path, rho=rho)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "3"])
def test_a_calibration_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(InputError, match=r"calibration.json is damaged: --mode eval"):
        read_rho(tmp_path, MODEL, "warm")
