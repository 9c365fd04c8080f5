"""qdit-export: a folder that diffusers reloads, of a run that saved its checkpoint.

qdit-export runs/default/rtn-w8a8-0123abcd --to torchao mine     reloaded where torchao is installed, without qdit
qdit-export runs/default/q_dit-w4a8-0123abcd --to diffusers mine     every recipe; reloaded behind `import qdit`
qdit-export --list                                 which recipe can be exported to what, and what hinders
qdit-export --write docs/use_what_you_quantized.md     the same between the lines <!-- qdit-export: w8a8 --> and
                                                       <!-- /qdit-export --> of a document
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from qdit.cli.documents import filled
from qdit.cli.entry import carried_out
from qdit.errors import UserError
from qdit.storage.atomic import atomic_write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    return carried_out("qdit-export", lambda: _run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("qdit-export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="that is not there yet")
    parser.add_argument("--to", default="torchao", metavar="TARGET", help="torchao (default) or diffusers")
    parser.add_argument("--near", action="store_true", help="symmetric inputs may have torchao's step, of max / 127.5")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload the folder to the hub, too")
    parser.add_argument("--list", action="store_true", help="which recipe can be exported to what, and what hinders")
    parser.add_argument("--bits", default="w8a8", help="of the list; default: w8a8")
    parser.add_argument("--write", type=Path, nargs="+", default=[], metavar="FILE", help="the list, in documents")
    return parser


def _run(options: argparse.Namespace) -> None:
    import qdit

    for path in options.write:
        atomic_write(path, filled(path, "qdit-export", listed, "w8a8"))
    if options.list:
        print(listed(options.bits), end="")
    if options.list or options.write:
        return
    if options.run is None or options.folder is None:
        raise UserError("give the folder of a run and that of the export, or --list")
    qdit.export(options.run, options.folder, options.to, near=options.near, push=options.push)
    print(options.folder)


def listed(bits: str) -> str:
    """The table of recipes and targets at some bits, as Markdown."""
    import qdit

    frame = qdit.targets(bits=bits)
    lines = [f"| recipe | {' | '.join(frame.columns)} |", f"|---{'|---' * len(frame.columns)}|"]
    lines += [f"| `{name}` | {' | '.join(row)} |" for name, row in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
