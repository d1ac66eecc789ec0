"""Every key of a config. The other configs are this one with some values changed.

The values are the quickstart's. docs/config.md has each key's type and range.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The base config."""
    return ConfigDict(
        {
            "seed": 0,  # of phantom, split, parameters, training and draws
            "phantom": {
                "subjects": 360,  # subjects to make where data.folder is empty; 0: none
                "shape": (64, 64, 40),  # voxels of each
            },
            "data": {
                "folder": "",  # of your subjects; empty: the phantom's
                "layout": "auto",  # or brats, brats23, msd, ixi, bids, flat
                "pattern": "",  # of file names: "{subject}/{subject}-{modality}.nii.gz"
                "entities": (),  # of BIDS, to choose among runs: ("run-1",)
                "mask": "",  # the word in place of {modality}; empty: brain is what is not 0
                "modalities": ("flair", "t1", "t1c", "t2"),
                "split": (28, 4, 4),  # parts of train, validation and test
                "grid": (56, 48),  # rows and columns that the network sees
                "spacing": 0.0,  # mm of a pixel, by resampling; 0: not resampled
                "min_brain_fraction": 0.3,  # of the grid, in the slices to train on
                "labels": False,  # store the tumour segmentations with the slices
                "flip": True,  # left and right, at random in training
                "image_std": 0.25,  # of clean images, background included
                "processes": 2,  # that make the phantom and read scans
            },
            "sde": {
                "name": "vp",  # or sub_vp, ve, cosine
                "beta_min": 0.1,  # of vp and sub_vp
                "beta_max": 20.0,  # of vp and sub_vp
                "sigma_min": 0.01,  # of ve
                "sigma_max": 50.0,  # of ve
                "noise_level_max": 318.0,  # of cosine
            },
            "missingness": {
                "keep_one_seen": False,  # True: never all modalities missing
                "size_probabilities": "0.8,0.1,0.05,0.05",  # of 1, 2, .. missing; or uniform
                "patterns_per_image": 1,  # missing patterns of an image in a step
            },
            "network": {
                "widths": (64, 128),  # channels of each level, the finest first
                "blocks": (1, 1),  # residual blocks of each level, on either side
                "patch": 4,  # pixels a side that the network takes as one position
                "attention_max_grid": 0,  # of the mean: attention on grids of at most this side
                "pixel_width": 32,  # channels at full resolution
                "pixel_layers": 2,  # layers at full resolution
                "context_channels": 8,  # channels from the U-Net to the pixel layers
                "conditioning": "both",  # of the mean; or decoder, as in the paper
                "neighbour_slices": 0,  # slices on either side, of what is seen
                "predict_variance": True,  # a head for the squared error of the mean
                # The score is preconditioned about the network's own mean, or (edm) about 0.
                "preconditioning": "mean",
                "residual_widths": (48, 96),  # of the part that sees noise
                "encoder_blocks": 1,  # of each level, in the encoder of what is seen
                "dtype": "float32",  # of activations; or bfloat16
            },
            "loss": {
                # or paper, std2, likelihood, edm, conditional, min_snr
                "weighting": "bands",
                "posterior_std": 0.08,  # of missing images, for conditional
                "uniform_fraction": 0.1,  # of times uniform in t; 1.0 is the paper
                "sigma_min": 0.01,  # the lowest noise level
                "sigma_max_factor": 6.0,  # the highest of the others, in posterior scales
                "log_sigma_mean": -1.2,  # of ln(noise level) where that is 0
                "log_sigma_std": 1.4,  # its standard deviation
                "levels_per_question": 4,  # noise levels about one mean
                "mean_fraction": 1.0,  # of a batch that trains the mean (MMSE token)
                "mean_weight": 10.0,  # of its loss
            },
            "train": {
                "steps": 1650,
                "batch": 8,  # slices in a step, over all devices
                "accumulate": 1,  # microbatches in a step
                # For each level: compute its blocks again for gradients, which takes
                # less memory and more time (on a CPU no effect: XLA undoes it).
                "remat": (False, False),
                "optimizer": "muon",  # or adam
                "learning_rate": 4e-3,
                "schedule": "cosine",  # after the warm-up; or constant
                "warmup": 100,  # steps
                "clip": 1.0,  # the gradient's norm
                "ema_decay": 0.99,  # of the averaged weights
                "save_every": 1000,  # steps
                "keep_checkpoints": 2,
                "log_every": 50,  # steps
                "max_nonfinite": 20,  # steps in a row that are not finite end the run
            },
            "study": {
                "methods": (),  # beside the mm-CSN: regression, mm-gan, ucdgan, hi-net, ...
                "width_scale": (),  # of each method: share of its published channels
                "lr_scale": (),  # of each: factor on its published learning rates
                "patterns_per_image": (),  # of each: missing patterns of an image in a step
                "cocagan_input": "",  # the one contrast that cocagan sees; empty: all
                "budget": "images",  # the same images for all methods; or the same seconds
                "segmenter_steps": 0,  # steps of the segmentation network; 0: none
                "gallery_slices": 24,  # of each of two subjects in the report
                "show_paper": False,  # the paper's Table 1 beside ours (on the same data)
            },
            "evaluate": {
                "algorithm1_steps": 1000,  # of the paper's Algorithm 1
                "sampler_steps": 9,  # of the other samplers
                "time_grid": "log_uniform",  # of the other samplers; or karras
                # The noise level at which they end, well below the sd of the finest band of what is
                # not known. Where it is below loss.sigma_min, the network's part is at most about
                # the level itself.
                "sigma_min": 0.004,
                # `warm` starts from the mean at the noise level of so many posterior scales.
                "warm_start_factor": 5.0,
                "draws": 8,  # of each missing pattern, to measure calibration
                "draw_subjects": 0,  # of validation and of test with draws; 0: all
                "draw_slices": 2,  # of each of them; 0: all scored slices
                "block_sizes": (1, 2, 4, 8, 16),  # pixels a side of blocks whose means are scored
                "two_sample_steps": 120,  # of the network that tells draws from truths; 0: none
                "slab_slices": 12,  # neighbouring slices, to measure consistency across them
                "slab_subjects": 3,  # of each split, measured so; 0: all
                "microbatch": 8,  # slices in one evaluation, over all devices
                "algorithm1_subjects": 3,  # test subjects for Algorithm 1; 0: all
                "algorithm1_slices": 2,  # of each of them; 0: all scored slices
                "ridge_penalty": 1e-4,  # of the ridge baselines
            },
        }
    )
