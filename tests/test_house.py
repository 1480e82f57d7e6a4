"""What keeps the code readable: short functions, shallow closures, few frames to the gradient."""

import ast
import os
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnv2.sweeps import launch
from tests.commands import SERVER

ROOT = Path(__file__).parents[1]
LINES = 60  # of a function
LONGER = {  # with what they may have
    "mnv2/training/loop.py train": 80
}
FRAMES, FILES = 9, 5  # from `main` to the gradient
SMALL = """
from configs import v2_ablation

def get_config():
    config = v2_ablation.get_config("quick")
    config.model.update(width=0.1, repeats=(1, 0, 0, 0, 0, 0, 0))
    config.batch_size = 16
    return config
"""


def functions(node: ast.AST, depth: int = 0) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Lists the functions in a module, and in how many others each of them is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child, depth
            yield from functions(child, depth + 1)
        else:
            yield from functions(child, 0 if isinstance(child, ast.ClassDef) else depth)


@pytest.mark.parametrize("path", sorted((ROOT / "mnv2").rglob("*.py")), ids=str)
def test_a_function_fits_a_screen_and_closures_are_one_deep(path):
    name = path.relative_to(ROOT).as_posix()
    for function, depth in functions(ast.parse(path.read_text(encoding="utf-8"))):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= LONGER.get(f"{name} {function.name}", LINES), (function.name, lines)
        assert depth <= 1, function.name


def trace(result: Path) -> None:
    """Starts the first copy of the command; writes the frames with which the loss is traced."""
    from mnv2.training import step

    loss_of = step.loss_of

    def spying(*arguments, **options):
        frames = [
            f"{Path(frame.filename).relative_to(ROOT / 'mnv2')} {frame.name}"
            for frame in traceback.extract_stack()
            if Path(frame.filename).is_relative_to(ROOT / "mnv2") and frame.name != "<module>"
        ]
        result.write_text("\n".join([*frames, "training/step.py loss_of"]), encoding="utf-8")
        os._exit(0)
        return loss_of(*arguments, **options)

    step.loss_of = spying
    workdir = str(result.with_name("runs"))
    (result.parent / "workdir").write_text(workdir)
    os.environ.update({launch.COPY: "0", launch.LAUNCH: str(result.parent)})
    config = result.with_name("small.py")
    config.write_text(SMALL, encoding="utf-8")
    sys.argv = ["mnv2.main", f"--config={config}", "--only=linear/0", f"--workdir={workdir}"]
    runpy.run_module("mnv2.main", run_name="__main__", alter_sys=True)


def test_few_frames_lie_between_main_and_the_gradient(fashion_mnist):
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "frames"
        process = SERVER.Process(target=trace, args=(result,))
        process.start()
        process.join()
        frames = result.read_text().splitlines()
    frames = frames[frames.index("main.py main") :]
    assert len(frames) <= FRAMES, frames
    assert len({frame.partition(" ")[0] for frame in frames}) <= FILES, frames
