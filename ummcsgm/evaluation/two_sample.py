"""Can a network tell draws from truths? A classifier two-sample test (Lopez-Paz and Oquab 2017).

A small network is trained on patches of half of the subjects and scores those of the other half,
then the other way round. Its AUC is the probability that it finds a draw's patch more drawn than a
truth's: 0.5 if draws have the law of the truth. It sees a patch as a reader would who knows what is
seen: the modality that is missing, its difference from the network's own mean, and the others. The
mean is a function of the seen scans alone, so it says nothing of which is which; neither do the
others, as each patch is there twice, once drawn and once real.

The control is the same test with real scans alone: half of the subjects of each half are labelled
as drawn. It is above 0.5 if a subject is in both the training and the scored half. It is asked
one way round only: the other way its answer would not be a second one, as both networks are right
if the labelled subjects of both halves happen to be alike.

Blind to what is larger than a patch, to a dependence between slices or between draws (draws that
are all alike pass if each is a likely one), and to what is too weak for so few patches. An AUC of
0.5 is no proof.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ummcsgm.config.build import EvaluationOptions
from ummcsgm.diffusion.samplers import address_keys
from ummcsgm.evaluation.calibration import bootstrap_interval
from ummcsgm.evaluation.subject import EvaluatedSubject, choose_evenly
from ummcsgm.models.patch_classifier import PatchClassifier
from ummcsgm.types import Array, Estimate, Params

PATCH = 16  # pixels a side
LEAST_BRAIN = 0.5  # of the pixels of a patch
TRAINING_STRIDE, SCORING_STRIDE = 4, 8  # pixels from patch to patch
FOLDS = 2
LEAST_SUBJECTS = 2 * FOLDS  # the control needs two of each fold
MOST_SLICES = 4  # of a subject: neighbours say the same again
PAIRS = 32  # patches of either kind in a step
LEARNING_RATE, WEIGHT_DECAY = 6e-3, 1e-2
SCORED_AT_ONCE = 512
SHOWN = 8  # patches of either kind in a picture
CONTROL = "control"
NUMBERS = ("auc", "low", "high")


class Pairs(NamedTuple):
    """Slices of one modality, real and drawn, and what is known to both: [S, H, W].

    `seen` [S, H, W, C] are the other modalities, `mean` is the network's own; `subject` [S] says
    whose slices they are. All are 0 outside the brain.
    """

    truth: Array
    draw: Array
    mean: Array
    seen: Array
    brain: Array
    subject: Array

    def map(self, function: Callable[[Array], Array]) -> "Pairs":
        """`function` applied to each array."""
        return Pairs(*map(function, self))


class Scores(NamedTuple):
    """What the classifier says of patches it was not trained on, [N] each."""

    patches: Array  # [N, 3]: a slice of the pairs, first row, first column
    drawn: Array  # bool: the label
    logit: Array  # above 0: the classifier thinks it is drawn
    subject: Array
    fold: Array


def make_pairs(
    truth: Array, draw: Array, mean: Array, seen: Array, brain: Array, subject: Array
) -> Pairs:
    """The `Pairs`, everything set to 0 outside the brain."""
    brain = np.asarray(brain, bool)
    images = (np.where(brain, image, 0).astype(np.float32) for image in (truth, draw, mean))
    seen = np.where(brain[..., None], seen, 0).astype(np.float32)
    return Pairs(*images, seen, brain, np.asarray(subject))


def compare_draws(pairs: Pairs, steps: int, address: Sequence[int]) -> tuple[dict, Scores]:
    """(`auc` and its interval `low` to `high` over subjects, with `control_` of each; the scores).

    `address` decides folds, labels of the control and the training: small integers.
    """
    scores = classify(pairs, steps, [*address, 0])
    control = classify(pairs, steps, [*address, 1], control=True)
    prefixed = dict(zip((f"{CONTROL}_{name}" for name in NUMBERS), auc(control), strict=True))
    return dict(zip(NUMBERS, auc(scores), strict=True)) | prefixed, scores


def classify(pairs: Pairs, steps: int, address: Sequence[int], *, control: bool = False) -> Scores:
    """The scores of all patches, each by the network that was not trained on its subject.

    As many patches drawn as real. With `control` all are real, half of the subjects of each
    fold are labelled as drawn, and one fold alone is scored.
    """
    subjects = np.unique(pairs.subject)
    generator = np.random.default_rng([zlib.crc32(b"folds"), *address])
    order = generator.permutation(len(subjects))
    fold = np.empty(len(subjects), int)
    fold[order] = np.arange(len(subjects)) % FOLDS
    labelled = np.empty(len(subjects), bool)
    labelled[order] = np.arange(len(subjects)) // FOLDS % 2
    row = np.searchsorted(subjects, pairs.subject)
    pools = {}
    for stride in (TRAINING_STRIDE, SCORING_STRIDE):
        real = patch_positions(pairs.brain, stride)
        drawn = real + np.array([len(pairs.truth), 0, 0])  # the draws follow the truths
        if control:
            label = labelled[row[real[:, 0]]]
            real, drawn = real[~label], real[label]
        pools[stride] = real, drawn
    most, found = len(patch_positions(pairs.brain, TRAINING_STRIDE)), []
    for index in range(1 if control else FOLDS):
        trained_on = fold[row] != index
        images = jnp.asarray(standardise(pairs, trained_on))
        within = np.tile(trained_on, 2)
        training = [pool[within[pool[:, 0]]] for pool in pools[TRAINING_STRIDE]]
        scored = [pool[~within[pool[:, 0]]] for pool in pools[SCORING_STRIDE]]
        key = address_keys(0, np.array([[*address, index]]))[0]
        params = train(key, images, training, most, steps)
        patches = np.concatenate(scored)
        drawn = np.repeat([False, True], [len(pool) for pool in scored])
        logit = score(params, images, patches)
        patches[:, 0] %= len(row)
        whose = row[patches[:, 0]]
        found.append(Scores(patches, drawn, logit, subjects[whose], fold[whose]))
    return Scores(*map(np.concatenate, zip(*found, strict=True)))


def patch_positions(brain: Array, stride: int) -> Array:
    """[N, 3] slice, first row and first column of the patches, `stride` pixels apart, of which
    LEAST_BRAIN is brain [S, H, W]."""
    if min(brain.shape[1:]) < PATCH:
        return np.zeros((0, 3), int)
    views = np.lib.stride_tricks.sliding_window_view(brain, (PATCH, PATCH), axis=(1, 2))
    share = views[:, ::stride, ::stride].mean(axis=(-2, -1))
    return np.argwhere(share >= LEAST_BRAIN) * [1, stride, stride]


def standardise(pairs: Pairs, trained_on: Array) -> Array:
    """[2 S, H, W, 2 + C]: the truths, then the draws; image, its difference from the mean, and
    the seen ones.

    Draws and truths are scaled alike, by the mean and the standard deviation over the brain of
    the truths that are `trained_on` [S], so that no difference between them is lost or made.
    """
    brain = np.tile(pairs.brain, (2, 1, 1))
    images = np.concatenate([pairs.truth, pairs.draw])
    mean, seen = np.concatenate([pairs.mean] * 2), np.concatenate([pairs.seen] * 2)
    stacked = np.concatenate([images[..., None], (images - mean)[..., None], seen], axis=-1)
    known = stacked[: len(pairs.truth)][trained_on][pairs.brain[trained_on]]
    deviation = np.std(known, axis=0)
    scaled = (stacked - np.mean(known, axis=0)) / np.where(deviation > 0, deviation, 1)
    return np.where(brain[..., None], scaled, 0).astype(np.float32)


def train(key: jax.Array, images: Array, pools: Sequence[Array], most: int, steps: int) -> Params:
    """The classifier after `steps` steps of PAIRS patches of each of the `pools` (real, drawn).

    A pool [N, 3] has at most `most` patches of `images`. All is computed on one device, so the
    numbers do not depend on how many there are.
    """
    padded = np.zeros((2, most, 3), np.int32)  # to one shape: compiled once
    for rows, pool in zip(padded, pools, strict=True):
        rows[: len(pool)] = pool
    counts, padded = jnp.array([len(pool) for pool in pools]), jnp.asarray(padded)
    rate = optax.warmup_cosine_decay_schedule(0, LEARNING_RATE, max(steps // 10, 1), steps)
    state = _start(jax.random.fold_in(key, steps), images)
    # Not a scan: XLA's convolutions on CPUs take thirty times as long within a loop.
    for number in range(steps):
        random = jax.random.fold_in(key, number)
        state = _step(state, random, np.float32(rate(number + 1)), images, padded, counts)
    return state[0]


def score(params: Params, images: Array, patches: Array) -> Array:
    """The classifier's logits [N] of `patches` [N, 3]."""
    scores = []
    for first in range(0, len(patches), SCORED_AT_ONCE):
        part = patches[first : first + SCORED_AT_ONCE]
        padded = np.resize(part, (SCORED_AT_ONCE, 3)).astype(np.int32)
        scores.append(np.asarray(_logits(params, images, padded))[: len(part)])
    return np.concatenate(scores)


