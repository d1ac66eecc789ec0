"""The mathematics of the diffusion: SDEs, denoisers, losses, solvers and samplers."""
