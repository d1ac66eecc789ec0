"""Installs ummcsgm; every dependency says what it is for."""

from setuptools import find_packages, setup

setup(
    name="ummcsgm",
    version="0.1.0",
    description="Completion of missing MR contrasts with one conditional score network",
    license="Apache-2.0",
    packages=find_packages(include=["ummcsgm", "ummcsgm.*"]),
    package_data={"ummcsgm.reporting": ["templates/*"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",  # command-line flags
        "filelock>=3.15",  # one process prepares slices, others wait
        "flax>=0.10",  # the network
        "grain>=0.2.10",  # batches by step, read ahead
        "jax>=0.10,<0.13",  # all computation on devices
        "jinja2>=3.1",  # the report's page
        "matplotlib>=3.9",  # figures and curves
        "ml_collections>=1.0",  # configs, and their flags
        "nibabel>=5.2",  # NIfTI
        "numpy>=2.0",  # arrays
        "optax>=0.2.6",  # Adam, schedules, clipping
        "orbax-checkpoint>=0.12",  # checkpoints
        "pillow>=10",  # the slices in the report as PNG
        "rich>=13",  # the progress bar
        "scipy>=1.13",  # SSIM's Gaussian window, the phantom's smooth fields
        "tensorboardX>=2.6",  # TensorBoard event files without TensorFlow
    ],
    extras_require={
        "bench": [  # what benchmarks run beside ours
            "einops>=0.8",  # MONAI's attention needs it
            "monai>=1.5",  # a U-Net of others
            "torch>=2.6",  # the same step in PyTorch
        ],
        "cuda": ["jax[cuda13]>=0.10,<0.13"],  # NVIDIA GPUs
        "tpu": ["jax[tpu]>=0.10,<0.13"],  # Cloud TPUs
        "docs": ["mkdocs>=1.6"],  # builds docs/
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",  # a hanging test names itself
            "pytest-xdist>=3.6",  # a file a process, several at a time
            "pyyaml>=6",  # reads the JobSet of launch/
            "ruff>=0.9",  # format and lint
            "scikit-image>=0.24",  # what SSIM is checked against
            "setuptools>=70",  # builds the package as an installation does
        ],
    },
    entry_points={"console_scripts": ["ummcsgm = ummcsgm.main:run"]},
)
