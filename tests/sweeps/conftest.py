import pytest

from mnv2.sweeps import figure


@pytest.fixture
def three_runs(tiny_config, fashion_mnist):
    """A sweep of three arms with one seed each."""
    tiny_config.arms = (("a", {}), ("b", {}), ("c", {}))
    tiny_config.baseline = "a"
    tiny_config.panels = ()
    tiny_config.seeds = 1
    return tiny_config


@pytest.fixture
def no_figure(monkeypatch):
    """Leaves the figure out of reports: to draw it takes longer than all the rest."""
    monkeypatch.setattr(figure, "draw", lambda *_: None)
    monkeypatch.setattr(figure, "write_to_tensorboard", lambda *_: None)