def _cut(images: Array, patches: Array) -> Array:
    size = (1, PATCH, PATCH, images.shape[-1])
    return jax.vmap(lambda at: jax.lax.dynamic_slice(images, (*at, 0), size)[0])(patches)


@jax.jit
def _start(key: jax.Array, images: Array) -> tuple:
    params = PatchClassifier().init(key, images[:1, :PATCH, :PATCH])
    return params, optax.adamw(0.0).init(params)


@functools.partial(jax.jit, donate_argnums=0)
def _step(
    state: tuple, key: jax.Array, rate: Array, images: Array, pools: Array, counts: Array
) -> tuple:
    params, moments = state
    chosen, turned = jax.random.split(key)
    # The same numbers for both kinds: of as many patches, a draw and its truth come together.
    share = jax.random.uniform(chosen, (PAIRS,))
    index = jnp.minimum((share * counts[:, None]).astype(int), counts[:, None] - 1)
    patches = jnp.take_along_axis(pools, index[..., None], axis=1)
    inputs = _cut(images, patches.reshape(-1, 3))
    up, left = jnp.tile(jax.random.bernoulli(turned, 0.5, (2, PAIRS)), 2)[..., None, None, None]
    inputs = jnp.where(up, inputs[:, ::-1], inputs)
    inputs = jnp.where(left, inputs[:, :, ::-1], inputs)
    labels = jnp.repeat(jnp.arange(2.0), PAIRS)

    def loss(params: Params) -> Array:
        logits = PatchClassifier().apply(params, inputs)
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

    optimizer = optax.adamw(rate, weight_decay=WEIGHT_DECAY)
    updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
    return optax.apply_updates(params, updates), moments


