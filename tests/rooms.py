"""Draws the rooms of the package from its imports: python -m tests.rooms

Writes the diagram into CONTRIBUTING.md. A test compares the two.
"""

import re
from pathlib import Path

import grimp

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
MARKS = re.compile(r"(<!-- rooms -->\n).*?(<!-- end of rooms -->)", re.DOTALL)
COMMANDS = "commands"


def rooms() -> dict[str, set[str]]:
    """Returns each room, and the rooms that its modules import."""
    graph = grimp.build_graph("mnv2")
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = _room(module), _room(imported)
            if source and target and source != target:
                found.setdefault(source, set()).add(target)
    return found


def diagram() -> str:
    """Returns a Mermaid diagram without the arrows that follow from others."""
    imports = rooms()
    arrows = [
        f"    {source} --> {target}"
        for source in sorted(imports)
        for target in sorted(imports[source])
        if not any(target in _below(imports, other) for other in imports[source] - {target})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", ""])


def _room(module: str) -> str | None:
    """Returns the room of a module; None for the package itself, which all modules share."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    folder = CONTRIBUTING.parent / "mnv2" / parts[0]
    return parts[0] if folder.is_dir() else COMMANDS


def _below(imports: dict[str, set[str]], room: str) -> set[str]:
    """Returns all rooms that a room imports, directly or not."""
    direct = imports.get(room, set())
    return direct.union(*(_below(imports, other) for other in direct))


def main() -> None:
    text = MARKS.sub(lambda match: match[1] + diagram() + match[2], CONTRIBUTING.read_text())
    CONTRIBUTING.write_text(text)


if __name__ == "__main__":
    main()
