"""A|B: missing patterns, masking, and stratified sampling."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ummcsgm.diffusion.missingness import (
    Condition,
    mask_inputs,
    missing_patterns,
    pattern_probabilities,
    sample_missing_patterns,
    stratified_uniforms,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

ALL = missing_patterns(4, proper=False)
PROPER = missing_patterns(4, proper=True)
SIZES = (0.4, 0.25, 0.2, 0.15)
PATTERNS = np.array(list(itertools.product([False, True], repeat=4)))


def dealt(cards, table, weights, present):
    cards = jnp.asarray(cards, jnp.float32)
    return np.asarray(jax.jit(sample_missing_patterns)(cards, table, weights, present))


def place_in(table, missing):
    """[B] the row of the table that each example was dealt."""
    same = np.all(table[None] == missing[:, None], axis=-1)
    assert np.all(same.sum(axis=1) == 1)
    return same.argmax(axis=1)


@pytest.mark.parametrize("modalities", range(2, 9))
@pytest.mark.parametrize("proper", [False, True])
def test_every_configuration_is_in_the_table_once(modalities, proper):
    table = missing_patterns(modalities, proper=proper)
    assert table.dtype == bool
    codes = table @ 2 ** np.arange(modalities)
    every = set(range(1, 2**modalities - (1 if proper else 0)))
    assert len(table) == 2**modalities - (2 if proper else 1)
    assert set(codes.tolist()) == every
    assert np.all(np.diff(table.sum(axis=1)) >= 0)


def test_configurations_of_a_size_are_ordered_by_position():
    chosen = [tuple(np.flatnonzero(row)) for row in ALL]
    assert chosen[:6] == [(0,), (1,), (2,), (3,), (0, 1), (0, 2)]
    assert chosen[-1] == (0, 1, 2, 3)


def test_fill_returns_drawn_where_missing_and_seen_bit_for_bit():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(15, 3, 5, 4)).astype(np.float32)
    images[:, 0, 0] = [-0.0, np.inf, 1e-42, -np.inf]  # a denormal, a negative zero
    drawn = rng.normal(size=images.shape).astype(np.float32)
    filled = np.asarray(mask_inputs(jnp.asarray(images), jnp.asarray(ALL)).fill(drawn))
    truth = np.where(ALL[:, None, None], drawn, images)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled.view(np.int32), truth.view(np.int32))


def test_ask_forgets_what_is_missing_even_nan():
    images = np.ones((15, 2, 2, 4), np.float32)
    images[np.broadcast_to(ALL[:, None, None], images.shape)] = np.nan
    condition = mask_inputs(jnp.asarray(images), jnp.asarray(ALL))
    expected = np.where(ALL[:, None, None], 0.0, 1.0)
    np.testing.assert_array_equal(condition.seen, np.broadcast_to(expected, (15, 2, 2, 4)))
    gradient = jax.grad(lambda a: mask_inputs(a, jnp.asarray(ALL)).seen.sum())(
        jnp.ones(images.shape)
    )
    np.testing.assert_array_equal(gradient, np.broadcast_to(expected, images.shape))


def test_a_completion_is_a_pytree_of_arrays_that_slices_like_one():
    condition = mask_inputs(jnp.arange(60.0).reshape(15, 1, 1, 4), jnp.asarray(ALL))
    part = jax.tree.map(lambda leaf: leaf[3:5], condition)
    assert isinstance(part, Condition)
    np.testing.assert_array_equal(part.missing, ALL[3:5])


def test_no_sizes_is_the_paper_every_configuration_alike():
    np.testing.assert_allclose(pattern_probabilities(ALL, ()), 1 / 15)
    np.testing.assert_allclose(pattern_probabilities(PROPER, ()), 1 / 14)


def test_sizes_are_shared_evenly_by_the_configurations_of_each_size():
    weights = pattern_probabilities(ALL, SIZES)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    for size, share in enumerate(SIZES, start=1):
        ours = weights[ALL.sum(axis=1) == size]
        np.testing.assert_allclose(ours, share / len(ours))
    np.testing.assert_allclose(pattern_probabilities(ALL, (4, 2.5, 2, 1.5)), weights)
    no_pair = pattern_probabilities(ALL, (0.5, 0, 0.5, 0))
    assert np.all(no_pair[PROPER.shape[0] :] == 0)
    assert no_pair[ALL.sum(axis=1) == 2].sum() == 0


@pytest.mark.parametrize("sizes", [(), SIZES], ids=["paper", "by_size"])
@pytest.mark.parametrize("table", [ALL, PROPER], ids=["all", "proper"])
@pytest.mark.parametrize("batch", [8, 30, 64])
def test_a_complete_batch_holds_each_configuration_floor_or_ceil_times(table, sizes, batch):
    weights = pattern_probabilities(table, sizes[: table.sum(axis=1).max()])
    present = np.ones((batch, 4), bool)
    step = jax.jit(
        lambda key: sample_missing_patterns(
            stratified_uniforms(key, batch), table, weights, present
        )
    )
    for seed in range(20):
        rows = place_in(table, np.asarray(step(jax.random.key(seed))))
        counts = np.bincount(rows, minlength=len(table))
        expected = np.round(batch * weights, 6)
        assert np.all(counts >= np.floor(expected))
        assert np.all(counts <= np.ceil(expected))


@pytest.mark.parametrize("table", [ALL, PROPER], ids=["all", "proper"])
@pytest.mark.parametrize("sizes", [(), SIZES], ids=["paper", "by_size"])
def test_over_many_decks_each_subject_gets_its_restricted_probabilities(table, sizes):
    """A chi-square for each pattern of present modalities, on independent decks."""
    weights = pattern_probabilities(table, sizes[: table.sum(axis=1).max()])
    draws, whole = 4000, table is ALL
    cards = np.random.default_rng(1).random((draws,))
    for pattern in PATTERNS:
        missing = dealt(cards, table, weights, np.tile(pattern, (draws, 1)))
        allowed = ~np.any(table & ~pattern, axis=1)
        if not whole:
            allowed &= table.sum(axis=1) < pattern.sum()
        if not allowed.any():
            assert not missing.any()
            continue
        counts = np.bincount(place_in(table, missing), minlength=len(table))
        assert np.all(counts[~allowed] == 0)
        expected = draws * weights[allowed] / weights[allowed].sum()
        chi2 = np.sum((counts[allowed] - expected) ** 2 / expected)
        degrees = allowed.sum() - 1
        assert chi2 <= degrees + 4.5 * np.sqrt(2 * degrees) + 1e-9


@pytest.mark.parametrize("modalities", [2, 4, 7])
@pytest.mark.parametrize("proper", [False, True])
def test_no_card_ever_asks_for_an_absent_modality(modalities, proper):
    """Thousands of random decks, patterns and weights, the corner cards among them."""
    table = missing_patterns(modalities, proper=proper)
    rng = np.random.default_rng(modalities)
    corners = [0.0, 1e-30, 1e-7, 0.5, 1 - 1e-6, np.nextafter(np.float32(1), 0)]
    for trial in range(20):
        sizes = tuple(rng.random(table.sum(axis=1).max()) * (rng.random() + 1e-3))
        weights = pattern_probabilities(table, sizes if trial % 2 else ())
        boundaries = np.cumsum(weights)
        cards = np.concatenate([corners, boundaries, rng.random(500)])
        cards = np.clip(cards, 0, corners[-1]).astype(np.float32)
        present = rng.random((len(cards), modalities)) < rng.random()
        missing = dealt(cards, table, weights, present)
        assert not np.any(missing & ~present)
        leaves = missing.sum(axis=1) < present.sum(axis=1)
        has_question = present.sum(axis=1) > (1 if proper else 0)
        np.testing.assert_array_equal(missing.any(axis=1), has_question)
        if proper:
            assert np.all(leaves[has_question])


def test_a_subject_without_a_question_of_a_possible_size_gets_none():
    """Only A = C may be asked, and one modality was never scanned."""
    weights = pattern_probabilities(ALL, (0, 0, 0, 1))
    present = np.ones((12, 4), bool)
    present[np.arange(4), np.arange(4)] = False
    cards = [0.0, 0.3, 0.6, np.nextafter(np.float32(1), 0)] * 3
    missing = dealt(cards, ALL, weights, present)
    assert not missing[:4].any()
    assert missing[4:].all()


def test_weightless_configurations_are_never_dealt_at_any_card():
    weights = pattern_probabilities(ALL, (0, 1, 0, 0))
    cards = np.concatenate([[0.0, 1e-12, 1 - 1e-7], np.linspace(0, 1, 997)[:-1]])
    missing = dealt(cards, ALL, weights, np.ones((len(cards), 4), bool))
    assert np.all(missing.sum(axis=1) == 2)


def test_an_examples_question_depends_on_its_own_card_and_modalities_only():
    rng = np.random.default_rng(3)
    cards, present = rng.random(40), rng.random((40, 4)) < 0.7
    weights = pattern_probabilities(ALL, SIZES)
    together = dealt(cards, ALL, weights, present)
    alone = [dealt(cards[i : i + 1], ALL, weights, present[i : i + 1]) for i in range(40)]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("count", [1, 7, 8, 64, 1000])
def test_a_deck_has_one_card_in_each_stratum(count):
    draw = jax.jit(stratified_uniforms, static_argnums=1)
    for seed in range(10):
        deck = np.sort(np.asarray(draw(jax.random.key(seed), count), np.float64))
        assert deck[0] >= 0
        assert deck[-1] < 1
        np.testing.assert_allclose(np.diff(deck), 1 / count, atol=1e-6)


def test_each_card_of_a_deck_is_uniform_and_independent_of_its_place():
    keys = jax.random.split(jax.random.key(0), 20000)
    decks = np.asarray(jax.vmap(lambda key: stratified_uniforms(key, 4))(keys))
    for place in range(4):
        ranks = np.sort(decks[:, place])
        distance = np.max(np.abs(ranks - (np.arange(20000) + 0.5) / 20000))
        assert distance < 1.63 / np.sqrt(20000)  # Kolmogorov-Smirnov at 1 %
    # Sampling without replacement anticorrelates the cards; no more than it must.
    correlation = np.corrcoef(decks.T)[~np.eye(4, dtype=bool)]
    assert np.all(np.abs(correlation + 0.25) < 0.03)


def test_decks_of_different_keys_are_independent():
    keys = jax.random.split(jax.random.key(1), 6000).reshape(2, 3000)
    one, two = np.asarray(jax.vmap(jax.vmap(lambda key: stratified_uniforms(key, 8)))(keys))
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 4 / np.sqrt(one.size)
