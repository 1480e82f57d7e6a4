import pytest


@pytest.fixture
def three_runs(tiny_config, fashion_mnist):
    """A sweep of three arms with one seed each."""
    tiny_config.arms = (("a", {}), ("b", {}), ("c", {}))
    tiny_config.baseline = "a"
    tiny_config.panels = ()
    tiny_config.seeds = 1
    return tiny_config
