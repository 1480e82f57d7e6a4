"""The command line of a command with --config and --workdir: parsed, or refused in one line."""

import ast
import difflib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from mnv2.runtime.cli import fail, silence_libraries
from mnv2.runtime.errors import UserError, first_line
from mnv2.runtime.files import AnyPath, as_path, check_can_be_written, given_folder

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the runs and the report, or gs://BUCKET/FOLDER (default: runs/NAME-PRESET).",
)
FLAGS = ("--config", "-config")


def workdir_flag() -> AnyPath:
    """Returns the folder of the runs. Raises UserError if it can be none."""
    if WORKDIR.value is None:  # configs/v2_ablation.py:full -> runs/v2_ablation-full
        path, _, preset = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
        folder = as_path(Path("runs") / "-".join(filter(None, (Path(path).stem, preset))))
    else:
        folder = given_folder(WORKDIR.value, "--workdir")
    check_can_be_written(folder, "--workdir")
    return folder


def parse_flags(argv: Sequence[str], gone: Mapping[str, str] | None = None) -> list[str]:
    """Parses a command line, for `absl.app.run`; ends with one line if it cannot be used.

    `gone` has the flags of earlier versions, and what to write now.
    """
    silence_libraries()
    config_file = None
    try:
        for word in argv:
            if (name := word.lstrip("-").partition("=")[0]) in (gone or {}):
                raise UserError(f"--{name} is gone: {(gone or {})[name]}")
        argv, config_file = _prepared(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: see --help")
        if config_file is None:
            raise UserError("no --config given: try --config configs/v2_ablation.py, or --help")
        config = CONFIG.value
        getattr(config, "arms", None)  # a config that failed to load raises when it is used
        if not isinstance(config, ml_collections.ConfigDict):
            kind = "None" if config is None else f"a {type(config).__name__}"
            raise UserError(
                f"get_config in {config_file} must return an ml_collections.ConfigDict, not {kind}"
            )
    except Exception as error:  # a config file is a program, which may raise anything
        fail(_explained(error, config_file))
    return rest


def _explained(error: BaseException, config_file: str | None) -> str:
    """Returns the message of an error, with its line if it was raised in the config file."""
    if isinstance(error, UserError):
        return str(error)
    cause: BaseException | None = error
    while cause is not None and config_file is not None:
        if isinstance(cause, SyntaxError):
            return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
        frames = traceback.extract_tb(cause.__traceback__)
        if lines := [frame.lineno for frame in frames if frame.filename == config_file]:
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{config_file}, line {lines[-1]}: {kind}{first_line(cause)}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, flags.Error):
        return str(error)
    if isinstance(error, KeyError | AttributeError) and "get_config" not in str(error):
        return f"no such field of the config (see docs/fields.md): {error.args[0]}"
    return f"{config_file or 'the command line'}: {error}"


def _prepared(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the command line with ~ in the name of the config file replaced, and that file.

    Also lets the file import its neighbours, as `configs.finetune`, from any folder. Raises
    UserError if there is no such file.
    """
    words = list(argv)
    config_file = None
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag not in FLAGS:
            continue
        if not equals and (i + 1 == len(words) or words[i + 1].startswith("-")):
            raise UserError("--config needs a file: try --config configs/v2_ablation.py")
        given, colon, preset = (value if equals else words[i + 1]).partition(":")
        path = _existing(given)
        if equals:
            words[i] = f"{flag}={path}{colon}{preset}"
        else:
            words[i + 1] = f"{path}{colon}{preset}"
        _make_importable(path)
        config_file = str(path)
    return words, config_file


def _make_importable(config_file: Path) -> None:
    """Lets a config file import its neighbours, as `configs.finetune`.

    Its folder's parent comes first only if another package of that name would be found otherwise:
    there may be files that are called as other modules are. Raises UserError if another one is
    found even then, because it was imported already or is the only one with an __init__.py.
    """
    folder = config_file.parent.resolve()
    sys.path.append(str(folder.parent))
    if not _imports_neighbours(config_file, folder):
        return
    if folder.name not in sys.modules and _places(folder.name)[0] != str(folder):
        sys.path.insert(0, str(folder.parent))
    if (found := _places(folder.name)[0]) != str(folder):
        raise UserError(
            f"{config_file} imports its neighbours as {folder.name}.NAME, but another "
            f"{folder.name} is found first, in {found}: rename one of them"
        )


def _imports_neighbours(config_file: Path, folder: Path) -> bool:
    """Tells whether a config file imports files of its folder by the folder's name."""
    try:
        tree = ast.parse(config_file.read_bytes())
    except (SyntaxError, ValueError):  # it is reported when the file is run
        return False
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    names = [name.split(".")[1] for name in modules if name.startswith(f"{folder.name}.")]
    return any((folder / name).is_dir() or (folder / f"{name}.py").exists() for name in names)


def _places(package: str) -> list[str]:
    """Returns the folders in which modules of a package are looked for, or the file of a module."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return [""]
    return [
        os.path.realpath(place) for place in spec.submodule_search_locations or [spec.origin or ""]
    ]


def _existing(given: str) -> Path:
    if not given:
        raise UserError("--config is empty: try --config configs/v2_ablation.py")
    try:
        path = Path(given).expanduser()
        if path.is_dir():
            raise UserError(f"{given} is a folder: give a config file in it")
        if not path.exists():
            others = [str(other) for other in path.parent.glob("*.py")]
            nearest = difflib.get_close_matches(str(path), others, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]}?" if nearest else "try configs/v2_ablation.py"
            raise UserError(f"no config file {given}: {hint}")
        with path.open("rb"):
            return path
    except RuntimeError:
        raise UserError(f"no config file {given}: there is no such home folder") from None
    except OSError as error:
        raise UserError(f"cannot read the config file {given}: {error.strerror}") from error
