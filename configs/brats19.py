r"""BraTS 2019, the paper's protocol: Table 1 of Meng et al. 2022.

What       335 subjects, split 20/1/8 at random into 231/12/92; four contrasts; one
           network for all 15 configurations, each as likely as the others (eq. 7);
           evaluated with one modality missing and three given, Algorithm 1 at 1000.
Source     arXiv 2207.03430. The paper gives no network size, optimizer or crop; ours
           are below. With --config.loss.weighting=paper --config.loss.uniform_fraction=1.0
           --config.loss.mean_fraction=0.0 --config.network.conditioning=decoder
           --config.network.neighbour_slices=0 the objective and what the network is told are
           the paper's to the letter.
Data       MICCAI_BraTS_2019_Data_Training, with its folders HGG and LGG. It is not
           ours to give: request it from the challenge's organisers.
Hardware   one GPU of 40 GiB or a TPU v4-8. Not run by us yet: hours and numbers of
           this config are unknown. The paper's PSNRs: 25.73 / 29.92 / 27.81 / 26.41 dB
           (FLAIR / T1 / T1c / T2).
Command    python -m ummcsgm.main --config configs/brats19.py --workdir runs/brats19 \
               --config.data.folder=/path/to/MICCAI_BraTS_2019_Data_Training
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of the paper's experiment."""
    return ConfigDict(
        {
            "seed": 0,
            "phantom": {"subjects": 0, "shape": (240, 240, 155)},
            "data": {
                "folder": "",
                "layout": "brats",
                "pattern": "",  # of the layout flat
                "entities": (),  # of the layout bids
                "mask": "",  # what brain masks have for {modality}
                "modalities": ("flair", "t1", "t1c", "t2"),
                "split": (20, 1, 8),
                "grid": (192, 160),
                "spacing": 0.0,  # BraTS has 1 mm
                "min_brain_fraction": 0.02,  # of the grid, in the slices trained on
                "labels": False,  # the tumour's segmentation goes with the slices
                "flip": True,  # left and right, in training
                "image_std": 0.25,  # of clean images, background included
                "processes": 8,
            },
            "sde": {
                "name": "vp",
                "beta_min": 0.1,
                "beta_max": 20.0,
                "sigma_min": 0.01,  # of ve
                "sigma_max": 50.0,  # of ve
                "noise_level_max": 318.0,  # of cosine
            },
            "missingness": {
                "keep_one_seen": False,
                "size_probabilities": "uniform",
                "patterns_per_image": 1,
            },
            "network": {
                "widths": (128, 256, 256, 384),
                "blocks": (2, 2, 3, 3),
                "stem": "space_to_depth",
                "patch": 2,
                "attention_max_grid": 24,
                "pixel_width": 64,
                "pixel_layers": 2,
                "context_channels": 16,
                "conditioning": "both",
                "neighbour_slices": 1,  # slices on either side, of what is seen
                "predict_variance": True,  # predicted too, beside the mean
                "dtype": "bfloat16",
            },
            "loss": {
                "weighting": "conditional",
                "posterior_std": 0.08,
                "uniform_fraction": 0.2,
                "log_sigma_mean": -1.2,
                "log_sigma_std": 1.4,
                "sigma_min": 0.003,
                "mean_fraction": 0.1,
                "mean_weight": 10.0,
            },
            "train": {
                "steps": 150_000,
                "batch": 64,
                "accumulate": 1,
                # Of each level: its blocks are computed again for gradients, which
                # takes less memory and more time.
                "remat": (False, False, False, False),
                "learning_rate": 2e-4,
                "schedule": "cosine",
                "warmup": 2000,
                "clip": 1.0,
                "ema_decay": 0.9999,
                "save_every": 5000,
                "keep_checkpoints": 3,
                "log_every": 100,
                "max_nonfinite": 50,
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
                "algorithm1_steps": 1000,
                "sampler_steps": 12,
                "sigma_min": 0.01,
                "warm_start_sigma": 3.0,
                "draws": 16,
                "draw_subjects": 20,
                "draw_slices": 8,
                "slab_slices": 16,
                "slab_subjects": 5,
                "microbatch": 64,
                "algorithm1_subjects": 0,  # all
                "algorithm1_slices": 0,  # all
                "ridge_penalty": 1e-4,
            },
        }
    )
