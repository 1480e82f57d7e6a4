"""The comparison of frameworks, used by `experiments.throughput` and `experiments.scaling`."""