@jax.jit
def _logits(params: Params, images: Array, patches: Array) -> Array:
    return PatchClassifier().apply(params, _cut(images, patches))


def auc(scores: Scores) -> tuple[float, float, float]:
    """(AUC, low, high): how often a drawn patch has the higher logit, of pairs of one fold, a
    tie counting half (Mann-Whitney's U over its largest value), and its interval over subjects.

    The networks are not trained again for the interval: it is that of these two.
    """
    subjects = np.unique(scores.subject)
    wins, pairs = np.zeros((2, len(subjects), len(subjects)))
    for fold in np.unique(scores.fold):
        drawn, real = (
            [scores.logit[(scores.fold == fold) & label & (scores.subject == s)] for s in subjects]
            for label in (scores.drawn, ~scores.drawn)
        )
        for column, logits in enumerate(map(np.sort, real)):
            for row, of_draws in enumerate(drawn):
                below, up_to = (
                    np.searchsorted(logits, of_draws, side) for side in ("left", "right")
                )
                wins[row, column] += np.sum(below + up_to) / 2
                pairs[row, column] += len(of_draws) * len(logits)

    def statistic(index: Array) -> Array:
        weights = np.bincount(index, minlength=len(subjects))
        total = weights @ pairs @ weights
        return weights @ wins @ weights / total if total else 0.5  # of the control: no pair

    every = np.arange(len(subjects))
    return tuple(float(v) for v in (statistic(every), *bootstrap_interval(statistic, every)))


def surest(pairs: Pairs, scores: Scores) -> dict[str, Array]:
    """`drawn`, `real`, `drawn_residual` and `real_residual` [n, PATCH, PATCH]: the patches, and
    less the mean, of either kind that the classifier is surest of; one a subject, SHOWN at most."""
    shown = {}
    for name, label, images in (("drawn", True, pairs.draw), ("real", False, pairs.truth)):
        ordered = np.flatnonzero(scores.drawn == label)
        logit = scores.logit[ordered]
        ordered = ordered[np.argsort(-logit if label else logit, kind="stable")]
        _, first = np.unique(scores.subject[ordered], return_index=True)
        patches = scores.patches[ordered[np.sort(first)[:SHOWN]]]
        for key, values in ((name, images), (f"{name}_residual", images - pairs.mean)):
            cut = [values[s, y : y + PATCH, x : x + PATCH] for s, y, x in patches]
            shown[key] = np.stack(cut).astype(np.float32)
    return shown


