"""Weights from the Hugging Face hub, by a name such as timm/mobilenetv2_100.ra_in1k."""

import re
from pathlib import Path

from mnv2.runtime.errors import UserError

# The preferred files come first. Pickles are not downloaded.
PATTERNS = ("model.safetensors", "*.safetensors", "*.keras", "*.weights.h5", "*.h5")


def is_repository_name(text: str) -> bool:
    """Returns whether `text` has the form OWNER/NAME and does not look like a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def download(name: str) -> Path:
    """Downloads the weights of a repository, unless they are in the local cache of the hub.

    Returns the path of the file of weights; `config.json` is next to it if the repository has one.
    Raises UserError if there is no such repository, if the hub cannot be reached, or if the
    repository holds no weights in a known format.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(
            huggingface_hub.snapshot_download(name, allow_patterns=[*PATTERNS, "config.json"])
        )
    except errors.RepositoryNotFoundError:
        raise UserError(f"no file {name}, and no such repository on the hub") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError):
        raise UserError(
            f"no file {name}, and the hub ({huggingface_hub.constants.ENDPOINT}) cannot be "
            "reached: check the Internet connection, or give the path of a local file"
        ) from None
    for pattern in PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise UserError(f"{name} on the hub holds no weights in {', '.join(PATTERNS)}")
