"""Words of a command line that Hydra would misread: names that look like numbers. Imports nothing beyond `re`."""

import re

_NAMING = re.compile(r"((?:\+{0,2})(?:study|name|[\w.]+\.name))=(.+)")
_NO_TEXT = re.compile(r"[+-]?(\d[\d_]*)?\.?[\d_]*(e[+-]?\d[\d_]*)?|[+-]?inf|nan|true|false", re.IGNORECASE)


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
