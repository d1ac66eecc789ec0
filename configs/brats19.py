r"""BraTS 2019, the paper's protocol: Table 1 of Meng et al. 2022.

What       335 subjects, split 20/1/8 at random into 231/12/92; four contrasts; one
           network for all 15 missing patterns, each as likely as the others (eq. 7);
           evaluated with one modality missing and three seen, Algorithm 1 at 1000 steps.
Source     arXiv 2207.03430. The paper gives no network size, optimizer or crop; ours
           are below. With --config.network.preconditioning=edm --config.loss.weighting=paper
           --config.loss.uniform_fraction=1.0 --config.loss.sigma_max_factor=0
           --config.loss.levels_per_question=1 --config.loss.mean_fraction=0.0
           --config.network.conditioning=decoder --config.network.neighbour_slices=0 the
           objective and the network's input are exactly the paper's.
Data       MICCAI_BraTS_2019_Data_Training, with its folders HGG and LGG. We may not
           distribute it: request it from the challenge's organisers.
Hardware   one GPU of 40 GiB or a TPU v4-8. Not run by us yet. On paper alone: 346 GFLOP
           a question with its four noise levels, 22 TFLOP a step of 64; at 20 to 40 % of
           the peak of bfloat16 (989 TFLOP/s an H100, 1100 a v4-8) the 150,000 steps take
           2.3 to 4.7 hours on one H100 and 2.1 to 4.2 on a v4-8. 335 MiB a question are
           kept for the gradient, 21 GiB of a batch, beside 1 GiB of parameters and their
           moments. The paper's PSNRs: 25.73 / 29.92 / 27.81 / 26.41 dB (FLAIR / T1 / T1c
           / T2).
Command    python -m ummcsgm.main --config configs/brats19.py --workdir runs/brats19 \
               --config.data.folder=/path/to/MICCAI_BraTS_2019_Data_Training
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BASE = pathlib.Path(__file__).with_name("base.py")
CHANGES = {
    "phantom.subjects": 0,
    "phantom.shape": (240, 240, 155),
    "data.layout": "brats",
    "data.split": (20, 1, 8),
    "data.grid": (192, 160),
    "data.min_brain_fraction": 0.02,
    "data.processes": 8,
    "missingness.size_probabilities": "uniform",
    "network.widths": (128, 256, 256, 384),
    "network.blocks": (2, 2, 3, 3),
    "network.patch": 2,
    "network.attention_max_grid": 24,
    "network.pixel_width": 64,
    "network.context_channels": 16,
    "network.neighbour_slices": 1,
    "network.residual_widths": (64, 128, 128, 192),
    "network.dtype": "bfloat16",
    "loss.sigma_min": 0.003,
    "train.steps": 150_000,
    "train.batch": 64,
    "train.remat": (False, False, False, False),
    "train.learning_rate": 5e-4,
    "train.warmup": 2000,
    "train.ema_decay": 0.9999,
    "train.save_every": 5000,
    "train.keep_checkpoints": 3,
    "train.log_every": 100,
    "train.max_nonfinite": 50,
    "evaluate.draws": 16,
    "evaluate.draw_subjects": 20,
    "evaluate.draw_slices": 8,
    "evaluate.slab_slices": 16,
    "evaluate.slab_subjects": 5,
    "evaluate.microbatch": 64,
    "evaluate.algorithm1_subjects": 0,
    "evaluate.algorithm1_slices": 0,
}


def get_config() -> ConfigDict:
    """The config of the paper's experiment."""
    config = runpy.run_path(str(BASE))["get_config"]()
    config.update_from_flattened_dict(CHANGES)
    return config
