"""The command line of a command with --config and --workdir: parsed, or refused in one line."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from mnv2.runtime.cli import fail, leave_unread, silence_libraries
from mnv2.runtime.errors import UserError, causes, first_line
from mnv2.runtime.files import AnyPath, as_path, check_can_be_written, did_you_mean, given_folder

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


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line, for `absl.app.run`; ends with one line if it cannot be used."""
    silence_libraries()
    config_file = None
    try:
        argv, config_file = _prepared(argv)
        rest = flags.FLAGS(argv)
        if len(rest) > 1:
            raise UserError(f"unexpected argument {rest[1]!r}: see --help")
        if config_file is None:
            raise UserError("no --config given: try --config configs/v2_ablation.py, or --help")
        config = CONFIG.value
        getattr(config, "arms", None)  # a config that failed to load raises when it is used
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(
                f"get_config in {config_file} must return an ml_collections.ConfigDict, not a "
                f"{type(config).__name__}"
            )
    except BrokenPipeError:
        leave_unread()
    except SystemExit as ended:
        help_is_shown = any(word.lstrip("-").startswith("help") for word in argv)
        sys.exit(0 if help_is_shown else ended.code)  # absl's code is 1 there
    except Exception as error:  # a config file is a program, which may raise anything
        fail(_explained(error, config_file))
    return rest


def _explained(error: BaseException, config_file: str | None) -> str:
    """Returns the message of an error, with its line if it was raised in the config file."""
    if isinstance(error, UserError):
        return str(error)
    for cause in causes(error) if config_file else ():
        if isinstance(cause, SyntaxError):
            return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
        frames = traceback.extract_tb(cause.__traceback__)
        if lines := [frame.lineno for frame in frames if frame.filename == config_file]:
            kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
            return f"{config_file}, line {lines[-1]}: {kind}{first_line(cause)}"
    if isinstance(error, flags.UnrecognizedFlagError) and (field := _field_like(error.flagname)):
        return f"no flag --{error.flagname}: did you mean --config.{field}?"
    if isinstance(error, flags.Error):
        return str(error)
    if isinstance(error, KeyError | AttributeError) and "get_config" not in str(error):
        return f"no such field of the config (see docs/fields.md): {error.args[0]}"
    return f"{config_file or 'the command line'}: {error}"


def _field_like(flag: str) -> str | None:
    """Returns the field of the config whose last name is that of an unknown flag, or None."""
    config = flags.FLAGS["config"].value
    groups = {"": config} if isinstance(config, ml_collections.ConfigDict) else {}
    for name, value in groups.get("", {}).items():
        if isinstance(value, ml_collections.ConfigDict):
            groups[f"{name}."] = value
    name = flag.replace("-", "_")
    return next((group + name for group, fields in groups.items() if name in fields), None)


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
    there may be files that are called as other modules are.
    """
    folder = config_file.parent.resolve()
    sys.path.append(str(folder.parent))
    if folder.name.isidentifier() and folder.name not in sys.modules:
        spec = importlib.util.find_spec(folder.name)
        locations = list(spec.submodule_search_locations or ()) if spec else []
        if str(folder) not in map(os.path.realpath, locations[:1]):
            sys.path.insert(0, str(folder.parent))


def _existing(given: str) -> Path:
    if not given:
        raise UserError("--config is empty: try --config configs/v2_ablation.py")
    path = Path(given).expanduser()
    if path.is_dir():
        raise UserError(f"{given} is a folder: give a config file in it")
    if not path.exists():
        hint = did_you_mean(path) or ": try configs/v2_ablation.py"
        raise UserError(f"no config file {given}{hint}")
    return path
