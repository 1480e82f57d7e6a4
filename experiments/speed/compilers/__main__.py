"""Compiles one training step, in a process of its own: a compiler's crash then ends nothing else.

`experiments.speed.chips` starts it with TASK FRAMEWORK CHIP and reads the JSON that it prints.
"""

import dataclasses
import json
import sys

from experiments.speed.compilers.chips import CHIPS, one_chip
from experiments.speed.compilers.cost import compile_and_read
from experiments.speed.compilers.steps import TASKS, lower


def main() -> None:
    task, framework, chip = sys.argv[1:]
    lowered = lower(TASKS[task], framework, one_chip(CHIPS[chip]))
    cost = compile_and_read(lowered, CHIPS[chip], disassemble=framework == "mnv2")
    print(json.dumps(dataclasses.asdict(cost)))


if __name__ == "__main__":
    main()
