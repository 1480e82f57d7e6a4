"""Weights from the hub: names, revisions, and the reason if there are none."""

import errno

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.pretrained import hub
from mnv2.runtime.errors import UserError
from tests.pretrained import reference
from tests.pretrained.test_torch import REFERENCE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.LocalEntryNotFoundError("Got: refused\nPlease check"), "Got: refused Please check"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), ".*denied: '/a'"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_the_reason_of_the_hub_is_one_line(error, reason, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=f"^no file a/b, and from the hub: {reason}$"):
        hub.download("a/b")


@pytest.mark.parametrize(
    "name",
    [
        *("runs/v2--final", "runs/net.", "exports/a..b", "runs/net.git", f"a/{'b' * 97}"),
        *("./net", "a/b/c", "runs/a b", "a/b@", "net.h5", "none.safetensors", "runs/-x"),
    ],
)
def test_what_cannot_be_a_repository_is_a_file_that_is_missing(name):
    assert not hub.is_repository_name(name)
    with pytest.raises(UserError, match="no such file"):
        pretrained.load(name)


def test_a_revision_is_downloaded_and_its_weights_are_read(tmp_path, monkeypatch):
    asked = []

    def download(repository, revision, **_):
        asked.append((repository, revision))
        return str(tmp_path)

    state = reference.draw_weights(REFERENCE["timm mobilenetv2_050"]["shapes"])
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"pretrained_cfg": {"input_size": [3, 160, 128]}}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("a/b@v1.0", "a/b@refs/pr/1"):
        assert hub.is_repository_name(name)
        hub.download(name)
    assert pretrained.load("a/b").image_size == (160, 128)
    assert asked == [("a/b", "v1.0"), ("a/b", "refs/pr/1"), ("a/b", None)]


def test_pickles_are_downloaded_only_if_there_is_nothing_else(tmp_path, monkeypatch):
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.download("owner/name") == tmp_path / "pytorch_model.bin"
    assert len(asked) == 2
    assert all("preprocessor_config.json" in patterns for patterns in asked)
