"""Weights from the hub: names, revisions, and a reason of its own for each way to fail."""

import errno
import ssl
import types
import urllib.request

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.pretrained import hub
from mnv2.runtime.errors import UserError
from tests.pretrained import reference
from tests.pretrained.test_torch import REFERENCE


def of_status(kind, status):
    error = kind.__new__(kind)  # the libraries want responses of their own, which differ
    error.response = types.SimpleNamespace(status_code=status)
    return error


def offline(cause):
    error = errors.LocalEntryNotFoundError("not in the cache")
    error.__cause__ = cause
    return error


class ProxyError(ConnectionError):
    """As the HTTP libraries call it, each in a module of its own."""


class InvalidURL(Exception):
    """Likewise."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (of_status(errors.GatedRepoError, 403), "is gated: accept its conditions"),
        (of_status(errors.RepositoryNotFoundError, 401), "or it is private: .*HF_TOKEN"),
        (of_status(errors.RevisionNotFoundError, 404), "no such revision"),
        (of_status(errors.HfHubHTTPError, 403), "denies access .*403: .*HF_TOKEN"),
        (of_status(errors.HfHubHTTPError, 503), "status 503: try again"),
        (of_status(errors.HfHubHTTPError, 407), "the proxy refuses"),
        (offline(of_status(errors.HfHubHTTPError, 403)), "denies access"),
        (offline(of_status(errors.HfHubHTTPError, 429)), "status 429: try again"),
        (offline(of_status(errors.HfHubHTTPError, 404)), "answers with the status 404$"),
        (offline(ssl.SSLCertVerificationError()), "certificate .* is not trusted: SSL_CERT_FILE"),
        (ProxyError("403 Forbidden"), "the proxy refuses .*403 Forbidden.*HTTPS_PROXY"),
        (ImportError("SOCKS proxy, but no socksio"), "that of a proxy cannot be used .*ALL_PROXY"),
        (OSError(errno.ENOSPC, "No space left"), "cannot be written .No space left.; HF_HOME"),
        (PermissionError(errno.EACCES, "denied"), "cannot be written .denied.; HF_HOME"),
        (NotADirectoryError(errno.ENOTDIR, "a file"), "cannot be written"),
        (InvalidURL("Invalid port: 'x'"), "cannot be used .*Invalid port: 'x'.*HF_ENDPOINT"),
        (offline(None), "cannot be reached: check the Internet connection"),
        (ConnectionError("of the repository net-407"), "cannot be reached: check"),
        (RuntimeError("something else"), "RuntimeError: something else"),
    ],
)
def test_each_cause_has_its_own_line(error, reason, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    with pytest.raises(UserError, match=f"no file a/b, and from the hub: .*{reason}") as raised:
        hub.download("a/b")
    assert "\n" not in str(raised.value)


def test_offline_mode_and_a_proxy_that_cannot_be_reached_are_named(monkeypatch):
    def fail(*_, **__):
        raise offline(ConnectionRefusedError())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@127.0.0.1:1")
    with pytest.raises(UserError, match="reached through the proxy of HTTPS_PROXY") as raised:
        hub.download("a/b")
    assert "secret" not in str(raised.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
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
