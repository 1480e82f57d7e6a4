"""Commands that answer one question each: about the paper in paper/, about speed in speed/."""

from mnv2.runtime.cli import silence_libraries

silence_libraries()  # this package consists of commands
