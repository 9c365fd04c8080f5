"""The console script `qdit-table`: one command from a folder of runs to a table that can be pasted."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd

from qdit.cli.documents import filled
from qdit.cli.entry import carried_out, study_name
from qdit.errors import UserError
from qdit.storage.atomic import atomic_write
from qdit.tables.compare import compare, is_comparison
from qdit.tables.expect import differences
from qdit.tables.quantity import Quantity
from qdit.tables.records import load_results
from qdit.tables.render import FORMATS, render, to_csv, to_parquet
from qdit.tables.select import at_bits, where
from qdit.tables.summary import Summary, summarise
from qdit.tables.table import Table, build_table, choose_quantities, refuse_twice

_EXAMPLES = """examples:
  qdit-table                                              every run below runs/, a row a quantizer and bits
  qdit-table --study methods                              families and bits: a row a method, bits side by side
  qdit-table --study table1 --cols bits --metrics sqnr fid_lite0
  qdit-table --where bits=w4a8 quantizer=rtn,q_dit --metrics all --format latex --out table.tex
  qdit-table --metrics fid_lite0 fid_lite0_delta seconds  paired difference to full precision, and time
  qdit-table --at-bits 4.4:4.6                            what costs alike: bits a weight with scales and branches
  qdit-table --study methods --figures figures --at w4a8  its figures, too
  qdit-table --study methods --figures figures --figure-files svg pdf
  qdit-table --write README.md                            again, the tables that it asks for between lines such as
                                                          <!-- qdit-table: --study methods --> and <!-- /qdit-table -->
  qdit-table --format csv --out table.csv                 later: qdit-table --expect table.csv
