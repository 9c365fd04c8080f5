"""Options build, and mismatches with a model are described."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdit.dataset.base import Dataset
from qdit.dataset.labels import FrequencyLabels, RandomLabels

CONF = Path(__file__).parents[2] / "conf" / "dataset"


OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml") if "num_classes" in p.read_text())


def load(name):
    return instantiate(OmegaConf.load(CONF / f"{name}.yaml"))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_build(name):
    dataset = load(name)
    labels = dataset.labels(range(50), seed=0)
    assert dataset.name == name
    assert list(OmegaConf.load(CONF / f"{name}.yaml")) == list(OmegaConf.load(CONF / "emoji.yaml"))
    assert labels.dtype == torch.long
    assert labels.min() >= 0
    assert labels.max() < dataset.num_classes  # never the null class
    assert len(dataset.class_names()) == dataset.num_classes
    assert dataset.frequencies().sum() == pytest.approx(1)


def test_imagenet_has_no_names_and_no_frequencies(tiny_model):
    dataset = load("imagenet256")
    assert dataset.class_names()[207] == "class 207"
    dataset.strategy = FrequencyLabels()
    assert "ships no class frequencies" in dataset.check(tiny_model)[-1]


def test_mismatch_with_a_model_is_described(tiny_model):
    fitting = Dataset(name="ten", num_classes=10, image_size=16, reference="ten", strategy=RandomLabels())
    assert fitting.check(tiny_model) == []
    classes, size = load("emoji").check(tiny_model)
    assert "99 classes, the model 10" in classes
    assert "32×32, the model makes 16×16" in size
    assert fitting.protocol() == "ten|labels=random"


def test_batches_are_the_samples_one_after_the_other():
    dataset = Dataset(name="ten", num_classes=10, image_size=16, reference="emoji", strategy=RandomLabels())
    batches = list(dataset.batches(30, 7, 3, seed=2))
    assert [indices for indices, _ in batches] == [[30, 31, 32], [33, 34, 35], [36]]
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels(range(30, 37), seed=2))
