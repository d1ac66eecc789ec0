"""From files on disk to training batches, and from volumes back to files; no JAX."""
