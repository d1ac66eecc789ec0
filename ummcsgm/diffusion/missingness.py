"""A|B: a completion is a question. Which modalities are seen, which are missing?

A configuration is a bool row over the complete space C, True on the missing set A.
Training deals configurations over a batch; sampling, evaluation and the baselines ask
one of them; all speak of a `Condition`.
"""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images, Missing, Present, Stacks


@flax.struct.dataclass
class Condition:
    """A question: `seen` images (exactly 0 where missing) and what is `missing`.

    `neighbours` has 2 n slices about each one, [B, H, W, 2 n M]: of what is seen, too.
    """

    seen: Images
    missing: Missing
    neighbours: Array

    def fill(self, drawn: Images) -> Images:
        """(a, b): `drawn` where missing, the seen images elsewhere, bit for bit."""
        return jnp.where(per_modality(self.missing), drawn, self.seen)


def per_modality(missing: Missing) -> Array:
    """[B, M] flags shaped [B, 1, 1, M] so that they broadcast over images."""
    return missing[:, None, None, :]


def mask_inputs(images: Stacks, missing: Missing) -> Condition:
    """The question in which `missing` of these images is unknown, in the neighbouring
    slices as well; what lies there is overwritten with 0, so no answer can depend on
    it."""
    modalities = missing.shape[-1]
    unknown = jnp.tile(missing, images.shape[-1] // modalities)
    known = jnp.where(per_modality(unknown), 0, images)
    return Condition(known[..., :modalities], missing, known[..., modalities:])


def missing_patterns(modalities: int, *, proper: bool) -> np.ndarray:
    """Every missing set A of M modalities, [2^M - 1, M] bool, by size then by position.

    With `proper`, A = C is left out ([2^M - 2, M]): something is always seen.
    """
    largest = modalities - 1 if proper else modalities
    rows = [
        [m in chosen for m in range(modalities)]
        for size in range(1, largest + 1)
        for chosen in itertools.combinations(range(modalities), size)
    ]
    return np.array(rows, bool)


def pattern_probabilities(table: np.ndarray, sizes: tuple[float, ...]) -> np.ndarray:
    """[N] probabilities of the configurations of `table`.

    `sizes[k]` is the probability that k + 1 modalities are missing, spread evenly over
    the configurations of that size. An empty tuple is the paper's choice (eq. 7):
    every configuration has the same probability.
    """
    if not sizes:
        return np.full(len(table), 1 / len(table))
    size = table.sum(axis=1)
    count = np.bincount(size)[size]
    weights = np.asarray(sizes, float)[size - 1] / count
    return weights / weights.sum()


def sample_missing_patterns(
    cards: Array, table: np.ndarray, weights: np.ndarray, present: Present
) -> Missing:
    """[B, M] configurations dealt over a batch, of present modalities only.

    `cards` [B] are uniforms in [0, 1), of a `stratified_uniforms` deck: then a batch of
    complete subjects holds every configuration floor(B p) or ceil(B p) times. Each
    example's `weights` are restricted to the non-empty subsets of what its subject has
    (where the table is proper, to those that leave something seen). A row for which no
    question exists is all False.
    """
    size = table.sum(axis=1)
    whole = size.max() == table.shape[1]
    asks_absent = jnp.any(table[None] & ~present[:, None], axis=-1)
    leaves_nothing = size[None] >= present.sum(axis=1, keepdims=True)
    possible = ~asks_absent & (whole | ~leaves_nothing)
    cumulative = jnp.cumsum(jnp.where(possible, weights[None], 0.0), axis=1)
    total = cumulative[:, -1:]
    # Just under 1, so that rounding cannot deal a card beyond the last possible one.
    reached = cumulative > cards[:, None] * total * (1 - 1e-6)
    index = jnp.argmax(reached & possible & (weights > 0), axis=1)
    return jnp.asarray(table)[index] & (total > 0)


def stratified_uniforms(key: jax.Array, count: int) -> Array:
    """`count` uniforms in [0, 1), one in each of as many equal strata, shuffled.

    Each is uniform by itself; together they are evenly spread (Kingma et al. 2021,
    "Variational diffusion models", sec. 6.1). Two decks from different keys are
    independent.
    """
    key_offset, key_order = jax.random.split(key)
    offset = jax.random.uniform(key_offset)
    even = jnp.mod(offset + jnp.arange(count) / count, 1.0)
    return jax.random.permutation(key_order, even)
