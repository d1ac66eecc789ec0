"""Eqs. 6-7: the literal loss, its weightings, what it may not see, and its draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_form import PATTERNS, SDES, all_patterns, each_sde, make_gaussian_denoise
from scipy import stats

from ummcsgm.diffusion import loss as losses_module
from ummcsgm.diffusion import sde as sdes
from ummcsgm.diffusion.loss import (
    DSMInputs,
    NoiseProposal,
    Objective,
    draw_dsm_inputs,
    dsm_loss,
    make_weigh_conditional,
    times_from_uniform,
    training_losses,
    weigh_edm,
    weigh_likelihood,
    weigh_min_snr,
    weigh_paper,
    weigh_std2,
)
from ummcsgm.diffusion.missingness import mask_inputs, missing_patterns, pattern_probabilities
from ummcsgm.diffusion.preconditioning import ScoreModel, mm_csn_output
from ummcsgm.types import Batch

pytestmark = pytest.mark.usefixtures("quick_compile")

TIMES = np.linspace(0.05, 0.98, 15).astype(np.float32)
ASKED = PATTERNS[:, None, None]


def voxels(seed, shape=(15, 8, 8, 4)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs_of(scored, t, noise, mean_query=None, missing=None):
    mean_query = np.zeros(len(t), bool) if mean_query is None else mean_query
    missing = scored if missing is None else missing
    return DSMInputs(*map(jnp.asarray, (scored, missing, t, noise, mean_query)))


PLAIN = NoiseProposal(1.0, 0.0, 1.0, 0.003, 0.0, 0.0, 1.0)


@each_sde
def test_the_paper_weighting_is_eq_6_to_the_letter(sde):
    """1/2 mean over A of |(a_t, b) + (S, 0) - NN|^2, S = -noise / std, by mm_csn."""
    images, noise = voxels(0), voxels(1)
    _, condition, mean, variance = all_patterns(3, (8, 8))
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(PATTERNS))
    mean = np.where(ASKED, mean, images)
    denoise = make_gaussian_denoise(sde, mean, variance)
    ours = dsm_loss(
        denoise,
        jnp.asarray(images),
        inputs_of(PATTERNS, TIMES, noise),
        sde,
        weigh_paper(sde, TIMES, 0.4),
    )
    with jax.enable_x64(True):  # the score's cancellation is not what is tested
        t = jnp.asarray(TIMES, jnp.float64)
        std = np.asarray(sde.std(t))[:, None, None, None]
        diffused = sdes.perturb(sde, np.float64(images), t, np.float64(noise))
        x = np.where(ASKED, diffused, images)
        target = x + np.where(ASKED, -noise / std, 0)
        network = mm_csn_output(sde, denoise, condition, jnp.asarray(x), t)
        error = np.square(target - np.asarray(network))
    assert np.max(error[np.broadcast_to(~ASKED, error.shape)]) < 1e-12
    literal = 0.5 * error.sum(axis=(1, 2, 3)) / (PATTERNS.sum(axis=1) * 64)
    np.testing.assert_allclose(ours, literal, rtol=5e-5)


@each_sde
def test_each_weighting_is_its_definition_on_the_score_error(sde):
    """Weights on |score error|^2, which is (mean / std^2)^2 |denoised error|^2."""
    t = np.geomspace(0.02, 1, 50).astype(np.float32)
    mean, std, diffusion, s = (
        *(np.asarray(f(t), np.float64) for f in (sde.mean, sde.std, sde.diffusion)),
        0.4,
    )
    tau = std / mean
    out2 = tau**2 * s**2 / (tau**2 + s**2)
    on_score = {
        weigh_paper: 0.5 * np.ones_like(mean),
        weigh_std2: std**2,
        weigh_likelihood: diffusion**2,
        weigh_edm: std**4 / (mean**2 * out2),
        weigh_min_snr: std**4 / mean**2 * np.minimum(tau**-2, 5),
        make_weigh_conditional(0.1): std**4 / mean**2 * (tau**-2 + 0.1**-2),
    }
    for weigh, expected in on_score.items():
        ours = weigh(sde, jnp.asarray(t), s) * (std**2 / mean) ** 2
        np.testing.assert_allclose(ours, expected, rtol=5e-4, err_msg=weigh.__name__)


@each_sde
def test_the_edm_weighting_is_one_on_the_networks_own_output(sde):
    """L = mean over A of (F - F*)^2, F* = (a - c_skip y) / c_out."""
    images, noise, answer, s = voxels(0), voxels(1), voxels(2), 0.4

    class Network:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            return answer

    objective = Objective(PATTERNS, None, PLAIN, weigh_edm, False)
    model = ScoreModel(Network(), sde, s)
    inputs = inputs_of(PATTERNS, TIMES, noise)
    ours = training_losses(model, None, objective, jnp.asarray(images), inputs).loss
    tau = np.asarray(sde.noise_level(TIMES), np.float64)[:, None, None, None]
    y = images + tau * noise
    total = tau**2 + s**2
    target = (images - s**2 / total * y) / (tau * s / np.sqrt(total))
    error = np.where(ASKED, np.square(answer - target), 0)
    truth = error.sum(axis=(1, 2, 3)) / (PATTERNS.sum(axis=1) * 64)
    np.testing.assert_allclose(ours, truth, rtol=2e-3 if sde is SDES["cosine"] else 2e-4)


def test_the_papers_objective_sums_over_the_missing_modalities():
    """Eq. 6 is a sum: three missing modalities alike weigh three times one."""

    class Network:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            return jnp.ones_like(inputs)

    images = jnp.zeros((len(PATTERNS), 8, 8, 4))
    t, mean_query = np.full(len(PATTERNS), 0.5, np.float32), np.zeros(len(PATTERNS), bool)
    inputs = DSMInputs(PATTERNS, PATTERNS, t, np.zeros(images.shape), mean_query)
    objective = Objective(PATTERNS, None, PLAIN, weigh_paper, True)
    model = ScoreModel(Network(), SDES["vp"], 0.4)
    ours = training_losses(model, None, objective, images, inputs).loss
    np.testing.assert_allclose(ours, ours[0] * PATTERNS.sum(axis=1), rtol=1e-5)


def test_a_token_is_weighed_by_edm_times_its_weight_under_every_weighting():
    class Network:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            return jnp.ones_like(inputs)

    images, t = jnp.zeros((len(PATTERNS), 8, 8, 4)), np.ones(len(PATTERNS), np.float32)
    rows = (PATTERNS, PATTERNS, t, np.zeros(images.shape), np.ones(len(PATTERNS), bool))
    model = ScoreModel(Network(), SDES["vp"], 0.4)

    def values(weighting, weight):
        proposal = PLAIN._replace(mean_weight=weight)
        objective = Objective(PATTERNS, None, proposal, weighting, False)
        return training_losses(model, None, objective, images, DSMInputs(*rows))[0]

    np.testing.assert_allclose(values(weigh_edm, 1.0), 1, rtol=1e-4)  # F* = 0, F = 1
    np.testing.assert_allclose(values(weigh_paper, 5.0), 5, rtol=1e-4)


def test_a_perfect_denoiser_has_no_loss_and_an_error_counts_its_square():
    images, noise = jnp.asarray(voxels(0)), voxels(1)
    inputs, weight = inputs_of(PATTERNS, TIMES, noise), jnp.arange(1.0, 16.0)
    perfect = dsm_loss(lambda x, t: images, images, inputs, SDES["vp"], weight)
    np.testing.assert_array_equal(perfect, 0)
    off = dsm_loss(lambda x, t: images + 0.5, images, inputs, SDES["vp"], weight)
    np.testing.assert_allclose(off, 0.25 * weight, rtol=1e-5)


def test_only_the_scored_modalities_of_a_row_count():
    images, scored = jnp.zeros((15, 8, 8, 4)), PATTERNS & (np.arange(15) != 3)[:, None]
    inputs = inputs_of(scored, TIMES, voxels(1), missing=np.ones((15, 4), bool))
    errors = jnp.asarray([1.0, 10.0, 100.0, 1000.0])
    ours = dsm_loss(lambda x, t: errors + x * 0, images, inputs, SDES["vp"], 1.0)
    squared = np.square(np.asarray(errors))
    truth = [squared[row].mean() if row.any() else 0.0 for row in scored]
    np.testing.assert_allclose(ours, truth, rtol=1e-5)


def test_the_gradient_is_exactly_zero_where_nothing_is_scored():
    images, scored = jnp.asarray(voxels(0)), PATTERNS & (np.arange(15) % 2 == 0)[:, None]
    inputs = inputs_of(scored, TIMES, voxels(1), missing=PATTERNS)

    def total(denoised):
        weight = weigh_paper(SDES["vp"], TIMES, 0.4)
        return dsm_loss(lambda x, t: denoised, images, inputs, SDES["vp"], weight).sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(voxels(5))))
    counted = np.broadcast_to(scored[:, None, None], gradient.shape)
    assert not np.any(gradient[~counted])
    assert np.all(gradient[counted] != 0)


def test_a_network_has_no_gradient_from_rows_that_are_not_scored(make_network, random_params):
    network = make_network()
    params, model = random_params(network), ScoreModel(network, SDES["vp"], 0.4)
    images, noise = jnp.asarray(voxels(0, (2, 16, 16, 4))), voxels(1, (2, 16, 16, 4))
    objective = Objective(PATTERNS, None, PLAIN, weigh_edm, False)

    @jax.jit
    def gradient(scored, images):
        inputs = DSMInputs(scored, PATTERNS[:2], TIMES[:2], noise, np.zeros(2, bool))
        return jax.grad(lambda p: training_losses(model, p, objective, images, inputs)[0].sum())(
            params
        )

    nothing = gradient(np.zeros((2, 4), bool), images)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(nothing))
    first = np.array([[True, False, False, False], [False] * 4])
    one, other = gradient(first, images), gradient(first, images.at[1].add(3.0))
    largest = 0.0
    for ours, theirs in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        largest = max(largest, float(jnp.max(jnp.abs(ours))))
    assert largest > 1e-3


@each_sde
def test_the_loss_of_the_conditional_mean_is_the_floor_and_no_other_is_lower(sde):
    """E|a - D|^2 = sum l tau^2 / (l + tau^2) over the eigenvalues of p(a | b)."""
    images, _, mean, variance = all_patterns(4, (64, 64))
    noise = voxels(1, images.shape)
    t = np.asarray(sde.time(jnp.geomspace(0.05, 5.0, 15)))
    inputs = inputs_of(PATTERNS, t, noise)
    images = jnp.asarray(images, jnp.float32)

    def loss_of(change):
        denoise = make_gaussian_denoise(sde, mean, variance)
        answer = dsm_loss(lambda x, t: change(denoise(x, t), x), images, inputs, sde, 1.0)
        return np.asarray(answer)

    level = np.asarray(sde.noise_level(t), np.float64)[:, None] ** 2
    eigenvalues = np.maximum(np.linalg.eigvalsh(variance), 0)
    floor = (eigenvalues * level / (eigenvalues + level)).sum(axis=1) / PATTERNS.sum(axis=1)
    ours = loss_of(lambda denoised, x: denoised)
    error = np.sqrt(2 / (4096 * PATTERNS.sum(axis=1)))
    assert np.all(np.abs(ours / floor - 1) < 4 * error + 1e-3)
    alpha = sde.mean(t)[:, None, None, None]
    for change in (
        lambda denoised, x: denoised + 0.05,
        lambda denoised, x: 0.95 * denoised,
        lambda denoised, x: denoised + 0.05 * (x / alpha - denoised),
        lambda denoised, x: denoised - 0.05 * (x / alpha - denoised),
    ):
        assert np.all(loss_of(change).mean() > ours.mean())


def spied(images, inputs, sde):
    """The (x, t) that `dsm_loss` shows its denoiser."""
    shown = []

    def spy(x, t):
        shown.append((np.asarray(x), np.asarray(t)))
        return x

    dsm_loss(spy, jnp.asarray(images), inputs, sde, 1.0)
    return shown


def test_token_rows_show_nothing_and_the_others_the_diffused_images():
    images, noise, mean_query = voxels(0), voxels(1), np.arange(15) % 3 == 0
    t = np.where(mean_query, 1, TIMES).astype(np.float32)
    inputs = inputs_of(PATTERNS, t, noise, mean_query)
    ((x, shown_t),) = spied(images, inputs, SDES["vp"])
    np.testing.assert_array_equal(x[mean_query], 0)
    diffused = sdes.perturb(SDES["vp"], jnp.asarray(images), t, jnp.asarray(noise))
    asked = np.asarray(PATTERNS, bool)[:, None, None]
    shown_now = np.where(asked, diffused, 0)[~mean_query]
    np.testing.assert_allclose(x[~mean_query], shown_now, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(shown_t, t)
    ((changed, _),) = spied(images + 7, inputs, SDES["vp"])
    np.testing.assert_array_equal(changed[mean_query], x[mean_query])


def test_the_clean_missing_images_reach_the_network_through_x_alone():
    """Where the missing are hidden from x, an answer no longer depends on them."""
    sde, asked = SDES["vp"], []

    class Network:
        def conditioning_cache(self, *inputs):
            return None

        def apply(self, params, inputs, missing, level, once):
            asked.append((np.asarray(inputs), np.asarray(missing)))
            return 0 * inputs

    objective, model = (
        Objective(PATTERNS, None, PLAIN, weigh_edm, False),
        ScoreModel(Network(), sde, 0.4),
    )
    inputs = inputs_of(PATTERNS, TIMES, voxels(1))
    images = voxels(0)
    other = np.where(ASKED, 5.0, images).astype(np.float32)
    for truth in (images, other):
        training_losses(model, None, objective, jnp.asarray(truth), inputs)
    (one, missing), (two, _) = asked
    np.testing.assert_array_equal(missing, PATTERNS)
    seen = np.broadcast_to(~ASKED, one.shape)
    np.testing.assert_array_equal(one[seen], two[seen])
    tau = np.asarray(sde.noise_level(TIMES))[:, None, None, None]
    expected = np.where(ASKED, (other - images) / np.sqrt(tau**2 + 0.4**2), 0)
    np.testing.assert_allclose(two - one, expected, rtol=1e-3, atol=1e-4)


LOWEST = {"vp": 0.003, "subvp": 0.003, "ve": 0.01, "cosine": 0.003}


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_times_are_those_of_the_proposal(name, share):
    """Kolmogorov-Smirnov distances of either part on a fine even grid of uniforms."""
    sde, proposal = SDES[name], NoiseProposal(share, -1.2, 1.4, LOWEST[name], 0.0, 0.0, 1.0)
    uniforms = (np.arange(20000, dtype=np.float32) + 0.5) / 20000
    t = np.asarray(times_from_uniform(sde, proposal, jnp.asarray(uniforms)))
    earliest = float(sde.time(jnp.float32(LOWEST[name])))
    assert t.min() >= earliest >= 0
    assert t.max() <= 1
    first = round(share * 20000)
    if first:
        uniform = stats.uniform(earliest, 1 - earliest)
        assert stats.kstest(t[:first], uniform.cdf).statistic < 2e-3
    if first < 20000:
        level = np.log(np.asarray(sde.noise_level(t[first:]), np.float64))
        inside = (level > np.log(LOWEST[name]) + 1e-3) & (level < 3.9)
        ranks = (np.arange(len(level)) + 0.5) / len(level)
        truth = stats.norm(-1.2, 1.4).cdf(level)
        np.testing.assert_allclose(truth[inside], ranks[inside], atol=1e-3)
        below = np.mean(level <= np.log(LOWEST[name]) + 1e-3)
        known = stats.norm(-1.2, 1.4).cdf(np.log(LOWEST[name]) + 1e-3)
        assert below == pytest.approx(known, abs=1e-3)


@each_sde
def test_no_uniform_leads_out_of_the_times(sde):
    corners = np.array([0.0, 1e-30, 1e-7, 0.2, 0.5, np.nextafter(np.float32(1), 0)])
    for share in (0.0, 1e-7, 0.2, 1 - 1e-7, 1.0):
        for width in (0.0, 1.4, 30.0):
            proposal = NoiseProposal(share, -1.2, width, 0.01, 0.0, 0.1, 1.0)
            t = times_from_uniform(sde, proposal, jnp.asarray(corners, jnp.float32))
            assert np.all((t >= sde.time(jnp.float32(0.01))) & (t <= 1))


@each_sde
def test_no_time_is_negative_even_if_the_process_starts_above_the_lowest_level(sde):
    proposal = NoiseProposal(0.5, -6.0, 1.4, 0.003, 0.0, 0.0, 1.0)
    t = times_from_uniform(sde, proposal, jnp.linspace(0, 0.999, 1000))
    assert np.all((t >= 0) & (t <= 1))


ALL = missing_patterns(4, proper=False)
OBJECTIVE = Objective(
    ALL,
    pattern_probabilities(ALL, (0.4, 0.25, 0.2, 0.15)),
    NoiseProposal(0.2, -1.2, 1.4, 0.003, 0.0, 0.125, 1.0),
    weigh_edm,
    False,
)


def batch_of(count, present=None, valid=None):
    present = np.ones((count, 4), bool) if present is None else present
    valid = np.ones(count, bool) if valid is None else valid
    return Batch(*map(jnp.asarray, (voxels(0, (count, 2, 2, 4)), present, valid)))


@jax.jit
def drawn(seed, batch, place):
    key = jax.random.key(seed)
    return draw_dsm_inputs(key, OBJECTIVE, SDES["vp"], batch, place, 48)


def test_an_eighth_of_the_rows_asks_for_the_mean_at_time_1():
    for seed in range(5):
        inputs = drawn(seed, batch_of(48), jnp.arange(48))
        assert int(inputs.mean_query.sum()) == 6
        np.testing.assert_array_equal(inputs.t[inputs.mean_query], 1)
        assert np.all(inputs.t[~inputs.mean_query] < 1)


def test_times_tokens_and_configurations_are_independent():
    """Over 300 batches: no correlation of size, time and mean_query beyond chance."""
    seeds = jnp.arange(300)
    many = jax.jit(jax.vmap(lambda seed: drawn(seed, batch_of(48), jnp.arange(48))))(seeds)
    size, mean_query = many.scored.sum(axis=-1).ravel(), many.mean_query.ravel()
    rank = stats.rankdata(many.t.ravel())
    free = ~np.asarray(mean_query)
    chance = 4.5 / np.sqrt(len(rank))
    assert abs(np.corrcoef(size[free], rank[free])[0, 1]) < chance
    assert abs(np.corrcoef(size, mean_query)[0, 1]) < chance
    assert abs(np.corrcoef(many.scored[..., 0].ravel()[free], rank[free])[0, 1]) < chance
    table = stats.contingency.crosstab(np.asarray(size)[free], rank[free] > 7200).count
    assert stats.chi2_contingency(table).pvalue > 1e-3
    place = np.tile(np.arange(48), 300)
    assert abs(np.corrcoef(place, rank)[0, 1]) < chance


def test_questions_do_not_depend_on_how_the_batch_is_divided():
    whole = drawn(3, batch_of(48), jnp.arange(48))
    for start in (0, 24):
        part = Batch(*(leaf[start : start + 24] for leaf in batch_of(48)[:3]))
        half = drawn(3, part, jnp.arange(start, start + 24))
        for ours, theirs in zip(half, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs[start : start + 24])


def test_noise_differs_between_examples_and_steps():
    one, two = (drawn(seed, batch_of(48), jnp.arange(48)) for seed in (1, 2))
    rows = np.concatenate([one.noise, two.noise]).reshape(96, -1)
    assert len(np.unique(rows, axis=0)) == 96
    assert abs(rows.mean()) < 4.5 / np.sqrt(rows.size)
    assert rows.std() == pytest.approx(1, abs=4.5 / np.sqrt(2 * rows.size))


def test_what_was_never_scanned_is_missing_but_not_scored_and_padding_asks_nothing():
    rng = np.random.default_rng(0)
    present, valid = rng.random((48, 4)) < 0.6, np.arange(48) < 40
    inputs = drawn(5, batch_of(48, present, valid), jnp.arange(48))
    scored, missing = np.asarray(inputs.scored), np.asarray(inputs.missing)
    assert not np.any(scored & ~present)
    assert np.all(missing[~present])
    assert not np.any(scored[40:])
    np.testing.assert_array_equal(scored[:40], (missing & present)[:40])
    np.testing.assert_array_equal(scored[:40].any(axis=1), present[:40].any(axis=1))


def test_eq_7_draws_every_question_alike_and_its_times_evenly():
    paper = dataclasses.replace(
        OBJECTIVE,
        probabilities=pattern_probabilities(ALL, ()),
        proposal=NoiseProposal(1.0, 0.0, 1.0, 0.003, 0.0, 0.0, 1.0),
        weighting=weigh_paper,
    )
    many = jax.jit(
        jax.vmap(
            lambda seed: losses_module.draw_dsm_inputs(
                jax.random.key(seed), paper, SDES["vp"], batch_of(45), jnp.arange(45), 45
            )
        )
    )(jnp.arange(100))
    rows = np.asarray(many.scored).reshape(-1, 4) @ 2 ** np.arange(4)
    np.testing.assert_array_equal(np.bincount(rows, minlength=16)[1:], 300)
    assert not np.any(many.mean_query)
    earliest = float(SDES["vp"].time(jnp.float32(0.003)))
    law = stats.uniform(earliest, 1 - earliest)
    assert stats.kstest(np.asarray(many.t).ravel(), law.cdf).statistic < 0.02
