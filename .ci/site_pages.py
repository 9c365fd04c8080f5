"""What the documentation site does to pages that are also read in the repository; mkdocs calls `on_page_markdown`.

Files outside of docs/ are links in the repository; on the site they lead to `extra.source` where that is set, and are
plain text where it is not. Titles of code get the quotes that the site's Markdown needs, commands lose the prompt that
a button would copy, and the reference gets each command's help.
"""

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)#\s]+)(#[^)\s]*)?\)")
_TITLE = re.compile(r"^```(\w+) title=([^\s\"]+)$", re.MULTILINE)
_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_HELP = re.compile(r"^<!-- help: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The text of a page as the site shows it."""
    folder = PurePosixPath("docs", page.file.src_uri).parent
    return written(markdown, folder, str(config["extra"].get("source") or ""))


def written(markdown: str, folder: PurePosixPath, source: str) -> str:
    """The text of a page.

    Args:
        markdown: as it is in the repository.
        folder: of the page, from the repository's root.
        source: address below which files of the repository are shown; empty for none.
    """

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        place = normpath(folder / target)
        if place.startswith("docs/"):
            return found[0]
        return f"[{text}]({source}/{place}{anchor})" if source else text

    markdown = _TITLE.sub(r'```\1 title="\2"', markdown)
    markdown = _LINK.sub(link, markdown)
    markdown = _CONSOLE.sub(lambda found: "```bash\n" + re.sub(r"(?m)^\$ ", "", found[1]) + "```", markdown)
    return _HELP.sub(lambda found: f"```text\n{help_of(found[1])}```", markdown)


def help_of(command: str) -> str:
    """What a command says of itself, in lines of 100 characters."""
    words = [sys.executable, "-m", f"qdit.cli.{command}", "--help"]
    environment = os.environ | {"COLUMNS": "100", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(words, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout
