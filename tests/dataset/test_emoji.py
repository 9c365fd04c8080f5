"""The embedded data."""

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdit.dataset import emoji
from qdit.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "dataset"


def load(name):
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"))


def test_emoji_knows_its_classes():
    dataset = load("emoji")
    assert "animal-bird" in dataset.class_names()
    assert dataset.frequencies().min() > 0


def test_damaged_data_is_named(tmp_path, monkeypatch):
    file = tmp_path / "emoji32.npz"
    file.write_bytes(emoji.FILE.read_bytes()[:1000])
    monkeypatch.setattr(emoji, "FILE", file)
    with pytest.raises(UserError, match=r"emoji32.npz cannot be read as npz"):
        load("emoji").class_names()
