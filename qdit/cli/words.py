"""Values as words of Hydra's command line, and names that it would misread as numbers. Imports next to nothing."""

import re
from typing import Any

_NAMING = re.compile(r"((?:\+{0,2})(?:study|name|[\w.]+\.name))=(.+)")
_NO_TEXT = re.compile(r"[+-]?(\d[\d_]*)?\.?[\d_]*(e[+-]?\d[\d_]*)?|[+-]?inf|nan|true|false", re.IGNORECASE)
_PLAIN, _OTHER = re.compile(r"(?:[A-Za-z_/]|\.\.?/)[\w./-]*", re.ASCII), ("null", "true", "false", "inf", "nan")
_BEFORE_QUOTE = re.compile(r"\\+(?='|\Z)")


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


def as_value(value: Any) -> str:
    """A value in the words of Hydra's command line.

    >>> as_value("../some/where"), as_value("my runs"), as_value([1, None])
    ('../some/where', "'my runs'", '[1,null]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_value(each)}" for key, each in value.items()) + "}"
    text = str(value)
    if isinstance(value, int | float) or (_PLAIN.fullmatch(text) and text.lower() not in _OTHER):
        return text
    doubled = _BEFORE_QUOTE.sub(lambda found: 2 * found[0], text)  # Hydra takes others as they are
    return "'" + doubled.replace("'", "\\'") + "'"
