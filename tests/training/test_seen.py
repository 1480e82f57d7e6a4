import numpy as np
import pytest
from PIL import Image

from configs import imagenet
from mnv2.sweeps.plan import with_arms
from mnv2.training import seen
from mnv2.training.config import from_config
from tests.views import on_device, view_of


def test_a_config_can_be_looked_at_before_it_trains(tiny_config, tmp_path):
    tiny_config.data.train = "pad_crop|flip|mix(cutmix=1.0)"
    seen.draw_seen(from_config(tiny_config), tmp_path / "seen.png")
    with Image.open(tmp_path / "seen.png") as drawn:
        assert drawn.width > 800
        assert np.asarray(drawn.convert("L")).std() > 10  # not blank


def test_without_its_data_set_a_config_shows_a_photograph_and_leaves_nothing(tmp_path, capsys):
    config = with_arms(imagenet.get_config("d_li14"))
    config.data.dir = str(tmp_path)
    seen.draw_seen(from_config(config), tmp_path / "seen.png")
    assert [path.name for path in tmp_path.iterdir()] == ["seen.png"]
    said = "note: imagenet2012 is not prepared here, so the pictures are crops of a photograph\n"
    assert capsys.readouterr().err == said


def test_without_augmentation_training_has_one_column(tiny_config, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(seen, "draw_grid", lambda rows, columns, path: shown.append(columns))
    for train in ("", "pad_crop"):
        tiny_config.data.train = train
        tiny_config.batch_size = 10**6  # looking needs no batch
        seen.draw_seen(from_config(tiny_config), tmp_path / "seen.png")
    assert [columns.count("training") for columns in shown] == [1, seen.VERSIONS]


def test_versions_of_a_picture_differ_and_mixed_ones_have_both_pictures():
    zeros, ones = (np.full((20, 20, 3), value, np.uint8) for value in (0, 255))
    view = view_of(size=(20, 20), channels=3)
    one, other = (
        seen.trained([ones], view, version, on_device("erase(1.0, fill=7)")) for version in (0, 1)
    )
    assert not np.array_equal(one, other)
    assert set(np.unique(one)) == {7, 255}
    mixed = seen.trained([zeros, ones], view, 3, on_device("mix(cutmix=1.0)"))
    assert set(np.unique(mixed)) == {0.0, 255.0}
    assert mixed[0].mean() == pytest.approx(255 - mixed[1].mean())
