"""A shelf: a cache folder of tensors that processes share with each other, and with themselves after a kill.

Every file states what it belongs to, in full and not as a hash, and what made it (`qdit.execution.stamp`). A file that
is damaged, belongs to something else or was made by something else is reported, and made again. Files of earlier
versions of qdit state nothing, and are read.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from qdit.storage.digest import digest
from qdit.storage.locks import exclusive
from qdit.storage.seal import tensors_about
from qdit.storage.tensors import Damaged, load_with_about, save_tensors

log = logging.getLogger("qdit")
IDENTITY, MADE = "qdit.identity", "qdit.made"
Stamp = Mapping[str, str]


@dataclass(frozen=True)
class Shelf:
    """A folder of safetensors files, and what they must be to be used."""

    folder: Path
    identity: Any = None
    """JSON of all that the files depend on."""
    made: Stamp | None = None
    """What makes them now; None takes any file, and says nothing of new ones."""
    shared: bool = False
    """Whether what something else made is kept: own files then lie in a folder beside it."""
    within: str = ""
    """Where in the outermost shelf this one is."""

    @classmethod
    def of(cls, place: "Place") -> "Shelf":
        """A shelf, or the shelf of a folder whose files say nothing of what they are of."""
        return place if isinstance(place, Shelf) else cls(place)

    def __truediv__(self, name: str) -> "Shelf":
        return replace(self, folder=self.folder / name, within=f"{self.within}{name}/")

    def path(self, name: str, suffix: str = ".safetensors", maker: Callable[[Path], str | None] | None = None) -> Path:
        """Where a file is, or will be.

        Args:
            name: of the file.
            suffix: of its name.
            maker: says what made a file, as text; by default what safetensors say.
        """
        plain = self.folder / f"{name}{suffix}"
        if self.shared and self.made is not None:
            found = (maker or _maker)(plain)
            if found is not None and found != stamp_text(self.made):
                return self.folder / digest(dict(self.made)) / plain.name
        return plain

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Write a file, whole or not at all; returns what was written.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        about = {IDENTITY: self._identity(name)} | ({} if self.made is None else {MADE: stamp_text(self.made)})
        return save_tensors(self.path(name), tensors, about)

    def load(self, name: str, quiet: bool = False) -> dict[str, Tensor] | None:
        """Read a file; None where there is none that can be used, which is said unless `quiet`."""
        path = self.path(name)
        if not path.exists():
            return None
        try:
            tensors, about = load_with_about(path)
            if about and about.get(IDENTITY) != self._identity(name):
                raise Damaged(path, "is of something else")
        except Damaged as error:
            if not quiet:
                log.warning("%s %s: it is made again", path, error.reason)
            return None
        maker = about.get(MADE)
        if self.made is not None and maker is not None and maker != stamp_text(self.made):
            if not quiet:
                other_maker(path.parent, maker, stamp_text(self.made))
            return None
        return tensors

    def once(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Read a file that one process makes, if there is none, while others wait."""
        if (found := self.load(name)) is None:
            with exclusive(self.folder / f".{name}.safetensors.lock"):
                if (found := self.load(name, quiet=True)) is None:
                    self.save(name, make())
                    found = load_with_about(self.path(name))[0]  # as every later process gets it
        return found

    def _identity(self, name: str) -> str:
        return _text({"of": self.identity, "file": f"{self.within}{name}"})


Place = Shelf | Path
"""Where a fit keeps what it has finished."""


def stamp_text(made: Stamp) -> str:
    """What made something, as it stands in files: `device: cpu AVX2, execution: int8, torch: 2.9.1`."""
    return ", ".join(f"{key}: {made[key]}" for key in sorted(made))


def without_execution(made: Stamp) -> Stamp:
    """What made something in which nothing is quantized: how layers multiply is no part of it."""
    return {key: text for key, text in made.items() if key not in ("execution", "compiled", "openvino")}


@cache
def other_maker(folder: Path, found: str, here: str) -> None:
    """Say, once, that what is in a folder is made again."""
    log.warning("%s: made with %s, and here with %s: it is made again, not mixed", folder, found, here)


def _maker(path: Path) -> str | None:
    return tensors_about(path).get(MADE)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
