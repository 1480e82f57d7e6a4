"""The measurements and predictions of `experiments.latency`: networks, layers, machines."""
