"""Weights from the Hugging Face hub, by a name such as timm/mobilenetv2_100.ra_in1k."""

import re
from pathlib import Path

from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

# The preferred files come first. PyTorch's are downloaded only if there are no others.
PATTERNS = ("model.safetensors", "*.safetensors", "*.keras", "*.weights.h5", "*.h5")
TORCH_PATTERNS = ("pytorch_model.bin", "*.bin", "*.pth", "*.pt")
CONFIGS = ("config.json", "preprocessor_config.json")
KNOWN = ", ".join((*PATTERNS, *TORCH_PATTERNS))


def is_repository_name(text: str) -> bool:
    """Returns whether `text` has the form OWNER/NAME and does not look like a path."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def download(name: str) -> Path:
    """Downloads the weights of a repository, unless they are in the local cache of the hub.

    Returns the path of the file of weights; its configs are next to it if the repository has them.
    Raises UserError if there is no such repository, if the hub cannot be reached, or if the
    repository holds no weights in a known format.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        for patterns in (PATTERNS, TORCH_PATTERNS):
            folder = huggingface_hub.snapshot_download(name, allow_patterns=[*patterns, *CONFIGS])
            if found := find_weights(Path(folder)):
                return found
    except errors.RepositoryNotFoundError:
        raise UserError(f"no file {name}, and no such repository on the hub") from None
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError):
        raise UserError(
            f"no file {name}, and the hub ({huggingface_hub.constants.ENDPOINT}) cannot be "
            "reached: check the Internet connection, or give the path of a local file"
        ) from None
    raise UserError(f"{name} on the hub holds no weights in {KNOWN}")


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
