"""Views and pipelines of texts, for tests."""

from mnv2.preprocess import MIX, PICTURES, Pipeline, parse
from mnv2.preprocess.host import View


def view_of(text: str = "", size=(28, 28), channels: int = 1) -> View:
    """What training makes of a picture on the host."""
    return View(parse(text, "view"), size, channels, rounds=True)


def eval_view_of(text: str = "fit", size=(28, 28), channels: int = 1) -> View:
    """What evaluation makes of a picture."""
    return View(parse(text, "view"), size, channels)


def on_device(text: str) -> Pipeline:
    """What the devices do to a batch."""
    return Pipeline(parse(text, "pipeline").of(PICTURES, MIX))
