"""Checks of what is about the network's mean; `planted_bugs` runs them on copies of the package.

The residual's covariance is diagonal in the Haar basis, or stationary with a correlation that is
long against a voxel. Both have posteriors in closed form.
"""

import functools
import pathlib
import runpy
import types

import jax
import jax.numpy as jnp
import numpy as np
from closed_form import PATTERNS
from scipy import stats

from ummcsgm.config import build
from ummcsgm.config.build import EvaluationOptions
from ummcsgm.diffusion.bands import largest_deviation
from ummcsgm.diffusion.loss import (
    DSMInputs,
    NoiseProposal,
    Objective,
    draw_dsm_inputs,
    training_losses,
)
from ummcsgm.diffusion.missingness import mask_inputs
from ummcsgm.diffusion.preconditioning import ScoreModel, init_params, make_posterior
from ummcsgm.diffusion.samplers import make_draw
from ummcsgm.diffusion.sde import VP
from ummcsgm.inference.predictor import sampler_time_grid
from ummcsgm.models.mm_csn import MMCSN, in_variance_head
from ummcsgm.models.residual_mm_csn import ResidualMMCSN, in_noisy_part
from ummcsgm.types import Batch
from ummcsgm.utils.haar import haar, inverse_haar

BASE = pathlib.Path(__file__).parents[1] / "configs" / "base.py"

LEVELS, GRID, STD = 2, (8, 12), 0.4
TIMES = np.geomspace(0.004, 1, 15).astype(np.float32)
# Of each band and modality where one is missing; the more are missing, the larger.
POWER = np.array([[4.0, 0.5, 0.02, 1.0], [0.3, 0.2, 0.05, 0.4], [0.01, 0.02, 0.5, 0.1]])
POWER = POWER * np.array([1.0, 1.7, 2.6, 4.0])[:, None, None]  # [sizes, bands, M]
OWN = POWER[PATTERNS.sum(axis=1) - 1].transpose(1, 0, 2)[:, :, None, None]  # [bands, 15, 1, 1, M]
SEEN = ~PATTERNS[:, None, None]


