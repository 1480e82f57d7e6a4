"""Writes docs/fields.md from the table of fields: python -m tests.fields

A test compares the two.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from mnv2.models import NETWORKS, flat_fields
from mnv2.preprocess.text import described
from mnv2.training.config import FIELDS, GROUPS, MODEL, OF_SWEEP

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"
BEGINNING = """# The fields of a config

Each can be set on the command line, as `--config.data.repeats 2`, in a config file, or by an arm.
Fields of `model` in *italics* are not in the default config: a config file or an arm sets them.
This page is made from `mnv2/training/config.py` by `make fields`."""
OPERATIONS = """Of `data.train`, in this order, and of `data.evaluation` (the first kind), as
`"resized_crop(0.2)|flip|erase(0.25)"`. A size of `None` is that of the run."""
INTERNAL = ("num_classes", "axis_name", "bn_frozen")  # fields of networks


def page() -> str:
    """Returns docs/fields.md: every field, its default and what it does."""
    lines = [BEGINNING]
    for prefix, group in GROUPS.items():
        lines += ["", f"## {prefix.rstrip('.') or 'A run'}", "", str(group.__doc__).splitlines()[0]]
        lines += ["", "| field | default | what it does | acts only with |", "|---|---|---|---|"]
        for name, field in FIELDS.items():
            if name.rpartition(".")[0] == prefix.rstrip("."):
                acts_with = field.metadata["acts_with"]
                cells = (f"`{name}`", f"`{field.default!r}`", field.metadata["help"])
                lines.append(row(*cells, acts_with.words if acts_with else ""))
    lines += ["", "## Operations", "", OPERATIONS, "", described()]
    lines += ["", "## Of a sweep", "", "| field | what it is |", "|---|---|"]
    lines += [row(f"`{name}`", said) for name, said in OF_SWEEP.items()]
    lines += ["", "## model", "", "`model.name` chooses the network; the others are its fields."]
    for network, of in NETWORKS.items():
        lines += ["", f"### {network}", "", "| field | default |", "|---|---|"]
        for name, default in flat_fields(of).items():
            if name not in INTERNAL:
                in_defaults = network == MODEL["name"] and name in MODEL
                shown = f"`model.{name}`" if in_defaults else f"*`model.{name}`*"
                default = MODEL[name] if in_defaults else default
                lines.append(row(shown, f"`{readable(default)}`"))
    return "\n".join([*lines, ""])


def readable(default: Any) -> str:
    """Returns a default as one writes it: a type by its name."""
    return repr(jnp.dtype(default).name if isinstance(default, type) else default)


def row(*cells: str) -> str:
    """Returns the line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
