"""Synthetic subjects from MR signal equations, to run everything on; see `make`."""