def block_mean(images, side):
    """The images, each pixel the mean of its block: the projection on blocks that are constant."""
    b, h, w, m = images.shape
    blocks = images.reshape(b, h // side, side, w // side, side, m).mean(axis=(2, 4), keepdims=True)
    return np.broadcast_to(blocks, (b, h // side, side, w // side, side, m)).reshape(images.shape)


def band_parts(images):
    """The part of the images in each band, the coarsest first; float64."""
    means = [block_mean(np.float64(images), 2**level) for level in range(LEVELS + 1)]
    finer = [means[level] - means[level + 1] for level in reversed(range(LEVELS))]
    return [means[LEVELS], *finer]


class KnownMean:
    """A network of the preconditioning `mean` that knows the mean, and answers `output`.

    `calls` are (method, rows) of its evaluations, as they are traced."""

    modalities = 4

    def __init__(self, sde, mean, output=0.0):
        self.mean, self.output, self.calls, self.shown = jnp.asarray(mean), output, [], []
        tau = float(sde.noise_level(jnp.float32(1)))
        self.out = tau * STD / np.hypot(tau, STD)

    def multiple(self):
        return 2**LEVELS

    def apply(self, params, images, missing, level, *features, method):
        self.calls.append((method, len(jax.tree.leaves(images)[0])))
        if method == "encode":
            return jnp.repeat(self.mean / self.out, len(images) // len(self.mean), axis=0), ()
        shown = inverse_haar(images)
        self.shown.append((shown, missing, level))
        return haar(self.output + 0 * shown, LEVELS)


def known_params(power=POWER):
    """The parameters of a network without any, and the statistics of the residual."""
    return {"params": {}, "statistics": {"band_power": jnp.asarray(power, jnp.float32)}}


def voxels(seed, grid=GRID):
    return np.random.default_rng(seed).normal(size=(15, *grid, 4)).astype(np.float32)


def assert_orthonormal(levels=3, grid=(16, 24)):
    """Every coefficient is a unit vector's, all at right angles; and the inverse is the adjoint."""
    count = grid[0] * grid[1]
    basis = jnp.eye(count).reshape(count, *grid, 1)
    bands = haar(basis, levels)
    matrix = np.concatenate([np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(bands)], 1)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(count), atol=1e-6)
    np.testing.assert_allclose(
        inverse_haar(bands)[..., 0].reshape(count, -1), np.eye(count), atol=1e-6
    )


def assert_bands_are_block_means():
    """The part of each band, transformed alone, is the difference of two block means."""
    images = voxels(0)
    bands = haar(jnp.asarray(images), LEVELS)
    leaves, structure = jax.tree.flatten(bands)
    for number, part in enumerate(band_parts(images)):
        alone = [leaf * (own == number) for own, leaf in enumerate(leaves)]
        ours = inverse_haar(jax.tree.unflatten(structure, alone))
        np.testing.assert_allclose(ours, part, atol=2e-6)


def assert_largest_deviation_by_hand():
    """A block of n pixels with amplitude A has A sqrt(n), also on sides that are odd."""
    for shape, rows, columns, amplitude in (
        ((7, 9), slice(4, 5), slice(3, 4), -3.0),
        ((16, 16), slice(8, 12), slice(4, 8), 0.5),
        ((13, 11), slice(0, 8), slice(0, 8), -0.25),
        ((192, 160), slice(0, 128), slice(0, 128), 0.01),
    ):
        image = np.zeros((2, *shape, 3), np.float32)
        image[1, rows, columns, 2] = amplitude
        count = (rows.stop - rows.start) * (columns.stop - columns.start)
        expected = np.zeros((2, 3))
        expected[1, 2] = amplitude**2 * count
        found = jax.jit(largest_deviation)(image)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def assert_exact_posterior(sde):
    """With the residual's own powers and F = 0: m + V (V + tau^2)^-1 (y - m), b where seen."""
    images, mean, x = 0.4 * voxels(0), 0.3 * voxels(1), voxels(2)
    x = np.asarray(sde.std(TIMES))[:, None, None, None] * x + 0.4 * voxels(3)
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS))
    network = KnownMean(sde, mean)
    posterior = make_posterior(ScoreModel(network, sde, STD, "mean"), known_params(), condition)
    ours = np.asarray(posterior.estimate(jnp.asarray(x), jnp.asarray(TIMES)).mean)
    mean = np.where(SEEN, images, mean)
    level = np.asarray(sde.noise_level(TIMES), np.float64)[:, None, None, None]
    alpha = np.asarray(sde.mean(TIMES), np.float64)[:, None, None, None]
    parts = zip(band_parts(x / alpha - mean), OWN, strict=True)
    truth = mean + sum(power / (power + level**2) * part for part, power in parts)
    size = np.sqrt(np.square(truth).mean(axis=(1, 2, 3), keepdims=True)) + 1
    # y itself is known to 1e-6 of its size alone.
    error = np.where(SEEN, 0, ours - truth) / size
    assert np.abs(error).max() < 2e-5, np.abs(error).max()
    kept = np.broadcast_to(SEEN, ours.shape)
    np.testing.assert_array_equal(ours[kept].view(np.int32), images[kept].view(np.int32))
    np.testing.assert_allclose(posterior.moments().mean, mean, atol=1e-6)


PLAIN = NoiseProposal(0.1, -1.2, 1.4, 0.01, 10.0, 0.0, 10.0)


def objective_of(levels, weighting=None):
    return Objective(PATTERNS, None, PLAIN, weighting, False, 1, levels)


def questions(levels, seed=0, grid=GRID, missing=PATTERNS, scored=None):
    """Inputs of `levels` noise levels a question."""
    rng, count = np.random.default_rng(seed), len(missing) * levels
    noise = rng.normal(size=(count, *grid, 4)).astype(np.float32)
    t = rng.uniform(0.02, 1, count).astype(np.float32)
    scored = missing if scored is None else scored
    return DSMInputs(*map(jnp.asarray, (scored, missing, t, noise, np.zeros(len(missing), bool))))


def assert_levels_share_a_mean(sde, levels=3):
    """One encoding of each question; the loss is the mean of those of the levels alone."""
    images, mean = jnp.asarray(0.4 * voxels(0)), 0.3 * voxels(1)
    inputs = questions(levels)
    network = KnownMean(sde, mean, 0.7)
    model = ScoreModel(network, sde, STD, "mean")
    together = training_losses(model, known_params(), objective_of(levels), images, inputs)
    assert network.calls == [("encode", 15), ("denoise", 15 * levels)]
    alone = []
    for level in range(levels):
        own = inputs._replace(t=inputs.t[level::levels], noise=inputs.noise[level::levels])
        alone.append(training_losses(model, known_params(), objective_of(1), images, own))
    np.testing.assert_allclose(together.loss, np.mean([one.loss for one in alone], 0), rtol=1e-5)
    np.testing.assert_array_equal(together.mean_loss, alone[0].mean_loss)
    assert np.ptp([one.loss for one in alone], axis=0).min() > 1e-3


def assert_levels_are_those_of_the_config():
    """The base config's: log-uniform up to so many scales of what is missing in the example, but
    for the share that is uniform in time. None asks for the mean in place of its noise levels."""
    config = runpy.run_path(str(BASE))["get_config"]()
    objective, sde = build.build_objective(config), build.build_sde(config)
    count, levels = 512, objective.levels_per_question
    images, present = jnp.zeros((count, 2, 2, 4)), jnp.ones((count, 4), bool)
    batch = Batch(images, present, jnp.ones(count, bool))

    def scale(missing):
        return 0.1 * missing.sum(axis=1) ** 2

    inputs = draw_dsm_inputs(
        jax.random.key(0), objective, sde, batch, jnp.arange(count), count, scale
    )
    assert inputs.t.shape == (count * levels,) and not np.any(inputs.mean_query)
    found = np.asarray(sde.noise_level(inputs.t), np.float64)
    own = np.repeat(np.asarray(scale(inputs.missing)), levels)
    span = np.log(config.loss.sigma_max_factor * own / config.loss.sigma_min)
    rank = np.log(found / config.loss.sigma_min) / span
    within = rank < 1
    # Of the uniform times most are at levels that are higher.
    share = 1 - config.loss.uniform_fraction
    assert share - 0.02 < within.mean() < share + 0.06, within.mean()
    for size in range(1, 5):
        rows = within & np.repeat(np.asarray(inputs.missing.sum(axis=1)) == size, levels)
        assert stats.kstest(rank[rows], "uniform").statistic < 2 / np.sqrt(rows.sum()), size


# A real network.


def small_model(sde):
    """A network of images of 16 x 16, of two levels."""
    fields = {"modalities": 4, "widths": (32, 32), "blocks": (1, 1), "patch": 2}
    fields |= {"attention_max_grid": 4, "pixel_width": 8, "pixel_layers": 1}
    fields |= {"context_channels": 2, "conditioning": "both", "predict_variance": True}
    fields |= {"neighbour_slices": 0, "remat": (False, False), "dtype": jnp.float32}
    return ScoreModel(ResidualMMCSN(MMCSN(**fields), (32, 32), 1), sde, STD, "mean")


def random_params(model):
    """No leaf of the network is zero; the powers grow with the bands' scale."""
    shapes = jax.eval_shape(lambda key: init_params(model, key, (16, 16)), jax.random.key(0))
    rng = np.random.default_rng(0)

    def leaf(shape):
        noise = rng.normal(size=shape.shape).astype(np.float32)
        return noise * np.float32(max(noise[..., 0].size, 16) ** -0.5)

    sizes, bands, modalities = shapes["statistics"]["band_power"].shape
    power = np.geomspace(0.5, 0.01, bands)[:, None] * np.ones((sizes, 1, modalities))
    statistics = known_params(power)["statistics"] | {"deviation": jnp.ones((sizes, modalities))}
    return {"params": jax.tree.map(leaf, shapes["params"]), "statistics": statistics}


PAIR = PATTERNS[[2, 9]]


def loss_gradients(sde, name, levels=3):
    """The gradient of one of the losses, summed over two questions, by part of the parameters."""
    model = small_model(sde)
    inputs, images = questions(levels, grid=(16, 16), missing=PAIR), 0.4 * voxels(0, (16, 16))[:2]

    def total(params):
        objective = objective_of(levels)
        losses = training_losses(model, params, objective, jnp.asarray(images), inputs)
        return getattr(losses, name).sum()

    return jax.jit(jax.grad(total))(random_params(model))


def assert_losses_move_their_own_parts(sde):
    """The noisy part's, the mean's and the variance's; none moves a statistic."""
    for name in ("loss", "mean_loss", "variance_loss"):
        found = loss_gradients(sde, name)
        assert len(found) == 2
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["statistics"])), name
        network = found["params"]
        # The mean is asked for with nothing but 0 for the first convolution of noisy images.
        assert not np.any(network["mean_network"]["stem"].pop("kernel")), name
        noisy, head = in_noisy_part(network), in_variance_head(network)
        wanted = {"loss": (True, False), "mean_loss": (False, False)}.get(name, (False, True))
        leaves = zip(*map(jax.tree.leaves, (network, noisy, head)), strict=True)
        sizes = [(np.abs(leaf).max(), tuple(part) == wanted) for leaf, *part in leaves]
        assert not any(size for size, own in sizes if not own), name
        assert all(size > 0 for size, own in sizes if own), name  # of each leaf of its own
        assert max(size for size, own in sizes if own) > 1e-4, name


