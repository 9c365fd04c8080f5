"""Console commands in this process."""

from collections.abc import Callable
from typing import Any


def complaint(capsys: Any, main: Callable[[list[str]], int], *words: object) -> str:
    """What a command says of a mistake that the user can mend."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err
