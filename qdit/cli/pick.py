"""The console script `qdit-pick`: the smallest model of a study that reaches a quality, and the command that makes it.

Imports no torch.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from qdit.cli.entry import carried_out, study_name
from qdit.tables import select
from qdit.tables.cells import MISSING, written
from qdit.tables.pareto import CHARGED, Bar, Picked, bars_of, front_rows, pick
from qdit.tables.quantity import Quantity, cost_quantity
from qdit.tables.records import COSTS, load_results, read_record
from qdit.tables.render import in_markdown
from qdit.tables.select import where
from qdit.tables.summary import ROWS, Summary, names_of, summarise

_EXAMPLES = """examples:
  qdit-pick --study mine --min sqnr=20                    the fewest bytes with at least 20 dB
  qdit-pick --study mine --min sqnr=20 --max fid_lite0=340 --by bitops
  qdit-pick --study mine --min sqnr=20 --where executed=int8
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the model; return 0, or 2 after a mistake that the user can mend, such as a quality that none reaches."""
    options = _parser().parse_args(argv)
    return carried_out("qdit-pick", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    frame = where(load_results(options.runs_dir, options.study), options.where)
    summary = summarise(frame, ROWS)
    bars = bars_of(summary, options.min, options.max)
    cost = cost_quantity(CHARGED.get(options.by) or options.by)
    bits = {id(row): select.shown(row["bits"]) for row in summary.rows}
    names = {key: f"{name} {bits[key]}" for key, name in names_of(summary, summary.rows).items()}
    picked = pick(summary, bars, cost.column)
    print("\n".join([*_answer(picked, bars, cost, names, options.runs_dir), "", _front(summary, bars[0], cost, names)]))


def _answer(picked: Picked, bars: Sequence[Bar], cost: Quantity, names: Mapping[int, str], runs_dir: Path) -> list[str]:
    """What was picked, how sure that is, what makes it and where it lies."""

    def told(row: select.Row) -> str:
        values = [cost, *(bar.quantity for bar in bars)]
        return f"{names[id(row)]}: " + ", ".join(f"{each.label} {written(row, each) or MISSING}" for each in values)

    lines = [told(picked.row), *(f"  {_certainty(bar, picked.row)}" for bar in bars)]
    if picked.sure is None:
        lines.append("  no row of these reaches that by two standard errors")
    elif picked.sure is not picked.row:
        lines.append(f"  the smallest that reaches it by two standard errors: {told(picked.sure)}")
    lines += [f"  smaller, and short of it by less than two standard errors: {told(row)}" for row in picked.near]
    command, reason = _command(picked.row, runs_dir)
    lines.append(f"  {command}" if command else f"  no command: {reason}")
    return [*lines, *(f"  {run['folder']}" for run in picked.row["runs"])]


def _certainty(bar: Bar, row: select.Row) -> str:
    margin = f"{bar}: reached by {bar.margin(row):.{bar.quantity.decimals}f}"
    if bar.doubt(row) is None:
        return f"{margin}, without an error bar"
    return f"{margin}, {'more' if bar.clears(row) else 'less'} than two standard errors"


def _command(row: select.Row, runs_dir: Path) -> tuple[str, str]:
    """The command that makes a row again among the runs that were read, and why there is none."""
    from qdit.cli.places import placed  # Hydra takes longer to come than a message does
    from qdit.cli.recall import recalled

    records = (read_record(Path(run["folder"]) / "result.json") for run in row["runs"])
    configs = [record["config"] for record in records if record is not None]
    command, reason = recalled(configs)
    return placed(command, configs[0], runs_dir) if command else "", reason


def _front(summary: Summary, bar: Bar, cost: Quantity, names: Mapping[int, str]) -> str:
    """The Pareto front as a table, and which of its rows reach the bar; a sentence where the metric has no front."""
    if bar.quantity.higher_is_better is None:
        return f"no Pareto front of {bar.quantity.column}: neither more nor less of it is better"
    rows = [summary.rows[number] for number in front_rows(summary.rows, cost.column, bar.quantity)]
    body = [
        [
            in_markdown(names[id(row)]),
            *(written(row, each) for each in (cost, bar.quantity)),
            "yes" if bar.margin(row) >= 0 else "no",
        ]
        for row in rows
    ]
    header = ["Pareto front", cost.label, bar.quantity.label, str(bar)]
    return tabulate(body, header, "pipe", disable_numparse=True, colalign=("left", "right", "right", "left"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qdit-pick",
        description="The smallest quantized model of a study that reaches a quality, with its error bar and command.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    quality = {"nargs": "+", "action": "extend", "default": [], "metavar": "METRIC=NUMBER"}
    smaller = [name for name in COSTS if name not in (*CHARGED.values(), "samples_per_second")]
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of studies (default: runs)")
    parser.add_argument("--study", type=study_name, help="one study of it (default: all)")
    parser.add_argument("--min", **quality, help="at least this much, in the unit of tables: sqnr=20")
    parser.add_argument("--max", **quality, help="at most this much, of metrics where lower is better")
    parser.add_argument(
        "--by", choices=[*CHARGED, *smaller], default="bytes", help="what is to be small (default: bytes)"
    )
    parser.add_argument("--where", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="keep these runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
