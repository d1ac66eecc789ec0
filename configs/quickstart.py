r"""Quickstart: the whole study on a phantom, on a laptop's CPU.

What       360 phantom subjects (280 / 40 / 40) of 64 x 64 x 40 voxels; one mm-CSN for
           all 15 configurations; Table 1's protocol on the test subjects.
Source     Meng et al. 2022 (arXiv 2207.03430) for the method. Ours: the preconditioned
           output, the MMSE token, the mixture of times, a network for minutes of CPU.
Hardware   two CPU cores, at most 6 GiB.
Command    python -m ummcsgm.main --config configs/quickstart.py \
               --workdir runs/quickstart

Short runs want more MMSE tokens, of more weight, and more questions with a single
missing modality than long ones, and an EMA whose horizon fits the run. On a CPU many
steps of a shallow network learn more than few of a deep one in the same time.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The quickstart's config."""
    return ConfigDict(
        {
            "seed": 0,  # of phantom, split, parameters, training and draws
            "phantom": {"subjects": 360, "shape": (64, 64, 40)},  # 0 subjects: none
            "data": {
                "folder": "",  # empty: the phantom's
                "layout": "auto",  # or brats, brats23, msd, ixi, bids, flat
                "pattern": "",  # your own, "{subject}/{subject}-{modality}.nii.gz"
                "entities": (),  # of BIDS, to choose among runs: ("run-1",)
                "mask": "",  # what brain masks have for {modality}; none: voxels not 0
                "modalities": ("flair", "t1", "t1c", "t2"),
                "split": (28, 4, 4),  # parts of train, validation and test
                "grid": (56, 48),  # rows and columns that the network sees
                "spacing": 0.0,  # mm of its pixels, by resampling; 0: none
                "min_brain_fraction": 0.3,  # of the grid, in the slices trained on
                "labels": False,  # the tumour's segmentation goes with the slices
                "flip": True,  # left and right, in training
                "image_std": 0.25,  # of clean images, background included
                "processes": 2,  # that make the phantom and read NIfTI
            },
            "sde": {
                "name": "vp",  # vp, sub_vp, ve or cosine
                "beta_min": 0.1,
                "beta_max": 20.0,
                "sigma_min": 0.01,  # of ve
                "sigma_max": 50.0,  # of ve
                "noise_level_max": 318.0,  # of cosine
            },
            "missingness": {
                "keep_one_seen": False,  # True: never all modalities missing
                "size_probabilities": "0.8,0.1,0.05,0.05",  # P(1, 2, .. missing), or uniform
                "patterns_per_image": 1,  # of an image in a step: so many rows of the network's
            },
            "network": {
                "widths": (64, 128),  # channels of each level, the finest first
                "blocks": (1, 1),  # residual blocks of each level, on either side
                "stem": "space_to_depth",  # or haar
                "patch": 4,
                "attention_max_grid": 0,  # on grids of at most so many positions a side
                "pixel_width": 32,  # channels at full resolution
                "pixel_layers": 2,
                "context_channels": 8,  # channels that the U-Net hands to the pixels
                "conditioning": "both",  # or decoder, as in the paper
                "neighbour_slices": 0,  # slices on either side, of what is seen
                "predict_variance": True,  # a head that predicts the mean's squared error
                "dtype": "float32",  # of activations: or bfloat16
            },
            "loss": {
                # paper, std2, likelihood, edm, conditional or min_snr
                "weighting": "conditional",
                "posterior_std": 0.08,  # of what is missing, for conditional
                "uniform_fraction": 0.2,  # share of times uniform in t; 1.0 is the paper
                "log_sigma_mean": -1.2,  # of ln(noise level) of the other times
                "log_sigma_std": 1.4,  # its standard deviation
                "sigma_min": 0.003,
                "mean_fraction": 0.3,  # share of rows that ask for the mean
                "mean_weight": 10.0,  # of their loss
            },
            "train": {
                "steps": 7000,
                "batch": 8,  # slices a step, over all devices
                "accumulate": 1,  # microbatches a step
                # Of each level: its blocks are computed again for gradients, which
                # takes less memory and more time (on a CPU neither: XLA undoes it).
                "remat": (False, False),
                "learning_rate": 3e-3,
                "schedule": "cosine",  # or constant, after the warm-up
                "warmup": 100,
                "clip": 1.0,  # of the gradient's norm
                "ema_decay": 0.99,
                "save_every": 1000,
                "keep_checkpoints": 2,  # checkpoints
                "log_every": 50,
                "max_nonfinite": 20,  # steps in a row that are not finite end the run
            },
            "study": {
                # Beside the mm-CSN: regression and published methods, see README.
                "methods": (),
                "width_scale": (),  # of each: its channels, as a share of the published
                "lr_scale": (),  # and by what its published learning rates are multiplied
                "patterns_per_image": (),  # missing patterns of an image in a step
                "cocagan_input": "",  # the one contrast that cocagan is given; else all
                "budget": "images",  # that each method sees; or seconds it trains
                "segmenter_steps": 0,  # steps of the segmentation network; 0: none
                "gallery_slices": 24,  # slices of two subjects in the report
                "show_paper": False,  # the paper's Table 1 beside ours: the same data
            },
            "evaluate": {
                "algorithm1_steps": 1000,  # of Algorithm 1
                "sampler_steps": 12,  # steps of the samplers that need few
                "sigma_min": 0.01,  # noise level at which they end
                "warm_start_sigma": 3.0,  # noise level at which `warm` begins, from the mean
                "draws": 8,  # of a question, to measure the posterior's spread
                "draw_subjects": 0,  # of validation and test, so measured; 0: all
                "draw_slices": 2,  # of each; 0: all scored slices
                "slab_slices": 12,  # neighbouring slices, to see how they go together
                "slab_subjects": 3,  # of each split so measured; 0: all
                "microbatch": 8,  # slices in one evaluation, over all devices
                "algorithm1_subjects": 3,  # 0: all test subjects
                "algorithm1_slices": 2,  # of each; 0: all scored slices
                "ridge_penalty": 1e-4,  # of the ridge floors
            },
        }
    )
