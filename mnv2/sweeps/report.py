"""The report of a sweep: a table, printed and written, and a figure."""

from mnv2.runtime.errors import RunsFailed, UserError, reason
from mnv2.runtime.files import AnyPath, write_text
from mnv2.runtime.layout import REPORT
from mnv2.runtime.terminal import first_few
from mnv2.sweeps import figure, tables, workdir
from mnv2.sweeps.statistics import compare_all, rows


def write_report(folder: AnyPath) -> None:
    """Prints the table of the finished runs in `folder`; writes report.md, .csv and .png there.

    Raises UserError if no run is finished, and if the files cannot be written.
    """
    sweep = workdir.load(folder)
    simultaneous = compare_all(sweep)
    finished = rows(sweep, simultaneous)
    if not finished:
        raise UserError(f"no run in {folder} is finished yet")
    print(f"\n{tables.terminal_table(sweep, finished)}\n")
    if missing := sweep.missing():
        print(f"not finished: {first_few(missing, 8)}\n")
    try:
        write_text(folder / f"{REPORT}.md", tables.markdown(sweep, finished, simultaneous))
        write_text(folder / f"{REPORT}.csv", tables.to_csv(finished))
        figure.draw(sweep, finished, folder / f"{REPORT}.png")
        figure.write_to_tensorboard(folder / f"{REPORT}.png", folder / REPORT)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {reason(error)}") from error
    print(f"report    {folder}/{REPORT}.md, {REPORT}.csv, {REPORT}.png")
    print(f"curves    tensorboard --logdir {folder}")


def finish(folder: AnyPath, failed: dict[str, str], *, reports: bool) -> None:
    """Writes the report, if it is wanted and any run is finished.

    Raises RunsFailed if any run failed, with the names of these runs and the reasons.
    """
    if reports and any(workdir.load(folder).results.values()):
        write_report(folder)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of the runs failed: "
            + "; ".join(f"{name}: {message}" for name, message in failed.items())
        )
