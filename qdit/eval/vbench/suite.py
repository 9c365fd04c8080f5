"""A prompt of VBench's suite, which knows the dimensions that judge its videos. Imports no torch."""

from collections.abc import Iterable, Sequence

from qdit.errors import Advised

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


def own_of(dimension: str, prompts: Sequence[str]) -> list[bool]:
    """Which prompts a dimension judges: of VBench's suite its own, of others all.

    >>> own_of("scene", [SuitePrompt("a barn", ["scene"]), SuitePrompt("a cat", ["color"])]), own_of("scene", ["a cat"])
    ([True, False], [True])
    """
    return [not isinstance(prompt, SuitePrompt) or dimension in prompt.dimensions for prompt in prompts]


def none_of(dimension: str, prompts: Sequence[str]) -> list[str]:
    """A sentence if a dimension judges none of these prompts."""
    if not prompts or any(own_of(dimension, prompts)):
        return []
    problem = f"none of these prompts is one of {dimension}"
    return [Advised(problem, run="name it in dataset.dimensions", folder="leave it out of --metrics")]
