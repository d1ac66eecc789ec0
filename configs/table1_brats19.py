r"""Table 1 on BraTS 2019: the paper's split and patterns, every method side by side.

What       configs/brats19.py, with the five published methods at their published widths
           and learning rates, regression and ridge; the report shows the paper's
           numbers beside ours. The network sees single slices, as in the paper.
Source     Meng et al. 2022 (arXiv 2207.03430), Table 1 and Figure 2.
Data       MICCAI_BraTS_2019_Data_Training, as for configs/brats19.py.
Hardware   one GPU of 40 GiB or a TPU v4-8 for each method, days in all; not run by us.
           Methods may be trained on different machines, with --mode train and
           --methods mm-gan,hi-net; copy their folders WORKDIR/methods/NAME into one
           workdir.
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
