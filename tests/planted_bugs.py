"""Plants known mistakes in copies of the source and says which checks turn red.

    python tests/planted_bugs.py

A bug is one place of one file, rewritten. A copy of the package with it is imported in place of
the real one, and a check of one of the files CHECKS is run against it.
"""

import contextlib
import importlib
import pathlib
import shutil
import sys
import tempfile
from typing import NamedTuple

PACKAGE = pathlib.Path(__file__).parents[1] / "ummcsgm"
CHECKS = (
    "closed_form",
    "solver_checks",
    "structure_checks",
    "lesion_checks",
    "mean_checks",
    "two_sample_checks",
    "learning_speed_checks",
)  # they meet the copy, so are read again


class Bug(NamedTuple):
    file: str
    right: str  # occurs once in the file
    wrong: str
    check: str  # a name in REDDENED


@contextlib.contextmanager
def planted(bug):
    """`solver_checks` as it is on the package with a bug, or with None as it is."""
    mine = [name for name in sys.modules if name.split(".")[0] == "ummcsgm" or name in CHECKS]
    kept, path = {name: sys.modules.pop(name) for name in mine}, list(sys.path)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "ummcsgm"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if bug:
            text = (PACKAGE / bug.file).read_text()
            assert text.count(bug.right) == 1, f"not once in {bug.file}: {bug.right}"
            (copy / bug.file).write_text(text.replace(bug.right, bug.wrong))
        sys.path[:0] = [folder, str(pathlib.Path(__file__).parent)]
        importlib.invalidate_caches()
        try:
            checks = importlib.import_module("solver_checks")
            assert copy in pathlib.Path(checks.samplers.__file__).parents
            yield checks
        finally:
            sys.path[:] = path
            for name in [*sys.modules]:
                if name.split(".")[0] == "ummcsgm" or name in CHECKS:
                    del sys.modules[name]
            sys.modules.update(kept)


def vp(checks):
    return sys.modules["closed_form"].SDES["vp"]


def of_lesions(name):
    """The check of this name in `lesion_checks`."""
    return lambda _: getattr(importlib.import_module("lesion_checks"), name)()


def about_mean(name, *arguments, sde=True):
    """The check of this name in `mean_checks`."""
    return lambda c: getattr(importlib.import_module("mean_checks"), name)(
        *([vp(c)] if sde else []), *arguments
    )


def structural(name, *arguments):
    """The check of this name in `structure_checks`."""
    return lambda _: getattr(importlib.import_module("structure_checks"), name)(*arguments)


def two_sample(name, *arguments):
    """The check of this name in `two_sample_checks`."""
    return lambda _: getattr(importlib.import_module("two_sample_checks"), name)(*arguments)


def of_learning_speed(_):
    """The check in `learning_speed_checks`."""
    importlib.import_module("learning_speed_checks").assert_ratios_of_a_known_law()


