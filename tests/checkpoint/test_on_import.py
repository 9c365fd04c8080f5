"""`import qdit` is light, and diffusers knows of qdit all the same, in whatever order they are imported."""

import subprocess
import sys

import pytest

from qdit.checkpoint import on_import

LIGHT = """
import sys, qdit
heavy = {"torch", "diffusers", "hydra", "pandas", "omegaconf", "numpy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
assert "quantize" in dir(qdit)
"""


def test_it_is_light():
    subprocess.run([sys.executable, "-c", LIGHT], check=True)


def test_it_is_entered_where_diffusers_was_first(monkeypatch):
    """The other order is that of the fresh process in test_diffusers.py."""
    from diffusers.quantizers import auto

    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "qdit")
    monkeypatch.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "qdit")
    on_import.watch()
    assert auto.DiffusersAutoQuantizer.from_dict({"quant_method": "qdit", "format": 1}).content == {"format": 1}


def test_unknown_names_are_refused():
    import qdit

    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qdit.quantise  # pyright: ignore[reportAttributeAccessIssue]
