"""UMM-CSGM: completes missing MR contrasts with one conditional score-based diffusion model.

    predictor = ummcsgm.load(workdir)                # a trained network
    predictor.mean({"t1": t1, "t2": t2})             # see `Predictor`

The code is built on four ideas:

1. An SDE is a set of functions of time: `diffusion.sde`.
2. A missing pattern says which modalities are seen and which are missing. Training,
   sampling and evaluation all use it: `diffusion.missingness`.
3. A denoiser is `denoise(images, t)`. The score, the noise and eq. 5 of the paper are
   computed from it: `diffusion.preconditioning`. Losses and samplers see nothing else.
4. Every random number has an address: (seed, step, example) in training, (seed, subject,
   slice, draw, step) in sampling. Nothing depends on the batch or on the devices.

Start reading at `types`, then `diffusion`, `models.mm_csn`, `training.dsm_step` and
`inference.predictor`; `config.build` makes all objects from a config.

For research only: not a medical device, not for clinical decisions.
"""

import importlib

_MODULES = {
    "types": ("InputError",),
    "inference.api": ("load", "Predictor", "Completion"),
    "diffusion.sde": ("VP", "SubVP", "VE", "Cosine", "perturb"),
    "diffusion.missingness": ("Condition", "mask_inputs", "missing_patterns"),
    "diffusion.preconditioning": (
        "ScoreModel",
        "make_denoise",
        "mm_csn_output",
        "make_posterior",
    ),
    "diffusion.loss": ("dsm_loss",),
    "diffusion.samplers": (
        "algorithm1",
        "make_draw",
        "sampler_times",
        "count_evaluations",
        "sample",
        "sample_from_prior",
        "sample_from_mean",
    ),
    "diffusion.solvers": ("euler_maruyama",),
    "diffusion.time_grids": ("uniform_times", "log_uniform_times", "karras_times"),
    "models.mm_csn": ("MMCSN",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_MODULE_OF)


def __getattr__(name: str):
    # On first use: reading files, and its worker processes, load no JAX.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'ummcsgm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ummcsgm.{_MODULE_OF[name]}"), name)
