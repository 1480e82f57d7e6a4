"""Why a command line cannot be used, in one line and without the words of the flags library."""

import re
import traceback
from collections.abc import Iterator

from absl import flags

from mnv2.runtime.errors import UserError, check_choice

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "values separated by commas",
}


def explanation(error: Exception, known: flags.FlagValues, config_file: str | None) -> str:
    """Says what is wrong with the flags, or with the program in the config file."""
    if config_file and (text := _of_config(error, config_file)):
        return text
    text = str(error)
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown(error.flagname, known)
    if match := re.search(r'Did you mean "(\S+)" instead of "(\S+)"', text):
        return f"unknown config field {match[2]!r}: did you mean {match[1]!r}?"
    if isinstance(error, AttributeError | KeyError):
        name = re.sub(r"[\"']", "", text)
        return f"unknown config field {name!r}: see configs/defaults.py"
    if match := re.match(r"Type <.*> of field (\S+) is not supported for overriding", text):
        return f"{match[1]} is what the config file makes of its other fields: change it there"
    if match := re.match(r"flag --(\S+?)=.* as a ConfigDict", text):
        return f"--{match[1]} is a group of fields: set one of them, as --{match[1]}.NAME"
    if match := re.match(r"flag --([^=\s]+)=(.*?): ", text, re.DOTALL):
        return _bad_value(match[1], match[2], known) or text
    return text


def _of_config(error: BaseException, config_file: str) -> str | None:
    """Explains an error of the config file itself; None if it is not one."""
    for one in _causes(error):
        if isinstance(one, SyntaxError):
            return f"{one.filename}, line {one.lineno}: {one.msg}"
        if "has no attribute 'get_config'" in str(one):
            return f"{config_file} has no function get_config, which returns the config"
        frames = traceback.extract_tb(one.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == config_file]
        if lines and isinstance(one, ValueError):  # a message for the user
            return f"{config_file}: {one}"
        if lines:
            return f"{config_file}, line {lines[-1]}: {type(one).__name__}: {one}"
        if frames and frames[-1].name == "parse" and "get_config()" in str(one):
            return f"{config_file}: {one}"  # called with or without a preset
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Lists an error and those that led to it, the first one first."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return reversed(chain)


def _unknown(name: str, known: flags.FlagValues) -> str:
    try:
        check_choice(name, list(known), "flag")
    except UserError as error:
        nearest = re.search(r"did you mean '(.+)'", str(error))
        return f"unknown flag --{name}: " + (
            f"did you mean --{nearest[1]}?" if nearest else "see --help"
        )
    return f"--{name} cannot be used here"


def _bad_value(name: str, value: str, known: flags.FlagValues) -> str | None:
    """Says what a flag must be; None if its type is not known here."""
    if name not in known:
        return None
    parser = known[name].parser
    if isinstance(parser, flags.EnumParser):
        try:
            check_choice(value, parser.enum_values, f"--{name}")
        except UserError as error:
            return str(error)
    kind = KINDS.get(parser.flag_type())
    if kind is None:
        return None
    low = getattr(parser, "lower_bound", None)
    bound = "" if low is None else f" of {low} or more"
    return f"--{name} must be {kind}{bound}, got {value!r}"
