"""Analyses of networks: complexity, roofline, memory, activations, and confused classes."""
