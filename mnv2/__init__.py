"""mnv2: MobileNetV2 and its ablations in JAX/Flax."""
