"""Counts the instructions of a GPU's kernels: their issue may take longer than their bytes.

XLA writes the PTX of each kernel, and how it is launched, where `dump_to` says. NVIDIA's assembler
and disassembler, which need no GPU, make the machine's instructions of the PTX. Those of a loop
count as often as it runs, if that is a constant of the program.
"""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.speed.compilers.chips import nvidia_programs
from mnv2.runtime.errors import UserError

WARP = 32  # threads
ENTRY = re.compile(r"\.visible \.entry (\w+)\(")
LAUNCH = re.compile(r"^(\d+): k\w+ *\[.*?\] (\w+)")
SIZES = re.compile(r"grid: \[(\d+), (\d+), (\d+)\] threads: \[(\d+), (\d+), (\d+)\]")
OPERATION = re.compile(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)')
CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
LABEL = re.compile(r"^(\.L_x_\d+):")
BRANCH = re.compile(r"BRA `\((\.L_x_\d+)\)")
# A register that counts, and the constant that it is compared with; or 0.
COUNT = re.compile(r"(?:VIADD|U?IADD3) (U?R\d+),(?: P\d,)? \1(?:\.reuse)?, (-?0x[0-9a-f]+)")
BOUND = re.compile(r"ISETP\.NE\S* \w+, \w+, (U?R\d+)(?:\.reuse)?, (0x[0-9a-f]+), U?PT")
DOWN = re.compile(r"ISETP\.NE\S* \w+, \w+, RZ, (U?R\d+)")


def dump_to(folder: str) -> dict[str, str]:
    """Returns the compiler's options by which XLA writes PTX and launches into a folder."""
    return {"xla_dump_to": folder, "xla_dump_emitter_re": "ptx"}


class Launch(NamedTuple):
    """How a kernel is launched: the name of its code, and its warps, which are 0 for libraries."""

    code: str
    warps: int


class Code(NamedTuple):
    """What a thread of a kernel does.

    Attributes:
        instructions: How many a thread executes; None if that of a loop's rounds is unknown.
        narrow: Instructions in the code that load two bytes from memory.
        registers: Of a thread.
        spilled: Bytes that do not fit into registers, written and read.
    """

    instructions: int | None
    narrow: int
    registers: int
    spilled: int


def launches(folder: Path) -> dict[str, Launch]:
    """Returns how each operation of a compiled program is launched. Raises UserError if unknown."""
    try:
        (sequence,) = folder.glob("*thunk_sequence.txt")
        (metadata,) = folder.glob("*thunk_metadata.txt")
    except ValueError:
        raise UserError(
            "XLA did not write how kernels are launched: its dump has changed"
        ) from None
    operations = OPERATION.findall(metadata.read_text(encoding="utf-8"))
    names = {number: name for name, number in operations}
    found = {}
    for line in sequence.read_text(encoding="utf-8").splitlines():
        if not (match := LAUNCH.match(line)) or (name := names.get(str(int(match[1])))) is None:
            raise UserError(f"XLA's list of kernels has changed: {line[:80]!r} cannot be read")
        sizes = SIZES.search(line)
        grid, threads = np.array(sizes.groups() if sizes else [0] * 6, int).reshape(2, 3).prod(1)
        found[name] = Launch(match[2], int(grid * -(-threads // WARP)))
    return found


def sources(folder: Path) -> dict[str, Path]:
    """Returns the PTX of each kernel. Raises UserError if there is none."""
    found = {}
    for path in folder.glob("*.ptx"):
        found.update(dict.fromkeys(ENTRY.findall(path.read_text(encoding="utf-8")), path))
    if not found:
        raise UserError("XLA wrote no PTX: its option xla_dump_emitter_re has changed")
    return found


def assembled(ptx: Path) -> Code:
    """Assembles the PTX of a kernel and reads what it became."""
    (architecture,) = re.findall(r"(?m)^\.target (\w+)", ptx.read_text(encoding="utf-8"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        said = _run("ptxas", "-v", f"-arch={architecture}", "-o", cubin.name, str(ptx))
        code = read(_run("nvdisasm", "-c", cubin.name))
    registers, spilled = (re.findall(what, said) for what in (r"Used (\d+)", r"(\d+) bytes spill"))
    return code._replace(registers=int(registers[0]), spilled=sum(map(int, spilled)))


def read(text: str) -> Code:
    """Counts what a thread does, from the disassembler's text. Raises UserError if it is empty."""
    often: list[int] = []
    lines: list[str] = []
    begins: dict[str, int] = {}
    known = True
    for line in text.splitlines():
        if label := LABEL.match(line):
            begins[label[1]] = len(lines)
        elif (found := CODE.search(line)) and not found[1].startswith("NOP"):
            lines.append(found[1])
            often.append(1)
            branch = BRANCH.search(found[1])
            if branch and (begin := begins.get(branch[1], len(lines) - 1)) < len(lines) - 1:
                trips = _trips("\n".join(lines[:begin]), "\n".join(lines[begin:]))
                known &= trips is not None
                often[begin:] = [count * (trips or 1) for count in often[begin:]]
    if not lines:
        raise UserError("nvdisasm printed no instructions: its text has changed")
    return Code(sum(often) if known else None, sum("LDG.E.U16" in line for line in lines), 0, 0)


def _trips(before: str, loop: str) -> int | None:
    """Returns how often a loop runs; None if no register counts to a constant in equal steps.

    The compiler makes loops count up from 0, or down from a constant to 0.
    """
    steps = {counter: int(step, 16) for counter, step in COUNT.findall(loop)}
    bounds = {counter: int(bound, 16) for counter, bound in sorted(BOUND.findall(loop))}
    trips = [bound // steps[counter] for counter, bound in bounds.items()
             if steps.get(counter, 0) > 0 and bound % steps[counter] == 0]  # fmt: skip
    for counter in DOWN.findall(loop):
        starts = re.findall(rf"MOV\S* {counter}, (?:RZ, RZ, )?(0x[0-9a-f]+)", before)
        if steps.get(counter) == -1 and starts:
            trips.append(int(starts[-1], 16))
    return max(trips, default=None)


def _run(tool: str, *arguments: str) -> str:
    program = shutil.which(tool, path=nvidia_programs())
    if program is None:
        raise UserError(f"{tool} is not installed: make h100 installs it")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{tool} failed: {done.stderr.strip()[-200:]}")
    return done.stdout + done.stderr
