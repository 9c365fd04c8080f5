"""A prompt of VBench's suite, which knows the dimensions that judge its videos. Imports no torch."""

from collections.abc import Iterable

VIDEOS_A_PROMPT = 5
"""Videos of a prompt that VBench's code reads: those numbered from 0 on."""


class SuitePrompt(str):
    """The text of a prompt, which goes wherever text goes.

    Args:
        text: of the prompt.
        dimensions: that judge its videos.
    """

    dimensions: tuple[str, ...]

    def __new__(cls, text: str, dimensions: Iterable[str] = ()) -> "SuitePrompt":
        """Text with dimensions."""
        made = super().__new__(cls, text)
        made.dimensions = tuple(dimensions)
        return made
