"""List the files below a folder, following links to folders, as both readers of a folder and its digest need them.

`Path.rglob` does not follow links to folders. Imports no torch.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from qdit.errors import UserError


def files_below(root: Path) -> list[Path]:
    """List the files of a folder at all depths, sorted by path.

    A link that leads back to a folder it lies in is not followed, and a link to nothing is no file.

    Raises:
        UserError: a folder cannot be read.
    """
    return sorted(file for file in entries_below(root) if file.is_file())


def entries_below(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Everything below `folder` but folders: links to nothing and pipes, too.

    `above` are device and inode of the folders that it lies in.
    """
    try:
        status = folder.stat()
        here = (*above, (status.st_dev, status.st_ino))
        if here[-1] in above:
            return
        paths = [folder / name for name in os.listdir(folder)]
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error.strerror}); make it readable, or give another") from error
    for path in paths:
        if path.is_dir():
            yield from entries_below(path, here)
        else:
            yield path
