"""The console script `qdit`: handles signals and quotes words that Hydra would misread, then calls `qdit.cli.command`.

Imports nothing beyond the standard library until signal handlers are installed.
"""

import re
import sys

from qdit.cli import interrupts

_NAMING = re.compile(r"((?:\+{0,2})(?:study|name|[\w.]+\.name))=(.+)")
_NO_TEXT = re.compile(r"[+-]?(\d[\d_]*)?\.?[\d_]*(e[+-]?\d[\d_]*)?|[+-]?inf|nan|true|false", re.IGNORECASE)


def main() -> None:
    """Carry out the command line; code 130 after Ctrl-C and 143 after SIGTERM."""
    if "--version" in sys.argv[1:]:  # Hydra would tell its own
        from importlib.metadata import version

        print(f"qdit {version('qdit')}, Hydra {version('hydra-core')}, torch {version('torch')}")
        return
    try:
        with interrupts.taken():
            from qdit.cli.command import main as run

            sys.argv[1:] = [as_text(word) for word in sys.argv[1:]]
            run()
    except KeyboardInterrupt as stop:
        sys.exit(interrupts.report(stop))


def as_text(word: str) -> str:
    """A word of the command line in which a name that looks like a number is quoted, for Hydra would change it.

    >>> as_text("study=2026_11_28"), as_text("study=1e3,b"), as_text("seed=1_000")
    ("study='2026_11_28'", "study='1e3',b", 'seed=1_000')
    """
    found = _NAMING.fullmatch(word)
    if found is None or set(found[2]) & set("'\"()[]{}\\$"):
        return word
    parts = [f"'{part}'" if part.strip() and _NO_TEXT.fullmatch(part.strip()) else part for part in found[2].split(",")]
    return f"{found[1]}={','.join(parts)}"


if __name__ == "__main__":
    main()
