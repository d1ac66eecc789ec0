"""UMM-CSGM: completion of missing MR contrasts with one conditional score network.

Four ideas:

1. An SDE is functions of time (`sde`).
2. A completion is a question: what is seen, what is missing (`completion`).
3. A denoiser is `denoise(images, t)`; score, noise and eq. 5 are views of it
   (`denoiser`). Losses and samplers meet nothing else.
4. Randomness and data have addresses: (seed, step, example) in training, (seed,
   subject, draw, step, slice) in sampling.

Read the files in this order: types, sde, completion, pixels, network, denoiser, loss,
grids, solvers, sampling, state, matching, train, loop, evaluate, complete; then
baselines.method, baselines.adversarial and the five methods, courses, rivals, contest
and conclusion, which set them side by side; then build, which makes all of it from a
config, parallel and job, which know of devices and processes, and main.

For research only: not a medical device, not for clinical decisions.
"""

import importlib

_HOMES = {
    "VP": "sde",
    "SubVP": "sde",
    "VE": "sde",
    "Cosine": "sde",
    "perturb": "sde",
    "Completion": "completion",
    "ask": "completion",
    "configurations": "completion",
    "MMCSN": "network",
    "Model": "denoiser",
    "make_denoise": "denoiser",
    "mm_csn": "denoiser",
    "posterior_mean": "denoiser",
    "make_estimate": "denoiser",
    "posterior_moments": "denoiser",
    "dsm_loss": "loss",
    "algorithm1": "sampling",
    "make_draw": "sampling",
    "default_times": "sampling",
    "evaluations": "sampling",
    "sample": "sampling",
    "euler_maruyama": "solvers",
    "uniform_times": "grids",
    "log_uniform_times": "grids",
    "karras_times": "grids",
    "InputError": "types",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    # On first use: the world of files, and its worker processes, load no JAX.
    if name not in _HOMES:
        raise AttributeError(f"module 'ummcsgm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ummcsgm.{_HOMES[name]}"), name)
