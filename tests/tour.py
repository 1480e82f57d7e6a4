"""Runs the notebook docs/tour.ipynb from a clean kernel: python -m tests.tour [--write]

A cell that fails raises an error. With --write, the outputs are stored in the notebook.
"""

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def execute() -> nbformat.NotebookNode:
    """Returns the notebook with new outputs. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parents[1])}}
    return NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tour", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store the outputs")
    arguments = parser.parse_args()
    notebook = execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
    if arguments.write:
        nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {len(notebook.cells)} cells ran")


if __name__ == "__main__":
    main()
