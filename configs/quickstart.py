r"""Quickstart: the whole study on a phantom, on a laptop's CPU.

What       145 phantom subjects (100 / 5 / 40) of 64 x 64 x 40 voxels; one mm-CSN for all
           15 configurations; Table 1's protocol on the test subjects.
Source     Meng et al. 2022 (arXiv 2207.03430) for the method. Ours: the preconditioned
           output, the MMSE token, the mixture of times, a network for minutes of CPU.
Hardware   two CPU cores, at most 6 GiB.
Command    python -m ummcsgm.main --config configs/quickstart.py \
               --workdir runs/quickstart

Short runs want more MMSE tokens and more questions with a single missing modality than
long ones, and an EMA whose horizon fits the run.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The quickstart's config."""
    return ConfigDict(
        {
            "seed": 0,
            "phantom": {"subjects": 145, "shape": (64, 64, 40)},
            "data": {
                "folder": "",  # empty: the phantom's
                "layout": "brats19",
                "pattern": "",  # of the layout flat
                "modalities": ("flair", "t1", "t1c", "t2"),
                "split": (20, 1, 8),
                "grid": (56, 48),
                "min_brain": 0.3,  # of the grid, in the slices trained on
                "flip": True,  # left and right, in training
                "std": 0.25,  # of clean images, background included
                "processes": 2,
            },
            "sde": {
                "name": "vp",
                "beta_min": 0.1,
                "beta_max": 20.0,
                "sigma_min": 0.01,  # of ve
                "sigma_max": 50.0,  # of ve
                "noise_level_max": 318.0,  # of cosine
            },
            "questions": {"proper": False, "sizes": "0.8,0.1,0.05,0.05"},
            "network": {
                "widths": (64, 128),
                "blocks": (2, 2),
                "stem": "space_to_depth",
                "patch": 4,
                "attention_at": 0,
                "pixel_width": 32,
                "pixel_layers": 2,
                "context": 8,
                "conditioning": "both",
                "dtype": "float32",
            },
            "loss": {
                "weighting": "edm",
                "uniform": 0.2,
                "centre": -1.2,
                "width": 1.4,
                "noise_level_min": 0.003,
                "token": 0.7,
                "token_weight": 8.0,
            },
            "train": {
                "steps": 4000,
                "batch": 8,
                "accumulate": 1,
                "learning_rate": 3e-3,
                "schedule": "cosine",
                "warmup": 100,
                "clip": 1.0,
                "ema_decay": 0.99,
                "save_every": 1000,
                "keep": 2,
                "log_every": 50,
                "max_bad": 20,
            },
            "evaluate": {
                "steps": 1000,
                "microbatch": 8,
                "algorithm1_subjects": 3,
                "algorithm1_slices": 2,
                "penalty": 1e-4,
            },
        }
    )
