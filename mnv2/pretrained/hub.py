"""Weights from the Hugging Face hub, by a name such as timm/mobilenetv2_100.ra_in1k.

OWNER/NAME@REVISION pins a branch, a tag or a commit.
"""

from pathlib import Path

from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

# The preferred files come first. PyTorch's are downloaded only if there are no others.
PATTERNS = ("model.safetensors", "*.safetensors", "*.keras", "*.weights.h5", "*.h5")
TORCH_PATTERNS = ("pytorch_model.bin", "*.bin", "*.pth", "*.pt")
CONFIGS = ("config.json", "preprocessor_config.json")


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

    Returns the file of weights, with its configs next to it. Raises UserError, with the hub's own
    reason, if there are none.
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
        said = " ".join(str(error).split())[:500] or type(error).__name__
        raise UserError(f"no file {name}, and from the hub: {said}") from error
    raise UserError(f"{name} on the hub has none of {', '.join(PATTERNS + TORCH_PATTERNS)}")


def find_weights(folder: Path) -> Path | None:
    """Returns the file of weights in a folder, or None. Notes if there are several."""
    for pattern in (*PATTERNS, *TORCH_PATTERNS):
        if found := sorted(folder.glob(pattern)):
            if len(found) > 1:
                others = ", ".join(path.name for path in found[1:5])
                note(f"{folder}: read {found[0].name}, but not {others}")
            return found[0]
    return None
