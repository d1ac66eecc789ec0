"""`python -m ummcsgm.benchmarks.<name>`: ratios measured side by side in one run."""
