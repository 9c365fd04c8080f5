"""The console script `qdit`: handles signals and quotes words that Hydra would misread, then calls `qdit.cli.command`.

Imports nothing heavy until signal handlers are installed.
"""

import sys

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
            sys.argv[1:] = [as_text(word) for word in sys.argv[1:]]
            run()
    except KeyboardInterrupt as stop:
        sys.exit(interrupts.report(stop))


if __name__ == "__main__":
    main()
