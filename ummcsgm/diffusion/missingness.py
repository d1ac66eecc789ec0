"""A|B: missing patterns, and the condition of a score: which modalities are seen.

A missing pattern is [M] bool over the complete space C, True on the missing set A.
Training samples patterns over a batch; sampling, evaluation and the baselines use given
ones; all work on a `Condition`.
"""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ummcsgm.types import Array, Images, Missing, Present, Stacks


@flax.struct.dataclass
class Condition:
    """The seen images (exactly 0 where missing) and which modalities are missing.

    `neighbours` are the seen images of the n slices on either side, [B, H, W, 2 n M].
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
    """The condition without the `missing` modalities, in the neighbouring slices as well.

    Their values are overwritten with 0, so no result can depend on them.
    """
    modalities = missing.shape[-1]
    unknown = jnp.tile(missing, images.shape[-1] // modalities)
    masked = jnp.where(per_modality(unknown), 0, images)
    return Condition(masked[..., :modalities], missing, masked[..., modalities:])


def missing_patterns(modalities: int, *, proper: bool) -> np.ndarray:
    """All missing patterns of M modalities, [2^M - 1, M] bool, by size, then by position.

    With `proper`, A = C is left out ([2^M - 2, M]): something is always seen.
    """
    largest = modalities - 1 if proper else modalities
    patterns = [
        [m in chosen for m in range(modalities)]
        for size in range(1, largest + 1)
        for chosen in itertools.combinations(range(modalities), size)
    ]
    return np.array(patterns, bool)


def pattern_probabilities(patterns: np.ndarray, sizes: tuple[float, ...]) -> np.ndarray:
    """[N] probabilities of the patterns [N, M].

    `sizes[k]` is the probability that k + 1 modalities are missing, spread evenly over
    the patterns of that size. An empty tuple is the paper's choice (eq. 7): all patterns
    have the same probability.
    """
    if not sizes:
        return np.full(len(patterns), 1 / len(patterns))
    size = patterns.sum(axis=1)
    count = np.bincount(size)[size]
    probabilities = np.asarray(sizes, float)[size - 1] / count
    return probabilities / probabilities.sum()


def sample_missing_patterns(
    uniforms: Array, patterns: np.ndarray, probabilities: np.ndarray, present: Present
) -> Missing:
    """[B, M] missing patterns for a batch, of present modalities only.

    With `stratified_uniforms` [B] in [0, 1), a batch of complete subjects has each
    pattern floor(B p) or ceil(B p) times. The probabilities of an example are restricted
    to the patterns within what its subject has (and, where A = C is not among the
    patterns, to those that leave something seen). Where none is possible, all False.
    """
    size = patterns.sum(axis=1)
    nothing_seen_allowed = size.max() == patterns.shape[1]
    includes_absent = jnp.any(patterns[None] & ~present[:, None], axis=-1)
    leaves_nothing = size[None] >= present.sum(axis=1, keepdims=True)
    possible = ~includes_absent & (nothing_seen_allowed | ~leaves_nothing)
    cumulative = jnp.cumsum(jnp.where(possible, probabilities[None], 0.0), axis=1)
    total = cumulative[:, -1:]
    # Slightly below 1: rounding must not reach beyond the last possible pattern.
    reached = cumulative > uniforms[:, None] * total * (1 - 1e-6)
    index = jnp.argmax(reached & possible & (probabilities > 0), axis=1)
    return jnp.asarray(patterns)[index] & (total > 0)


def stratified_uniforms(key: jax.Array, count: int) -> Array:
    """`count` uniforms in [0, 1), one in each of as many equal strata, shuffled.

    Each is uniform; together they are evenly spread (Kingma et al. 2021, "Variational
    diffusion models", sec. 6.1). Those of different keys are independent.
    """
    key_offset, key_order = jax.random.split(key)
    offset = jax.random.uniform(key_offset)
    even = jnp.mod(offset + jnp.arange(count) / count, 1.0)
    return jax.random.permutation(key_order, even)
