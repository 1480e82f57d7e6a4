"""Weights from the Hugging Face hub, by a name such as timm/mobilenetv2_100.ra_in1k.

OWNER/NAME@REVISION pins a branch, a tag or a commit.
"""

import errno
import ssl
import urllib.request
from pathlib import Path

from mnv2.runtime.errors import UserError, causes, first_line, reason
from mnv2.runtime.terminal import note

# The preferred files come first. PyTorch's are downloaded only if there are no others.
PATTERNS = ("model.safetensors", "*.safetensors", "*.keras", "*.weights.h5", "*.h5")
TORCH_PATTERNS = ("pytorch_model.bin", "*.bin", "*.pth", "*.pt")
CONFIGS = ("config.json", "preprocessor_config.json")
NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC),
    errno.EDQUOT,
)


def is_repository_name(text: str) -> bool:
    """Returns whether `text` can be OWNER/NAME or OWNER/NAME@REVISION and is no path."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, at, revision = text.partition("@")
    if name.startswith(".") or name.count("/") != 1 or (at and not revision):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def download(name: str) -> Path:
    """Downloads the weights of a repository, unless they are in the local cache of the hub.

    `name` is OWNER/NAME, or OWNER/NAME@REVISION for a branch, a tag or a commit. Returns the path
    of the file of weights; its configs are next to it if the repository has them.

    Raises UserError, with the reason, if the weights cannot be had, or if the repository holds none
    in a known format.
    """
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        for patterns in (PATTERNS, TORCH_PATTERNS):
            folder = huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=[*patterns, *CONFIGS]
            )
            if found := find_weights(Path(folder)):
                return found
    except Exception as error:  # of many types: of the hub, of HTTP and of the file system
        raise UserError(f"no file {name}, and from the hub: {_reason(error)}") from error
    known = ", ".join((*PATTERNS, *TORCH_PATTERNS))
    raise UserError(f"{name} on the hub holds no weights in {known}")


def _reason(error: Exception) -> str:
    """Says in one line why nothing comes from the hub, and what to do."""
    from huggingface_hub import constants, errors

    token = "log in with 'hf auth login', or set HF_TOKEN"
    chain = list(causes(error))
    responses = [getattr(cause, "response", None) for cause in chain]
    status = next((x.status_code for x in responses if x is not None), None)
    if isinstance(error, errors.GatedRepoError):
        return f"the repository is gated: accept its conditions on its page, then {token}"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision: give a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository, or it is private: check the name, or {token}"
    if status == 407 or any("Proxy" in type(cause).__name__ for cause in chain):
        return f"the proxy refuses the connection ({first_line(chain[-1])}): see HTTPS_PROXY"
    if found := next(filter(None, map(_on_the_way, chain)), None):
        return found
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the repository is not in the local cache"
    if status in (401, 403):
        return f"it denies access with the status {status}: {token}"
    if status is not None:
        later = ": try again later" if status == 429 or status >= 500 else ""
        return f"it ({constants.ENDPOINT}) answers with the status {status}{later}"
    unreachable = (ConnectionError, TimeoutError, errors.LocalEntryNotFoundError)
    if any(isinstance(cause, unreachable) for cause in chain):
        proxies = urllib.request.getproxies().keys() & {"https", "all"}
        through = " through the proxy of HTTPS_PROXY or ALL_PROXY" if proxies else ""
        return (
            f"it ({constants.ENDPOINT}) cannot be reached{through}: check the Internet "
            "connection, or give the path of a local file"
        )
    return f"{type(error).__name__}: {first_line(error)}"


def _on_the_way(cause: BaseException) -> str | None:
    """Says what is wrong between the hub and the local cache; None if it is nothing there."""
    from huggingface_hub import constants

    is_proxy = isinstance(cause, ImportError | ValueError) and "prox" in str(cause).lower()
    if is_proxy or type(cause).__name__ in ("InvalidURL", "UnsupportedProtocol"):  # of HTTP
        return (
            f"its address or that of a proxy cannot be used ({first_line(cause)}): see "
            "HF_ENDPOINT, HTTPS_PROXY and ALL_PROXY"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {constants.ENDPOINT} or of a proxy is not trusted: SSL_CERT_FILE "
            "names a file of those to trust"
        )
    if isinstance(cause, OSError) and cause.errno in NOT_WRITABLE:
        cache = f"its cache {constants.HF_HUB_CACHE}"
        return f"{cache} cannot be written ({reason(cause)}); HF_HOME chooses another"
    return None


def find_weights(folder: Path) -> Path | None:
    """Returns the file of weights in a folder such as one of the hub; None if there is none.

    If several files match the same pattern, the first is taken, after a note.
    """
    for pattern in (*PATTERNS, *TORCH_PATTERNS):
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                others = ", ".join(path.name for path in found[1:5])
                note(f"{folder}: read {found[0].name}, but not {others}")
            return found[0]
    return None
