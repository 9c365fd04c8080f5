"""The console script `qdit`: handles signals and quotes words that Hydra would misread, then calls `qdit.cli.command`.

Imports nothing heavy until signal handlers are installed.
"""

import sys
from collections.abc import Callable

from qdit.cli import interrupts
from qdit.cli.words import as_text


def main() -> None:
    """Carry out the command line; code 130 after Ctrl-C and 143 after SIGTERM."""
    if "--version" in sys.argv[1:]:  # Hydra would tell its own
        from importlib.metadata import version

        print(f"qdit {version('qdit')}, Hydra {version('hydra-core')}, torch {version('torch')}")
        return
    try:
        with interrupts.taken():
            from qdit.cli.command import main as run
            from qdit.cli.entry import tolerant

            tolerant()
            words = [as_text(word) for word in sys.argv[1:]]
            # Hydra's parser takes no flag between overrides.
            sys.argv[1:] = sorted(words, key=lambda word: word not in ("-m", "--multirun"))
            _read_by_somebody(run)
    except KeyboardInterrupt as stop:
        sys.exit(interrupts.report(stop))


def _read_by_somebody(run: Callable[[], object]) -> None:
    """Call Hydra; where the reader of its output goes early, as in `qdit --help | head -1`, that is its quiet end."""
    from qdit.cli.entry import CLOSED, hushed

    try:
        run()
        if hushed():
            sys.exit(CLOSED)
    except BrokenPipeError:
        if not hushed():
            raise
        sys.exit(CLOSED)
    finally:
        hushed()  # before Python writes what is left; the code of a sweep stays


if __name__ == "__main__":
    main()
