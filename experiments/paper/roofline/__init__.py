"""The measurements and predictions of `experiments.paper.latency`: networks, layers, machines."""