# What is run; each is green where nothing is planted.
REDDENED = {
    "Algorithm 1": lambda c: c.assert_exact_moments("euler_maruyama", vp(c), 200, 1e-2),
    "2M": lambda c: c.assert_order(c.samplers.dpmpp2m, vp(c), 1.85, 2.15),
    "Heun": lambda c: c.assert_order(c.samplers.heun, vp(c), 1.85, 2.15),
    "UniPC": lambda c: c.assert_order(c.samplers.unipc2, vp(c), 2.4),
    "SDE 2M": lambda c: c.assert_exact_moments("sde_dpmpp2m", vp(c), 60, 1e-2),
    "warm": lambda c: c.assert_exact_moments("warm", vp(c), 16, 1e-2),
    "corrector": lambda c: c.assert_real_moments("predictor_corrector", vp(c), 100, 0.02),
    "Langevin": lambda c: c.assert_langevin(vp(c)),
    "mixture": lambda c: c.assert_mixture("dpmpp2m", vp(c), 20, 0.02),
    "noisy mixture": lambda c: c.assert_mixture("sde_dpmpp2m", vp(c), 50, 0.02),
    "seen": lambda c: c.assert_seen_untouched("dpmpp2m", vp(c)),
    "alone": lambda c: c.assert_independent("predictor_corrector", vp(c)),
    "coherent": lambda c: c.assert_coherent("sde_dpmpp2m", vp(c), 30),
    "coherent start": lambda c: c.assert_coherent("warm", vp(c), 12),
    "slices alone": lambda c: c.assert_slices_alone("sde_dpmpp2m", vp(c)),
    "Haar": about_mean("assert_orthonormal", sde=False),
    "bands": about_mean("assert_bands_are_block_means", sde=False),
    "largest deviation": about_mean("assert_largest_deviation_by_hand", sde=False),
    "Gaussian about its mean": about_mean("assert_exact_posterior"),
    "levels of the config": about_mean("assert_levels_are_those_of_the_config", sde=False),
    "levels of a question": about_mean("assert_levels_share_a_mean"),
    "parts of the losses": about_mean("assert_losses_move_their_own_parts"),
    "warm's start": about_mean(
        "assert_warm_starts_above_the_leading_mode", (192, 160), 16, sde=False
    ),
    "power of a spectrum": structural("assert_power_of_a_spectrum"),
    "power within the brain": structural("assert_power_within_the_brain"),
    "blocks by hand": structural("assert_blocks_by_hand"),
    "variance of blocks": structural("assert_variance_of_block_means", (4,)),
    "the right law": structural("assert_right_law_passes", 2),
    "lesions of the right law": of_lesions("assert_right_law_passes"),
    "lesions by hand": of_lesions("assert_measures_by_hand"),
    "sections of lesions": of_lesions("assert_sections_by_hand"),
    "a lesion's enhancement": of_lesions("assert_enhancement_by_hand"),
    "patterns of lesions": of_lesions("assert_patterns_are_those_of_the_law"),
    "brighter draws": two_sample("assert_shift_is_found_as_far_as_it_can_be", 16, 60, 0.1),
    "the same law": two_sample("assert_same_law_is_not_found"),
    "white noise": two_sample("assert_white_noise_is_found"),
    "unknown subjects": two_sample("assert_control_does_not_know_subjects"),
    "Mann and Whitney": two_sample("assert_auc_is_that_of_mann_and_whitney"),
    "learning speed": of_learning_speed,
}