# Where `warm` starts.

WARM = {"sampler_steps": 12, "time_grid": "log_uniform", "sigma_min": 0.01}


def eigenbasis(side, length):
    """(eigenvalues, vectors) of exp(-d^2 / (2 length^2)) on `side` points; inf: all as one."""
    distance = np.arange(side)[:, None] - np.arange(side)
    values, vectors = np.linalg.eigh(np.exp(-np.square(distance / length) / 2))
    return np.maximum(values, 0), vectors


@functools.cache
def measured_scale(grid, length):
    """(the scale of 24 simulated residuals of voxelwise sd 1, the leading mode's variance)."""
    (rows, row_vectors), (columns, column_vectors) = (eigenbasis(side, length) for side in grid)
    white = np.random.default_rng(0).normal(size=(24, *grid))
    residual = (row_vectors * np.sqrt(rows)) @ white @ (column_vectors * np.sqrt(columns)).T
    squares = jax.jit(largest_deviation)(jnp.asarray(residual[..., None], jnp.float32))
    return float(jnp.sqrt(squares.mean())), rows.max() * columns.max()


def leading_ratio(grid, length, *, factor=5.0, steps=12, sd=0.08):
    """The sampler's variance of the leading mode over the exact one, where `warm` starts at
    `factor` scales that are measured on simulated residuals of voxelwise `sd`.

    A draw is affine in its noise, and in the eigenbasis each mode is alone."""
    sde = VP(0.1, 20.0)
    scale, leading = sd * np.array(measured_scale(grid, length)) * (1, sd)
    trained = types.SimpleNamespace(
        model=types.SimpleNamespace(sde=sde), posterior_scale=lambda missing: scale
    )
    fields = dict.fromkeys(EvaluationOptions.__dataclass_fields__) | WARM
    options = EvaluationOptions(**fields | {"warm_start_factor": factor, "sampler_steps": steps})
    times = sampler_time_grid(trained, "warm", options, np.ones(1, bool))

    def denoise(x, t):
        noise = jnp.square(sde.noise_level(t))[:, None, None, None]
        return leading / (leading + noise) * x / sde.mean(t)[:, None, None, None]

    draw, key = make_draw("warm", sde, times), jax.random.key(0)[None]
    mean = jnp.zeros((1, 1, 1, 1))

    def ones(keys, like):
        return jnp.ones_like(like)

    # The start knows a voxel's own variance, not the mode's.
    drawn = draw(key, denoise, None, mean, sd**2, noise=ones)
    return float(np.square(drawn[0, 0, 0, 0])) / leading


def assert_warm_starts_above_the_leading_mode(grid, length, steps=12):
    """Within 5 % of the exact variance."""
    assert abs(leading_ratio(grid, length, steps=steps) - 1) < 0.05
