"""The console script `qdit-report`: a study as one page of HTML, to be read, sent and kept. Imports no torch."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qdit.cli.entry import carried_out, study_name
from qdit.errors import UserError
from qdit.storage.atomic import atomic_write
from qdit.tables.records import load_results
from qdit.tables.select import where

_EXAMPLES = """examples:
  qdit-report mine                                        mine.html, of the runs below runs/mine
  qdit-report mine --output page.html --where bits=w4a8 quantizer=rtn,q_dit
  qdit-report methods --runs-dir experiments/comparison/results
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page; return 0, or 2 after a mistake that the user can mend."""
    options = _parser().parse_args(argv)
    return carried_out("qdit-report", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from qdit.cli.recall import command  # Hydra and matplotlib take longer to come than a message does
    from qdit.report import page

    frame = where(load_results(options.runs_dir, options.study), options.where)
    output = options.output or Path(f"{options.study}.html")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder; name a file, such as {output / f'{options.study}.html'}")
    text = page(frame, options.study, command)
    atomic_write(output, text)
    print(f"{output} ({len(text.encode()) / 1e6:.2f} MB): open it in a browser", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qdit-report",
        description="A study as one page of HTML that needs no network: table, Pareto front, samples, error maps.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=study_name, metavar="STUDY", help="folder of runs")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page (default: STUDY.html)")
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="keep these runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
