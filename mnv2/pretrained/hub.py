"""Weights from the Hugging Face hub, by name such as timm/mobilenetv2_100.ra_in1k."""

import re
from pathlib import Path

from mnv2.runtime.errors import UserError

# Best first. Pickles are not fetched.
PATTERNS = ("model.safetensors", "*.safetensors", "*.keras", "*.weights.h5", "*.h5")


def is_name(text: str) -> bool:
    """True for OWNER/NAME, which may be on the hub, and not for what looks like a file."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def download(name: str) -> Path:
    """Fetches a repository's weights, or finds them where they were fetched before."""
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
            f"no file {name}, and the hub ({huggingface_hub.constants.ENDPOINT}) is out of reach: "
            "is there a network? Weights from elsewhere are given by their path"
        ) from None
    for pattern in PATTERNS:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise UserError(f"{name} on the hub holds no weights in {', '.join(PATTERNS)}")
