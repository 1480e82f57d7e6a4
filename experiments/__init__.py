"""One command per figure, table or open question. README.md holds the results."""

from mnv2.runtime.cli import silence_libraries

silence_libraries()  # this package consists of commands