EULER = "x - drift * x * dt + jnp.square(diffusion) * score * dt"
BUGS = {
    "half g^2": Bug(
        "diffusion/solvers.py",
        "per_example(sde.diffusion(t), x)",
        "0.5**0.5 * per_example(sde.diffusion(t), x)",
        "Algorithm 1",
    ),
    "dropped sqrt(dt)": Bug(
        "diffusion/solvers.py",
        "diffusion * jnp.sqrt(dt) * noise",
        "diffusion * noise",
        "Algorithm 1",
    ),
    "dt for sqrt(dt)": Bug(
        "diffusion/solvers.py",
        "diffusion * jnp.sqrt(dt) * noise",
        "diffusion * dt * noise",
        "Algorithm 1",
    ),
    "score sign": Bug(
        "diffusion/solvers.py", EULER, EULER.replace("+ jnp", "- jnp"), "Algorithm 1"
    ),
    "half the score, that of the flow": Bug(
        "diffusion/solvers.py", EULER, EULER.replace("score", "0.5 * score"), "Algorithm 1"
    ),
    "drift sign": Bug(
        "diffusion/solvers.py", EULER, EULER.replace("x - drift", "x + drift"), "Algorithm 1"
    ),
    "no drift": Bug(
        "diffusion/solvers.py", EULER, EULER.replace("drift * x", "0 * x"), "Algorithm 1"
    ),
    "no noise": Bug(
        "diffusion/solvers.py", "mean + diffusion *", "mean + 0 * diffusion *", "Algorithm 1"
    ),
    "a time off by one step": Bug(
        "diffusion/samplers.py", "padded[2:-1], padded[3:])", "padded[1:-2], padded[3:])", "2M"
    ),
    "noise on b": Bug(
        "diffusion/missingness.py", "drawn, self.seen)", "drawn, self.seen + 0.01 * drawn)", "seen"
    ),
    "wrong channel drawn": Bug(
        "diffusion/missingness.py",
        "drawn, self.seen)",
        "jnp.roll(drawn, 1, axis=-1), self.seen)",
        "Algorithm 1",
    ),
    "wrong channel seen": Bug(
        "diffusion/missingness.py",
        "masked = jnp.where(per_modality(unknown), 0, images)",
        "masked = jnp.roll(images, 1, axis=-1)",
        "seen",
    ),
    "spread x 0.9": Bug(
        "diffusion/sde.py",
        "jax.random.normal(key, shape, dtype))",
        "0.9 * jax.random.normal(key, shape, dtype))",
        "mixture",
    ),
    "one noise for all steps": Bug(
        "diffusion/samplers.py", "noise(like, index", "noise(like, 0 * index", "noisy mixture"
    ),
    "2M extrapolates twice as far": Bug(
        "diffusion/solvers.py", "/ (2 * jnp.where(known, behind", "/ (jnp.where(known, behind", "2M"
    ),
    "2M extrapolates backwards": Bug(
        "diffusion/solvers.py", "denoised + jnp.where(known", "denoised - jnp.where(known", "2M"
    ),
    "Heun without the half": Bug(
        "diffusion/solvers.py", "y + 0.5 * (level_next", "y + (level_next", "Heun"
    ),
    "UniPC's parabola": Bug(
        "diffusion/solvers.py", "jnp.square(h) - 2 * first", "jnp.square(h) - first", "UniPC"
    ),
    "ancestral steps keep all of the old noise": Bug(
        "diffusion/solvers.py", "ratio * jnp.sqrt(1 - jnp.square(fresh)) *", "ratio *", "SDE 2M"
    ),
    "Langevin's sqrt(2)": Bug(
        "diffusion/solvers.py", "jnp.sqrt(2 * size)", "jnp.sqrt(size)", "corrector"
    ),
    "norms of the whole batch": Bug(
        "diffusion/solvers.py", "axis=(1, 2, 3), keepdims", "axis=(0, 1, 2, 3), keepdims", "alone"
    ),
    "norms of the seen": Bug(
        "diffusion/solvers.py",
        "jnp.where(mask, jnp.square(images), 0)",
        "jnp.square(images)",
        "Langevin",
    ),
    "a warm start at tau^2 for tau": Bug(
        "diffusion/samplers.py", "jnp.square(level) + variance", "level + variance", "warm"
    ),
    "a warm start off the mean": Bug(
        "diffusion/samplers.py", "y = mean + jnp.sqrt", "y = jnp.sqrt", "warm"
    ),
    "coherent noise whose variance is not 1": Bug(
        "diffusion/correlated_noise.py",
        "np.sqrt((1 - r**2) / (1 + r**2))",
        "np.sqrt(1 - r**2)",
        "coherent",
    ),
    "neighbours that go together too little": Bug(
        "diffusion/correlated_noise.py",
        "weight, std = r / (1 + r**2)",
        "weight, std = r**2 / (1 + r**2)",
        "coherent start",
    ),
    "steps whose noise is not coherent": Bug(
        "diffusion/samplers.py",
        "return noise(like, index, *address)",
        "return jax.random.normal(jax.random.key(index), like.shape)",
        "coherent",
    ),
    "a start whose noise is not coherent": Bug(
        "diffusion/samplers.py",
        "variance) * noise(mean, 0)",
        "variance) * draw_noise(jax.random.split(jax.random.key(0), len(mean)), mean)",
        "coherent start",
    ),
    "noise by the place in a batch": Bug(
        "diffusion/correlated_noise.py",
        "keys, jnp.asarray(slices, jnp.int32)",
        "keys, jnp.arange(len(slices))",
        "slices alone",
    ),
    "power of draws about their own mean": Bug(
        "evaluation/structure.py",
        "np.where(brain, draw - mean, 0)",
        "np.where(brain, draw - np.mean(draws, axis=0), 0)",
        "the right law",
    ),
    "power of the truth about the draws' mean": Bug(
        "evaluation/structure.py",
        "np.where(brain, truth - mean, 0)",
        "np.where(brain, truth - np.mean(draws, axis=0), 0)",
        "the right law",
    ),
    "power of draws added up": Bug(
        "evaluation/structure.py",
        "np.stack([np.mean(powers, axis=0)",
        "np.stack([np.sum(powers, axis=0)",
        "power of a spectrum",
    ),
    "bands in radians a pixel": Bug(
        "evaluation/structure.py",
        "np.digitize(radius, BAND_EDGES)",
        "np.digitize(2 * np.pi * radius, BAND_EDGES)",
        "power of a spectrum",
    ),
    "bands in cycles an image": Bug(
        "evaluation/structure.py",
        "np.digitize(radius, BAND_EDGES)",
        "np.digitize(height * radius, BAND_EDGES)",
        "power of a spectrum",
    ),
    "bands by the rows' frequency alone": Bug(
        "evaluation/structure.py",
        "np.fft.fftfreq(width))",
        "0 * np.fft.fftfreq(width))",
        "power of a spectrum",
    ),
    "power of the corners in the wrong band": Bug(
        "evaluation/structure.py",
        "np.digitize(radius, BAND_EDGES)",
        "np.digitize(radius, BAND_EDGES) * (radius < 0.5)",
        "power of a spectrum",
    ),
    "power of the background": Bug(
        "evaluation/structure.py",
        "np.where(brain, truth - mean, 0)",
        "truth - mean",
        "power within the brain",
    ),
    "block means with the background": Bug(
        "evaluation/structure.py", "/ pixels[counts]", "/ size**2", "blocks by hand"
    ),
    "block means of the background": Bug(
        "evaluation/structure.py", "np.where(brain, images, 0)", "images", "blocks by hand"
    ),
    "blocks of any brain": Bug(
        "evaluation/structure.py",
        "pixels >= LEAST_BRAIN * size**2",
        "pixels > 0",
        "blocks by hand",
    ),
    "blocks of half the side": Bug(
        "evaluation/structure.py",
        "images = (np.asarray(values, np.float64)",
        "size = max(1, size // 2)\n    images = (np.asarray(values, np.float64)",
        "variance of blocks",
    ),
    "spread without (K + 1) / K": Bug(
        "evaluation/calibration.py",
        "(count + 1) / count * means[..., 0]",
        "means[..., 0]",
        "the right law",
    ),
    "the absolute error of the draws' mean": Bug(
        "evaluation/structure.py",
        "np.abs(own_mean - true)",
        "np.abs(np.mean(drawn, axis=0) - true)",
        "the right law",
    ),
    "a lesion's percentile of the whole brain": Bug(
        "evaluation/lesions.py",
        "np.percentile(inside, PERCENTILE, axis=1)",
        "np.percentile(images[:, brain] / medians[:, None], PERCENTILE, axis=1)",
        "lesions by hand",
    ),
    "draws pooled before a lesion's percentile": Bug(
        "evaluation/lesions.py",
        "np.percentile(inside, PERCENTILE, axis=1)",
        "np.append(np.percentile(inside[:2], 90, axis=1), [np.percentile(inside[2:], 90)] * 8)",
        "lesions of the right law",
    ),
    "a lesion of which the truth is the first draw": Bug(
        "evaluation/lesions.py",
        '{"truth": 0, "of_mean": 1',
        '{"truth": 2, "of_mean": 1',
        "lesions of the right law",
    ),
    "lesions relative to the truth's own brain": Bug(
        "evaluation/lesions.py",
        "medians = np.maximum(medians, DARK * medians[0])",
        "medians = np.repeat(medians[:1], len(images))",
        "lesions by hand",
    ),
    "details not halved": Bug("utils/haar.py", "details / 2", "details", "Haar"),
    "rows and columns exchanged on the way back": Bug(
        "utils/haar.py", "coarse - x + y - z]", "coarse - x - y + z]", "Haar"
    ),
    "details of the other diagonal": Bug(
        "utils/haar.py",
        "images, finer = split_level(images)",
        "images, finer = split_level(images[:, ::-1, ::-1])",
        "bands",
    ),
    "bands from the finest": Bug(
        "diffusion/bands.py",
        "for level in details)",
        "for level in details[::-1])",
        "Gaussian about its mean",
    ),
    "a block's mean for its sum": Bug(
        "diffusion/bands.py",
        "jnp.square(blocks / side)",
        "jnp.square(blocks / side**2)",
        "largest deviation",
    ),
    "the whole sum of a block": Bug(
        "diffusion/bands.py", "jnp.square(blocks / side)", "jnp.square(blocks)", "largest deviation"
    ),
    "blocks that are not of the image's size": Bug(
        "diffusion/bands.py",
        "while 2 * side <= min(",
        "while 4 * side <= min(",
        "largest deviation",
    ),
    "the noise's variance for its level in c_skip": Bug(
        "diffusion/preconditioning.py",
        "variance = jnp.square(level)",
        "variance = level",
        "Gaussian about its mean",
    ),
    "a residual about 0": Bug(
        "diffusion/preconditioning.py",
        "residual = x / per_example(sde.mean(t), x) - centre",
        "residual = x / per_example(sde.mean(t), x)",
        "Gaussian about its mean",
    ),
    "no shrinkage of bands": Bug(
        "diffusion/preconditioning.py",
        "return p / (p + noise) * c +",
        "return c +",
        "Gaussian about its mean",
    ),
    "the powers of one missing modality for all": Bug(
        "diffusion/preconditioning.py",
        "jnp.maximum(power[missing_index(missing)], SMALLEST_POWER)",
        "jnp.maximum(power[jnp.zeros(len(missing), int)], SMALLEST_POWER)",
        "Gaussian about its mean",
    ),
    "a shift on the seen": Bug(
        "diffusion/preconditioning.py",
        "jnp.where(rows(missing), shift, 0)",
        "shift + 0.01",
        "Gaussian about its mean",
    ),
    "levels in another order than their questions": Bug(
        "diffusion/loss.py",
        "loss.reshape(-1, count).mean(axis=1)",
        "loss.reshape(count, -1).mean(axis=0)",
        "levels of a question",
    ),
    "every example asks for the mean in place of its levels": Bug(
        "config/build.py",
        "proposal._replace(mean_fraction=0.0)",
        "proposal._replace(mean_fraction=1.0)",
        "levels of the config",
    ),
    "one scale of levels for all examples": Bug(
        "diffusion/loss.py",
        "scales = jnp.repeat(scale(missing), count)",
        "scales = scale(missing).max()",
        "levels of the config",
    ),
    "the scale of another example": Bug(
        "diffusion/loss.py",
        "scales = jnp.repeat(scale(missing), count)",
        "scales = jnp.tile(scale(missing), count)",
        "levels of the config",
    ),
    "levels summed": Bug(
        "diffusion/loss.py",
        "loss.reshape(-1, count).mean(axis=1)",
        "loss.reshape(-1, count).sum(axis=1)",
        "levels of a question",
    ),
    "an encoding for each level": Bug(
        "diffusion/loss.py",
        "denoised = posterior.estimate(x, inputs.t).mean",
        "again = mask_inputs(jnp.repeat(images, count, axis=0), jnp.repeat(inputs.missing, count, "
        "axis=0))\n    denoised = make_posterior(model, params, again).estimate(x, inputs.t).mean",
        "levels of a question",
    ),
    "a gradient on the statistics": Bug(
        "diffusion/preconditioning.py",
        'power = jax.lax.stop_gradient(params["statistics"]["band_power"])',
        'power = params["statistics"]["band_power"]',
        "parts of the losses",
    ),
    "noise that trains the mean": Bug(
        "diffusion/preconditioning.py",
        "mean = jax.lax.stop_gradient(encoding.moments.mean)",
        "mean = encoding.moments.mean",
        "parts of the losses",
    ),
    "noise that trains the mean's features": Bug(
        "models/residual_mm_csn.py",
        "features, known = jax.lax.stop_gradient((features, known))",
        "known = jax.lax.stop_gradient(known)",
        "parts of the losses",
    ),
    "a constant start": Bug(
        "inference/predictor.py",
        "start = options.warm_start_factor * trained.posterior_scale(missing)",
        "start = 3.0",
        "warm's start",
    ),
    "a start at one posterior scale": Bug(
        "inference/predictor.py",
        "start = options.warm_start_factor * trained.posterior_scale(missing)",
        "start = trained.posterior_scale(missing)",
        "warm's start",
    ),
    "lesions relative to the tumour too": Bug(
        "evaluation/lesions.py",
        "reference = inside & ~region(plane, WHOLE)",
        "reference = inside",
        "sections of lesions",
    ),
    "enhancement without T1": Bug(
        "evaluation/lesions.py",
        "ratios = smooth[:-1] / plain",
        "ratios = smooth[:-1]",
        "a lesion's enhancement",
    ),
    "enhancement relative to nothing": Bug(
        "evaluation/lesions.py",
        'numbers["enhancement"] = high / typical',
        'numbers["enhancement"] = high',
        "a lesion's enhancement",
    ),
    "a lesion's spread as that of the draws' mean": Bug(
        "evaluation/lesions.py",
        "np.var(lesions.draws, axis=0, ddof=1)",
        "np.var(lesions.draws, axis=0, ddof=1) / len(lesions.draws)",
        "lesions of the right law",
    ),
    "reliability of lesions by all draws": Bug(
        "evaluation/lesions.py",
        "share = (enhancing - left_out) / (count - 1)",
        "share = enhancing / count",
        "lesions of the right law",
    ),
    "a lesion enhances by its truth's number in draws": Bug(
        "evaluation/lesions.py",
        "drawn.astype(np.float64), truth.astype",
        "drawn.astype(np.float64), drawn[0].astype",
        "lesions of the right law",
    ),
    "patterns of lesions as likely as each other": Bug(
        "data/phantom/tumour.py",
        '{"ring": 0.36, "solid": 0.10, "patchy": 0.29, NONE: 0.25}',
        '{"ring": 0.25, "solid": 0.25, "patchy": 0.25, NONE: 0.25}',
        "patterns of lesions",
    ),
    "patterns of lesions exchanged": Bug(
        "data/phantom/tumour.py",
        "p=list(PATTERNS.values())",
        "p=list(PATTERNS.values())[::-1]",
        "patterns of lesions",
    ),
    "a classifier scores whom it was trained on": Bug(
        "evaluation/two_sample.py",
        "training = [pool[within[pool[:, 0]]] for",
        "training = [pool for",
        "unknown subjects",
    ),
    "slices of a subject on either side": Bug(
        "evaluation/two_sample.py",
        "trained_on = fold[row] != index",
        "trained_on = np.arange(len(row)) % FOLDS != index",
        "unknown subjects",
    ),
    "draws scaled by draws": Bug(
        "evaluation/two_sample.py",
        "(stacked - np.mean(known, axis=0))",
        "(stacked - np.repeat([v[pairs.brain].mean(0) for v in np.split(stacked, 2)], "
        "len(pairs.truth), axis=0)[:, None, None])",
        "brighter draws",
    ),
    "a brain mask on truths alone": Bug(
        "evaluation/two_sample.py",
        "brain = np.tile(pairs.brain, (2, 1, 1))",
        "brain = np.concatenate([pairs.brain, np.ones_like(pairs.brain)])",
        "the same law",
    ),
    "draws called truths": Bug(
        "evaluation/two_sample.py",
        "np.repeat([False, True]",
        "np.repeat([True, False]",
        "white noise",
    ),
    "scores of two networks compared": Bug(
        "evaluation/two_sample.py",
        "(scores.fold == fold) & label",
        "label",
        "Mann and Whitney",
    ),
    "ties that count nothing": Bug(
        "evaluation/two_sample.py",
        'for side in ("left", "right")',
        'for side in ("left", "left")',
        "Mann and Whitney",
    ),
    "R of another noise level": Bug(
        "benchmarks/preconditioning.py",
        "t = sde.time(levels)",
        "t = sde.time(2 * levels)",
        "learning speed",
    ),
    "R over the mean's error of another modality": Bug(
        "benchmarks/preconditioning.py",
        ".mean - truth, mean - truth",
        ".mean - truth, (mean - truth)[..., ::-1]",
        "learning speed",
    ),
    "R of questions in another's place": Bug(
        "benchmarks/preconditioning.py",
        "np.add.at(sums, (channels, which)",
        "np.add.at(sums, (1 - channels, which)",
        "learning speed",
    ),
    "R of voxels for blocks": Bug(
        "benchmarks/preconditioning.py",
        "values, 0), size)",
        "values, 0), 1)",
        "learning speed",
    ),
    "R's reference of block means that are not orthonormal": Bug(
        "benchmarks/preconditioning.py",
        "power = size**2 * residual",
        "power = residual",
        "learning speed",
    ),
}


def is_red(check, bug=None):
    """Whether a check fails with the bug planted."""
    with planted(bug) as checks:
        try:
            REDDENED[check](checks)
        except AssertionError:
            return True
        return False


def main():
    missed = [f"{check} is red with no bug" for check in REDDENED if is_red(check)]
    for name, bug in BUGS.items():
        red = is_red(bug.check, bug)
        print(f"{name}: {bug.check} {'turns red' if red else 'STAYS GREEN'}")
        missed += [] if red else [name]
    sys.exit(f"missed: {missed}" if missed else 0)


if __name__ == "__main__":
    main()
