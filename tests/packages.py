"""Draws the packages of mnv2 from their imports: python -m tests.packages

Writes the diagram into CONTRIBUTING.md. A test compares the two.
"""

import re
from pathlib import Path

import grimp

CONTRIBUTING = Path(__file__).parents[1] / "CONTRIBUTING.md"
MARKS = re.compile(r"(<!-- packages -->\n).*?(<!-- end of packages -->)", re.DOTALL)
COMMANDS = "commands"


def packages() -> dict[str, set[str]]:
    """Returns each package, and the packages that its modules import."""
    graph = grimp.build_graph("mnv2")
    found: dict[str, set[str]] = {}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = _package(module), _package(imported)
            if source and target and source != target:
                found.setdefault(source, set()).add(target)
    return found


def diagram() -> str:
    """Returns a Mermaid diagram without the arrows that follow from others."""
    imports = packages()
    arrows = [
        f"    {source} --> {target}"
        for source in sorted(imports)
        for target in sorted(imports[source])
        if not any(target in _below(imports, other) for other in imports[source] - {target})
    ]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", ""])


def _package(module: str) -> str | None:
    """Returns the package of a module; None for mnv2 itself, which all modules share."""
    parts = module.split(".")[1:]
    if not parts:
        return None
    folder = CONTRIBUTING.parent / "mnv2" / parts[0]
    return parts[0] if folder.is_dir() else COMMANDS


def _below(imports: dict[str, set[str]], package: str) -> set[str]:
    """Returns all packages that a package imports, directly or not."""
    direct = imports.get(package, set())
    return direct.union(*(_below(imports, other) for other in direct))


def main() -> None:
    text = MARKS.sub(lambda match: match[1] + diagram() + match[2], CONTRIBUTING.read_text())
    CONTRIBUTING.write_text(text)


if __name__ == "__main__":
    main()
