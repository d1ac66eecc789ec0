"""Table 1 of Meng et al. 2022 (arXiv 2207.03430): BraTS 2019, three modalities given.

PSNR in dB, SSIM in %, MAE in grey levels; mean and standard deviation over subjects.
"""

MODALITIES = ("flair", "t1", "t1c", "t2")
METRICS = ("psnr", "ssim_global", "mae")
PERCENT = {"ssim_global": 0.01}  # what a printed number is multiplied with

TABLE = {
    "mm-csn": (
        ((25.73, 1.94), (98.13, 0.60), (5.32, 1.29)),
        ((29.92, 1.47), (98.92, 0.24), (3.41, 0.59)),
        ((27.81, 1.65), (98.57, 0.48), (4.08, 1.16)),
        ((26.41, 1.72), (98.52, 0.73), (4.83, 1.30)),
    ),
    "mm-gan": (
        ((23.98, 2.76), (97.74, 0.78), (6.61, 1.95)),
        ((28.01, 1.63), (98.64, 0.36), (4.33, 0.82)),
        ((26.24, 1.74), (98.31, 0.54), (5.02, 1.22)),
        ((25.09, 1.65), (98.19, 0.80), (5.81, 1.50)),
    ),
    "ucdgan": (
        ((23.70, 2.69), (97.72, 0.77), (6.74, 1.96)),
        ((27.44, 1.62), (98.56, 0.39), (4.54, 0.91)),
        ((25.99, 1.73), (98.27, 0.56), (5.10, 1.28)),
        ((24.49, 1.47), (98.11, 0.76), (6.14, 1.44)),
    ),
    "hi-net": (
        ((24.02, 2.81), (97.88, 0.85), (6.56, 1.99)),
        ((28.44, 1.58), (98.68, 0.34), (4.10, 0.79)),
        ((26.31, 1.76), (98.33, 0.56), (4.98, 1.32)),
        ((24.73, 1.77), (98.12, 0.89), (5.90, 1.61)),
    ),
    "mm-syn": (
        ((21.66, 1.19), (96.58, 0.63), (8.41, 1.33)),
        ((23.12, 1.40), (96.82, 0.58), (7.20, 1.36)),
        ((18.54, 1.45), (92.65, 0.17), (12.51, 2.05)),
        ((18.26, 1.28), (94.31, 0.12), (12.14, 1.99)),
    ),
    "cocagan": (
        ((23.14, 1.31), (97.41, 0.69), (7.64, 1.48)),
        ((26.28, 1.73), (98.16, 0.54), (5.20, 1.11)),
        ((25.12, 1.80), (97.82, 0.69), (5.66, 1.50)),
        ((18.93, 1.54), (95.32, 1.62), (12.62, 2.75)),
    ),
}


def rows() -> list[dict]:
    """The table's numbers, a row each, in the units of ours: SSIM is a fraction.

    The paper does not say which SSIM it is; only the one with a single global window
    is within reach of these values.
    """
    return [
        {
            "method": method,
            "modality": modality,
            "metric": metric,
            "mean": mean * PERCENT.get(metric, 1),
            "sd": sd * PERCENT.get(metric, 1),
        }
        for method, modalities in TABLE.items()
        for modality, cells in zip(MODALITIES, modalities, strict=True)
        for metric, (mean, sd) in zip(METRICS, cells, strict=True)
    ]
