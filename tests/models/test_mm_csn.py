"""mm-CSN: shapes, stems, who is told what, precision, and a life of its own per row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ummcsgm.models import mm_csn
from ummcsgm.models.mm_csn import CONDITIONINGS, from_patches, split_patches, to_patches

pytestmark = pytest.mark.usefixtures("quick_compile")

MISSING = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)
LEVEL = np.array([-1.4, 0.0, 1.2], np.float32)


def inputs(count=3):
    images = np.random.default_rng(0).normal(size=(count, 16, 16, 4))
    return images.astype(np.float32), MISSING[:count], LEVEL[:count]


def answer_of(network, params):
    return jax.jit(lambda *a: network.apply(params, *a))


def parts(network, params, images, missing, level):
    """The output of every submodule, by its name."""
    apply = partial(network.apply, capture_intermediates=True, mutable="intermediates")
    _, kept = apply(params, images, missing, level)
    flat = flatten_dict(kept["intermediates"], sep="/")
    return {name: value[0] for name, value in flat.items()}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_output_is_an_image_of_zeros_at_initialisation(make_network, conditioning):
    network = make_network(conditioning=conditioning)
    images, missing, level = inputs()
    answer, _ = jax.jit(network.init_with_output)(jax.random.key(0), images, missing, level)
    assert answer.dtype == jnp.float32
    np.testing.assert_array_equal(answer, np.zeros((3, 16, 16, 4)))


def test_the_grid_may_be_any_multiple_and_any_number_of_modalities(make_network):
    network = make_network(modalities=3, widths=(32, 32, 64), blocks=(1, 1, 1), patch=4)
    assert network.multiple() == 16
    answer = jax.eval_shape(
        lambda key, *a: network.init_with_output(key, *a)[0],
        jax.random.key(0),
        jnp.zeros((2, 32, 48, 3)),
        jnp.zeros((2, 3), bool),
        jnp.zeros(2),
    )
    assert answer.shape == (2, 32, 48, 3)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_are_an_orthonormal_view_of_the_images(patch):
    images = np.random.default_rng(1).normal(size=(2, 16, 8, 3)).astype(np.float32)
    patches = to_patches(jnp.asarray(images), patch)
    assert patches.shape == (2, 16 // patch, 8 // patch, 3 * patch**2)
    np.testing.assert_allclose(from_patches(patches, patch), images, atol=0)
    # An isometry patch by patch: the energy of each stays in its place.
    energy = np.square(images).reshape(2, 16 // patch, patch, 8 // patch, patch, 3)
    np.testing.assert_allclose(
        jnp.square(patches).sum(axis=-1), energy.sum(axis=(2, 4, 5)), rtol=1e-5
    )


def test_channels_of_a_patch_keep_modalities_apart():
    images = np.zeros((1, 4, 4, 3), np.float32)
    images[..., 1] = 5
    patches = np.asarray(to_patches(jnp.asarray(images), 2))[0, 0, 0]
    np.testing.assert_allclose(patches, [0] * 4 + [5] * 4 + [0] * 4)


def encoder(outputs):
    return {n: v for n, v in outputs.items() if n.startswith(("stem", "down"))}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_only_the_decoder_is_told_time_and_code_when_the_paper_says_so(
    make_network, random_params, conditioning
):
    network = make_network(conditioning=conditioning)
    params, (images, missing, level) = random_params(network), inputs()
    outputs = jax.jit(partial(parts, network, params))
    asked = outputs(images, missing, level)
    for other in (outputs(images, missing, level + 0.3), outputs(images, ~missing, level)):
        assert len(encoder(asked)) > 10
        same = [np.array_equal(encoder(other)[n], v) for n, v in encoder(asked).items()]
        blocks = [n for n in asked if n.startswith("down") and n.count("/") == 1]
        if conditioning == "decoder":
            assert all(same)
        else:
            assert not any(np.array_equal(asked[n], other[n]) for n in blocks)
        # The decoder is told in either case.
        for name in ("up1_0/__call__", "up0_0/__call__", "pixels/image/__call__"):
            assert np.max(np.abs(asked[name] - other[name])) > 1e-2


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_the_network_answers_to_the_code_alone(make_network, random_params, conditioning):
    """Equal images, level; another code: the answer is another."""
    network = make_network(conditioning=conditioning)
    answer = answer_of(network, random_params(network))
    images, missing, level = inputs(2)
    for m in range(4):
        other = missing ^ (np.arange(4) == m)
        change = answer(0 * images, other, level) - answer(0 * images, missing, level)
        assert np.max(np.abs(change)) > 1e-3


def test_bfloat16_is_for_activations_only(make_network, random_params):
    network = make_network(dtype=jnp.bfloat16)
    params, (images, missing, level) = random_params(network), inputs()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    outputs = jax.eval_shape(partial(parts, network, params), images, missing, level)
    dtypes = {
        name: value.dtype
        for name, value in outputs.items()
        if name.startswith(("stem", "down", "up", "context_out"))
        and "film" not in name
        or name.startswith(("still/stem", "still/enter"))
    }
    assert set(dtypes.values()) == {jnp.dtype(jnp.bfloat16)}
    answer = answer_of(network, params)(images, missing, level)
    exact = answer_of(make_network(), params)(images, missing, level)
    assert answer.dtype == jnp.float32
    error = np.sqrt(np.mean(np.square(answer - exact)) / np.mean(np.square(exact)))
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_an_answer_is_the_same_alone_as_in_a_batch(make_network, random_params, conditioning):
    network = make_network(conditioning=conditioning)
    answer = answer_of(network, random_params(network))
    images, missing, level = inputs()
    together = answer(images, missing, level)
    assert np.min(np.std(together, axis=(1, 2))) > 0.05
    for row in range(3):
        one = slice(row, row + 1)
        alone = answer(images[one], missing[one], level[one])
        np.testing.assert_allclose(alone[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_every_parameter_has_a_gradient(make_network, random_params, conditioning):
    network = make_network(conditioning=conditioning)
    params, (images, missing, level) = random_params(network), inputs()
    direction = np.random.default_rng(2).normal(size=images.shape)

    def projection(params):
        return jnp.sum(network.apply(params, images, missing, level) * direction)

    grads = flatten_dict(jax.jit(jax.grad(projection))(params)["params"], sep="/")
    size = {name: float(jnp.max(jnp.abs(leaf))) for name, leaf in grads.items()}
    dead = [name for name in size if size[name] < 1e-3]
    # A softmax does not see what is added to all its keys alike.
    assert all(name.endswith("attend/key/bias") for name in dead)
    assert len(size) - len(dead) > 40


def test_attention_is_at_small_grids_only_and_reaches_across_them(make_network, random_params):
    def attended(at):
        params = random_params(make_network(attention_max_grid=at))["params"]
        return {name for name in params if "attention" in name}

    assert attended(3) == set()
    assert attended(4) == {"down1_attention", "up1_attention"}
    assert attended(8) == attended(4) | {"down0_attention", "up0_attention"}

    network = make_network(attention_max_grid=4, widths=(32, 32))
    images, missing, level = (jnp.asarray(a) for a in inputs(1))
    wide, narrow = jnp.zeros((1, 64, 64, 4)), images
    reach = jax.eval_shape(network.init, jax.random.key(0), wide, missing, level)
    assert not any("attention" in name for name in reach["params"])
    params = random_params(network)

    def corner(images):
        return network.apply(params, images, missing, level)[0, 0, 0, 0]

    assert float(jnp.abs(jax.jit(jax.grad(corner))(narrow))[0, 15, 15].max()) > 0


def test_the_network_is_deterministic_and_finite_at_extreme_levels(make_network, random_params):
    network = make_network()
    answer = answer_of(network, random_params(network))
    images, missing, _ = inputs()
    level = 0.25 * np.log(np.array([1e-3, 1.0, 1e3], np.float32))
    one, two = (answer(images, missing, level) for _ in range(2))
    assert np.all(np.isfinite(one))
    np.testing.assert_array_equal(one, two)


def test_products_are_each_two_modalities_multiplied_once():
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    a, b, c = np.moveaxis(images, -1, 0)
    expected = np.stack([a * a, a * b, a * c, b * b, b * c, c * c], axis=-1) / 4
    np.testing.assert_allclose(mm_csn.pairwise_products(jnp.asarray(images)), expected, rtol=1e-6)


def test_in_patches_puts_each_pixel_with_its_own_patch():
    images = np.arange(2 * 8 * 12 * 3).reshape(2, 8, 12, 3)
    parts = split_patches(jnp.asarray(images), jnp.zeros((2, 2, 3, 7)))
    for row, column in np.ndindex(8, 12):
        patch = parts[:, row // 4, row % 4, column // 4, column % 4]
        np.testing.assert_array_equal(patch, images[:, row, column])


def test_products_are_of_what_is_seen_alone(make_network, monkeypatch):
    """A product with noise is a noise of another kind, which no layer could undo."""
    multiplied, products = [], mm_csn.pairwise_products

    def note(images):
        multiplied.append(np.asarray(images))
        return products(images)

    monkeypatch.setattr(mm_csn, "pairwise_products", note)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 4))
    missing = jnp.array([[True, False, False, True], [False, True, False, False]])
    make_network().init(jax.random.key(1), images, missing, jnp.zeros(2))
    (own,) = multiplied
    hidden = np.broadcast_to(missing[:, None, None], own.shape)
    assert not own[hidden].any()
    assert np.array_equal(own[~hidden], np.asarray(images)[~hidden])


def kept_for_gradients(network, params):
    """The gradient of a loss, and how many bytes its forward pass leaves for it."""
    images = jax.random.normal(jax.random.key(2), (32, 16, 16, 4))
    missing = jnp.tile(jnp.array([False, True, False, True]), (32, 1))

    def loss(params):
        answer = network.apply(params, images, missing, jnp.linspace(-1, 1, 32))
        return jnp.square(answer).mean()

    # What `vjp` returns is a tree of what it remembers.
    left = jax.tree.leaves(jax.eval_shape(lambda own: jax.vjp(loss, own)[1], params))
    return jax.jit(jax.grad(loss))(params), sum(4 * leaf.size for leaf in left)


def test_a_rematerialised_level_leaves_less_and_has_the_same_gradient(
    make_network, random_params, quick_compile
):
    changes = {"blocks": (2, 2), "attention_max_grid": 0}
    params = random_params(make_network(**changes))
    expected, before = kept_for_gradients(make_network(**changes), params)
    for remat in ((True, False), (True, True)):
        network = make_network(remat=remat, **changes)
        gradient, kept = kept_for_gradients(network, params)
        assert kept < 0.9 * before
        before = kept
        pairs = zip(*map(jax.tree.leaves, (expected, gradient)), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("neighbours", [0, 1])
def test_what_is_computed_once_a_question_is_the_same_as_in_each_evaluation(
    make_network, random_params, conditioning, neighbours
):
    network = make_network(conditioning=conditioning, neighbour_slices=neighbours)
    rng, (_, missing, level) = np.random.default_rng(0), inputs()
    params = random_params(network)
    images = rng.normal(size=(3, 16, 16, network.channels())).astype(np.float32)
    near = np.where(np.tile(missing, 2 * neighbours)[:, None, None], 0, images[..., 4:])
    asked = missing[:, None, None]
    once = network.conditioning_cache(params, np.where(asked, 0, images[..., :4]), near, missing)
    for noise in (0.0, 1.0):
        noisy = np.where(asked, images[..., :4] + noise, images[..., :4])
        full = np.concatenate([noisy, near], axis=-1)
        given = network.apply(params, full, missing, level, once)
        np.testing.assert_array_equal(given, network.apply(params, full, missing, level))
    # It is all that is known of the seen: their own channels are not read again.
    if conditioning == "both":
        other = np.where(asked, full[..., :4], 7.0)
        full = np.concatenate([other, 7.0 + near], axis=-1)
        again = network.apply(params, full, missing, level, once)
        np.testing.assert_array_equal(given, again)


def test_a_first_convolution_in_parts_begins_as_the_whole_would(make_network):
    network = make_network(modalities=4, widths=(64, 64), pixel_width=64)
    images, missing = jnp.zeros((1, 16, 16, 4)), jnp.zeros((1, 4), bool)
    init = jax.jit(network.init)(jax.random.key(0), images, missing, jnp.zeros(1))
    params = init["params"]
    for moving, still in (
        (params["stem"], params["still"]["stem"]),
        (params["pixels"]["enter"], params["still"]["enter"]),
    ):
        kernels = [moving["kernel"], still["kernel"]]
        channels = sum(kernel.shape[2] for kernel in kernels)
        for kernel in kernels:
            assert abs(np.std(kernel) * np.sqrt(9 * channels) - 1) < 0.05