"""
_NEEDS = {"tolerance": "expect", "at": "figures", "figure_files": "figures"}
"""Options that do nothing without another."""
_APART = ("out", "figures", "expect", "write", *_NEEDS)
"""What a command does beside the text of its table, and a document cannot ask for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print or write the table; return 0, 1 (it is not what --expect says) or 2 (the user can mend it)."""
    options = _parser().parse_args(argv)
    return carried_out("qdit-table", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if idle := _idle(options):
        raise UserError(idle)
    if options.tolerance is not None and not 0 <= options.tolerance < inf:
        raise UserError(f"--tolerance {options.tolerance:g}: a share of at least 0 is needed, such as 0.01")
    if options.write:
        for path in options.write:
            atomic_write(path, filled(path, "qdit-table", _part, "--study methods"))
        return 0
    frame = _frame(options)
    if options.format == "parquet":
        _write_parquet(frame, options)
    elif options.out is None:
        print(_text(frame, options), end="")
    else:
        atomic_write(options.out, _text(frame, options))
    if options.figures is not None:
        _draw(frame, options)
    if options.expect is None:
        return 0
    found = differences(_summary(frame, options), options.expect, options.tolerance)
    for line in found:
        print(f"qdit-table: {line}", file=sys.stderr)
    return int(bool(found))


def _given(options: argparse.Namespace, name: str) -> bool:
    return getattr(options, name) != _parser().get_default(name)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _idle(options: argparse.Namespace) -> str:
    """What is wrong with options that would do nothing; an empty text where all do something."""
    others = [name for name in vars(options) if name != "write" and _given(options, name)]
    if options.write and others:
        return (
            f"{_option(others[0])} does nothing beside --write, which writes what documents ask for in their words; "
            "give it between their lines, or without --write"
        )
    for name, needed in _NEEDS.items():
        if _given(options, name) and not _given(options, needed):
            return f"{_option(name)} does nothing without {_option(needed)}; give both, or neither"
    return ""


def _part(words: str) -> str:
    """The table that a document asks for in the words of the command line."""
    try:
        options = _parser().parse_args(shlex.split(words))
    except ValueError as error:  # of shlex
        raise UserError(
            f"<!-- qdit-table: {words} -->: {str(error).lower()}; the words are those of a shell, whose quotes close"
        ) from error
    if options.format == "parquet":
        raise UserError(f"<!-- qdit-table: {words} -->: a document holds no Parquet; ask for another --format")
    if given := [name for name in _APART if _given(options, name)]:
        raise UserError(f"<!-- qdit-table: {words} -->: {_option(given[0])} does nothing in a document; leave it out")
    return _text(_frame(options), options)


def _frame(options: argparse.Namespace) -> pd.DataFrame:
    frame = where(load_results(options.runs_dir, options.study), options.where)
    return frame if options.at_bits is None else at_bits(frame, options.at_bits)


def _summary(frame: pd.DataFrame, options: argparse.Namespace) -> Summary:
    refuse_twice(rows := options.rows or ["quantizer"], options.cols)
    keys = list(dict.fromkeys([*rows, *filter(None, [options.cols]), "bits"]))
    return summarise(frame, keys, seeds=options.seeds, mix_protocols=options.mix_protocols)


def _long(frame: pd.DataFrame, options: argparse.Namespace) -> tuple[Summary, list[Quantity] | None]:
    """The rows of a long table, and what --metrics asks for; None where it is not given, and all is written."""
    summary = _summary(frame, options)
    return summary, None if options.metrics is None else choose_quantities(summary, options.metrics)


def _text(frame: pd.DataFrame, options: argparse.Namespace) -> str:
    if options.format == "csv":
        return to_csv(*_long(frame, options))
    return render(replace(_table(frame, options), title=options.study or ""), options.format)


def _write_parquet(frame: pd.DataFrame, options: argparse.Namespace) -> None:
    if options.out is None:
        raise UserError("--format parquet makes bytes for a file: name it with --out, as in --out table.parquet")
    atomic_write(options.out, to_parquet(*_long(frame, options)))


def _table(frame: pd.DataFrame, options: argparse.Namespace) -> Table:
    """Lay out the runs: as a comparison if they are one, and nothing else was asked for."""
    choices: dict[str, Any] = {"seeds": options.seeds, "mix_protocols": options.mix_protocols}
    if options.rows is None and options.cols in (None, "bits") and is_comparison(frame):
        return compare(frame, metrics=options.metrics, **choices)
    rows = options.rows or ["quantizer"]
    return build_table(frame, rows=rows, cols=options.cols, metrics=options.metrics, **choices)


def _draw(frame: pd.DataFrame, options: argparse.Namespace) -> None:
    from qdit.plots import draw  # matplotlib takes longer to come than most tables to make

    for path in draw(frame, options.figures, options.metrics, options.at, options.figure_files):
        print(path, file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qdit-table",
        description="Tables of qdit's results: protocols kept apart, error bars, best in bold, missing as —.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    parser.add_argument("--study", type=study_name, help="one study of it (default: all)")
    parser.add_argument("--rows", nargs="+", metavar="KEY", help="config keys of the rows (default: quantizer)")
    parser.add_argument("--cols", metavar="KEY", help="spread this key over the columns, e.g. bits")
    parser.add_argument("--metrics", nargs="+", metavar="M", help="metrics, <metric>_delta, ledger columns, or all")
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="keep these runs")
    parser.add_argument(
        "--at-bits", metavar="LOW:HIGH", help="keep what costs alike: effective bits of quantized weights"
    )
    parser.add_argument("--seeds", choices=("mean", "all"), default="mean", help="average the seeds, or a row each")
    parser.add_argument("--format", choices=[*FORMATS, "csv", "parquet"], default="markdown")
    parser.add_argument("--mix-protocols", action="store_true", help="show several protocols, each labelled")
    parser.add_argument("--expect", metavar="FILE_OR_N", help="exit 1 unless it agrees with this CSV or number of runs")
    parser.add_argument("--tolerance", type=float, metavar="SHARE", help="for --expect: relative, instead of 2 SE")
    parser.add_argument(
        "--figures",
        type=Path,
        metavar="FOLDER",
        help="also draw: metrics, Pareto fronts, changes over metrics, curves, samples",
    )
    parser.add_argument(
        "--figure-files", nargs="+", choices=("png", "svg", "pdf"), default=["png"], help="for --figures: what to write"
    )
    parser.add_argument(
        "--at", metavar="BITS", help="for --figures: the bits of changes, curves and samples, e.g. w4a8"
    )
    parser.add_argument("--out", type=Path, help="write the table to this file")
    parser.add_argument(
        "--write", type=Path, nargs="+", default=[], metavar="FILE", help="write the tables that documents ask for"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
