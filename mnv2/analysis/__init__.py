"""Analyses of networks: complexity, and which classes are confused."""
