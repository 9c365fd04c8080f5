"""Documents with generated parts, so that they stay in step with the configs and results. Imports no torch.

A part stands between two markers, such as `<!-- qdit-design: recipes -->` and `<!-- /qdit-design -->`: the command that
writes it, and what it is asked for.
"""

import re
from collections.abc import Callable
from pathlib import Path

from qdit.errors import UserError


def filled(path: Path, command: str, make: Callable[[str], str], example: str) -> str:
    """The text of a document with the parts of a command written again.

    Args:
        path: the document, UTF-8.
        command: whose parts; those of others stay as they are.
        make: from what a marker asks for to what belongs between it and the end.
        example: what a marker may ask for, for the message.

    Raises:
        UserError: the document cannot be read, has no such part, or would get a marker inside one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    marked = re.compile(rf"<!-- {command}: (.+?) -->\n.*?<!-- /{command} -->", re.DOTALL)
    if not marked.search(text):
        raise UserError(f"{path} has no lines <!-- {command}: {example} --> and <!-- /{command} --> to write between")

    def written(part: re.Match[str]) -> str:
        made = make(part[1])
        if re.search(rf"<!--\s*/?{command}", made):
            raise UserError(
                f"{path}: what belongs behind {command}: {part[1]} holds a marker itself; nothing is written"
            )
        return f"<!-- {command}: {part[1]} -->\n\n{made}\n<!-- /{command} -->"

    return marked.sub(written, text)
