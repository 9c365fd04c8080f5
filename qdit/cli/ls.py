"""The console script `qdit-ls`: the studies below a folder, and the runs of a study, finished or not.

A run without a record is under way, or was interrupted: `when` is then the time of the last file that it wrote. Imports
no torch.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten

from tabulate import tabulate

from qdit.cli.entry import carried_out, study_name
from qdit.errors import UserError, did_you_mean
from qdit.storage.names import one_line
from qdit.tables import select
from qdit.tables.cells import MISSING
from qdit.tables.quantity import metric_quantity, rank, show
from qdit.tables.records import load_results, metric_names, record_files

_EXAMPLES = """examples:
  qdit-ls                                                 the studies below runs/, the last one first
  qdit-ls --study mine                                    its runs, the last one first
  qdit-ls --runs-dir experiments/comparison/results
"""
UNFINISHED = "unfinished"
"""Status of a run that has a folder and no record."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the list; return 0, or 2 after a mistake that the user can mend."""
    options = _parser().parse_args(argv)
    return carried_out("qdit-ls", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    folder: Path = options.runs_dir
    if not folder.is_dir():
        raise UserError(f"--runs-dir {folder} is no folder; run `qdit` first, or name the folder that holds studies")
    names = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if options.study is not None and options.study not in names:
        hint = did_you_mean(options.study, names)
        raise UserError(f"--study {options.study}: no such study{hint}; {folder} has {', '.join(names) or 'none'}")
    wanted = names if options.study is None else [options.study]
    studies = {name: runs for name in wanted if (runs := runs_of(folder, name))}
    if not studies:
        where = folder / (options.study or "")
        print(f"no runs below {where}: make one with `qdit`, or name another folder with --runs-dir")
    elif options.study is None:
        lines = [_study(folder / name, runs) for name, runs in studies.items()]
        print(_shown(sorted(lines, key=lambda line: line["last"], reverse=True)))
    else:
        print(_shown([_line(run) for run in studies[options.study]]))


def runs_of(runs_dir: Path, study: str) -> list[select.Row]:
    """The runs of a study, the last first: rows of `load_results`, and a short one for each without a record.

    What cannot be read is named on stderr.
    """
    files = record_files(runs_dir, study)
    rows: list[select.Row] = []
    if files:
        try:
            rows = select.records(load_results(runs_dir, study))
        except UserError as error:  # one study that another qdit wrote does not hide the others
            print(f"qdit-ls: {error}", file=sys.stderr)
    started = {file.parent for file in (runs_dir / study).glob("*/config.yaml")} - {file.parent for file in files}
    rows += [{"status": UNFINISHED, "finished": _last_written(path), "folder": str(path)} for path in started]
    return sorted(rows, key=lambda row: (str(row["finished"] or ""), row["folder"]), reverse=True)


def _last_written(folder: Path) -> str:
    """When a file of a run was last written, as records tell time."""
    latest = max((path.stat().st_mtime for path in [folder, *folder.rglob("*")] if path.exists()), default=0.0)
    return datetime.fromtimestamp(latest, UTC).isoformat(timespec="seconds")


def _study(folder: Path, runs: list[select.Row]) -> dict[str, str]:
    """A line of the list of studies: how many runs, what they are, when the last one ended."""
    counts = Counter(str(run["status"]) for run in runs)
    bits = {select.shown(run["bits"]) for run in runs if run.get("quantizer") not in (None, select.FULL_PRECISION)}
    return {
        "study": folder.name,
        "runs": str(len(runs)),
        "status": ", ".join(f"{counts[status]} {status}" for status in sorted(counts)),
        "bits": ", ".join(sorted(bits, key=lambda text: select.sort_key("bits", text))) or MISSING,
        "last": _time(runs[0]),
        "folder": str(folder),
    }


def _line(run: select.Row) -> dict[str, str]:
    """A line of the list of a study's runs."""
    message = f": {one_line(run['error'].strip().splitlines()[-1])}" if run.get("error") else ""
    return {
        "run": Path(run["folder"]).name,
        "status": shorten(f"{run['status']}{message}", 60, placeholder=" …"),
        "bits": select.shown(run.get("bits")),
        "main metric": _main_metric(run),
        "when": _time(run),
        "folder": run["folder"],
    }


def _main_metric(run: select.Row) -> str:
    """The first of a run's metrics in the order of tables, with its error."""
    measured = [name for name in metric_names(run) if run.get(name) is not None]
    if not measured:
        return MISSING
    name = min(measured, key=lambda name: (rank(name), name))
    quantity = metric_quantity(name, run[f"{name}_higher_is_better"], run.get(f"{name}_shown"))
    return f"{name} {show(run[name], run.get(f'{name}_stderr'), quantity)}"


def _time(run: select.Row) -> str:
    """When a run ended, or last wrote a file, to the minute, in this machine's time."""
    if not run["finished"]:
        return MISSING
    return datetime.fromisoformat(str(run["finished"])).astimezone().strftime("%Y-%m-%d %H:%M")


def _shown(lines: list[dict[str, str]]) -> str:
    body = [[one_line(text) for text in line.values()] for line in lines]
    return tabulate(body, list(lines[0]), "simple", disable_numparse=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qdit-ls",
        description="The studies below a folder, or the runs of one: status, bits, main metric, when, folder.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    parser.add_argument("--study", type=study_name, help="list the runs of this one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
