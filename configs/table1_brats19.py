r"""Table 1 on BraTS 2019: the paper's split and questions, every method side by side.

What       configs/brats19.py, and beside the mm-CSN the five published methods with
           their published widths and learning rates, regression and floors; the paper's
           own numbers stand beside ours in the report. All are given one slice, as in
           the paper: network.neighbour_slices is 0.
Source     Meng et al. 2022 (arXiv 2207.03430), Table 1 and Figure 2.
Data       MICCAI_BraTS_2019_Data_Training, as for configs/brats19.py.
Hardware   one GPU of 40 GiB or a TPU v4-8 for each method, days in all; not run by us.
           Methods may be trained on different machines, each with --mode train and
           --methods mm-gan,hi-net, and
           their folders WORKDIR/methods/NAME copied into one workdir.
Command    python -m ummcsgm.main --config configs/table1_brats19.py \
               --workdir runs/table1_brats19 \
               --config.data.folder=/path/to/MICCAI_BraTS_2019_Data_Training
"""

import pathlib
import runpy

from ml_collections import ConfigDict

BRATS19 = pathlib.Path(__file__).with_name("brats19.py")
METHODS = ("regression", "mm-gan", "ucdgan", "hi-net", "mm-syn", "cocagan")


def get_config() -> ConfigDict:
    """The config of the paper's Table 1."""
    config = runpy.run_path(str(BRATS19))["get_config"]()
    config.update_from_flattened_dict(
        {
            "data.labels": True,
            "network.neighbour_slices": 0,
            "study.methods": METHODS,
            "study.width_scale": (1.0,) * len(METHODS),
            "study.lr_scale": (1.0,) * len(METHODS),
            "study.patterns_per_image": (1,) * len(METHODS),
            "study.segmenter_steps": 50000,
            "study.show_paper": True,
        }
    )
    return config
