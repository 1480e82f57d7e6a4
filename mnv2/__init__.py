"""MobileNetV2 and its ablations in JAX and Flax."""

__version__ = "0.2.0"
