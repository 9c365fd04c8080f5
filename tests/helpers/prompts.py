"""A data set of prompts."""

from qdit.dataset.prompts import Prompts


def prompts(**changes) -> Prompts:
    """Of a file."""
    return Prompts(**({"name": "tiny", "image_size": None, "reference": "none"} | changes))
