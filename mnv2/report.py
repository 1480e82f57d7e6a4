"""Writes the report of the finished runs: python -m mnv2.report WORKDIR

The report is a table with confidence intervals and, of two arms or more, a
figure. It is printed, and written to WORKDIR as report.md, report.csv and
report.png, and for TensorBoard. It can be made at any time: runs that are not
finished are named and left out.
"""

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.files import given_folder


def main() -> None:
    parser = command_parser("mnv2.report", __doc__)
    parser.add_argument("workdir", metavar="WORKDIR")
    workdir = given_folder(parser.parse_args().workdir, "WORKDIR")
    from mnv2.sweeps.report import write_report  # imports SciPy, which --help does not wait for

    write_report(workdir)


if __name__ == "__main__":
    run(main)
