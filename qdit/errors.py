"""`UserError`, for mistakes that the user can correct: shown as a message without a traceback, with exit code 2."""

import difflib
import unicodedata
from collections.abc import Iterable

_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (direction of text, too), surrogates, separators of lines


class Advised(str):
    """A problem whose remedy depends on where it is met: as a text it has that of a run.

    Args:
        problem: what was found, and what is allowed.
        run: what to try in a run, or in Python.
        folder: what to try where `qdit-score` judges a folder, which has no config.
    """

    of_folder: str
    """The problem with the remedy of a folder."""

    def __new__(cls, problem: str, *, run: str, folder: str) -> "Advised":
        """The problem with the remedy of a run; the other is beside it."""
        made = super().__new__(cls, f"{problem}; {run}")
        made.of_folder = f"{problem}; {folder}"
        return made


class UserError(Exception):
    """A mistake in a config, a file or a machine; every problem names what was found, what is allowed, what to try."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__(visible("\n".join(problems)))

    def lines(self) -> list[str]:
        """Its problems, a line each, without the line that counts them."""
        listed = [line.strip() for line in str(self).splitlines() if line.startswith("  ")]
        return listed or [str(self)]


def from_problems(problems: list[str], what: str) -> UserError:
    """One error for several problems: `2 problems in <what>:` and a line for each."""
    if len(problems) == 1:
        return UserError(problems[0])
    return UserError(f"{len(problems)} problems in {what}:\n" + "\n".join(f"  {p}" for p in problems))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean a, b?)` for the nearest known names, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def visible(text: str) -> str:
    """A text that a terminal only prints: control characters are shown (`\\x1b`), lines and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if c not in "\n\t" and unicodedata.category(c) in _HIDDEN else c for c in text)