# Of the subjects of an evaluation.


def keep_slices(
    evaluated: EvaluatedSubject, z: Array, estimate: Estimate, draws: Array
) -> dict[str, Array]:
    """What the test needs of a subject, float16: `truth`, `draw` and `mean` [S, H, W, M] of at
    most MOST_SLICES of the slices `z`, `brain` [S, H, W] and `drawn` and `grey` [M].

    Draws and estimate are [Q, S, H, W, M]; kept of each modality is that with it alone scored. Like
    what `complete` writes they are not below 0.
    """
    chosen = choose_evenly(np.arange(len(z)), MOST_SLICES)
    truth = evaluated.truth(z)[chosen]
    draw, mean = np.zeros_like(truth), np.zeros_like(truth)
    drawn = np.zeros(truth.shape[-1], bool)
    for pattern in np.flatnonzero(evaluated.scored.sum(axis=1) == 1):
        channel = int(np.argmax(evaluated.scored[pattern]))
        drawn[channel] = True
        draw[..., channel] = draws[pattern, chosen, ..., channel]
        mean[..., channel] = estimate.mean[pattern, chosen, ..., channel]
    images = {"truth": truth, "draw": draw, "mean": mean}
    kept = {name: np.maximum(image, 0).astype(np.float16) for name, image in images.items()}
    return kept | {"brain": evaluated.brain(z)[chosen], "drawn": drawn, "grey": evaluated.grey}


def compare_modalities(
    subjects: Sequence[dict[str, Array]], modalities: Sequence[str], options: EvaluationOptions
) -> tuple[list[dict], dict[str, dict[str, Array]]]:
    """(a row for each modality, by modality the patches of `surest` in grey levels).

    `subjects` has `keep_slices` of each. A row has modality, subjects, patches of either
    kind, the numbers of `compare_draws`, and `skipped`: None, or why there are no numbers.
    There are no rows without subjects.
    """
    rows, pictures = [], {}
    if not subjects:
        return rows, pictures
    for channel, modality in enumerate(modalities):
        chosen = [s for s in subjects if s["drawn"][channel] and _has_patches(s["brain"])]
        row = {"modality": modality, "subjects": len(chosen), "patches": 0}
        if len(chosen) < LEAST_SUBJECTS:
            reason = (
                f"subjects with draws of {modality} and a patch of {PATCH} x {PATCH} pixels that "
                f"is half brain: {len(chosen)}; wanted at least {LEAST_SUBJECTS}."
            )
            numbers = (f"{end}{name}" for end in ("", f"{CONTROL}_") for name in NUMBERS)
            rows.append(row | dict.fromkeys(numbers) | {"skipped": reason})
            continue
        pairs = _pairs_of(chosen, channel)
        address = [options.seed, zlib.crc32(modality.encode())]
        numbers, scores = compare_draws(pairs, options.two_sample_steps, address)
        print(f"draws of {modality} against truths: AUC {numbers['auc']:.3f}", flush=True)
        rows.append(row | {"patches": int(scores.drawn.sum())} | numbers | {"skipped": None})
        grey = np.concatenate([np.repeat(s["grey"][channel], len(s["brain"])) for s in chosen])
        levels = (image * grey[:, None, None] for image in (pairs.truth, pairs.draw, pairs.mean))
        pictures[modality] = surest(Pairs(*levels, *pairs[3:]), scores)
    return rows, pictures


def _has_patches(brain: Array) -> bool:
    """Whether a patch of a subject is scored; then there are some to train on, too."""
    return len(patch_positions(brain, SCORING_STRIDE)) > 0


def _pairs_of(kept: Sequence[dict[str, Array]], channel: int) -> Pairs:
    images, brain, subject = {}, np.concatenate([k["brain"] for k in kept]), []
    for name in ("truth", "draw", "mean"):
        images[name] = np.concatenate([k[name] for k in kept]).astype(np.float32)
    seen = np.delete(images["truth"], channel, axis=-1)
    subject = np.repeat(np.arange(len(kept)), [len(k["brain"]) for k in kept])
    return make_pairs(*(v[..., channel] for v in images.values()), seen, brain, subject)
