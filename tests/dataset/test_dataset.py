"""Labels by index, names and frequencies, and the check against a model."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdit.dataset import emoji
from qdit.dataset.base import Dataset
from qdit.dataset.labels import BalancedLabels, FrequencyLabels, RandomLabels
from qdit.errors import UserError

CONF = Path(__file__).parents[2] / "conf" / "dataset"
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml"))
STRATEGIES = [RandomLabels(), FrequencyLabels(), BalancedLabels()]
EVEN = torch.full((10,), 0.1)


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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_label_is_a_function_of_seed_and_index(strategy):
    together = strategy.draw(range(100), 0, EVEN)
    assert torch.equal(strategy.draw([73, 5], 0, EVEN), together[[73, 5]])
    assert not torch.equal(strategy.draw(range(100), 1, EVEN), together)
    assert set(together.tolist()) == set(range(10))


def test_balanced_labels_are_balanced_and_not_sorted():
    labels = BalancedLabels().draw(range(40), 0, EVEN)
    assert torch.bincount(labels).tolist() == [4] * 10
    assert labels[:10].tolist() != sorted(labels[:10].tolist())
    assert BalancedLabels().draw([33, 3], 0, EVEN).tolist() == labels[[33, 3]].tolist()


def test_balanced_labels_do_not_repeat_their_order():
    # With one order for all runs, index mod 20 (the jackknife's group) would fix the class mod 20.
    first, second = BalancedLabels().draw(range(20), 0, EVEN).split(10)
    assert first.tolist() != second.tolist()


def test_frequency_labels_follow_the_frequencies():
    frequencies = torch.tensor([0.5, 0.0, 0.3, 0.2])
    counts = torch.bincount(FrequencyLabels().draw(range(4000), 0, frequencies), minlength=4) / 4000
    assert counts[1] == 0
    assert (counts - frequencies).abs().max() < 0.03


def test_random_labels_ignore_the_frequencies():
    counts = torch.bincount(RandomLabels().draw(range(4000), 0, torch.tensor([0.97, 0.01, 0.01, 0.01])))
    assert (counts / 4000 - 0.25).abs().max() < 0.03


def test_emoji_knows_its_classes():
    dataset = load("emoji")
    assert "animal-bird" in dataset.class_names()
    assert dataset.frequencies().min() > 0


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


def test_damaged_data_is_named(tmp_path, monkeypatch):
    file = tmp_path / "emoji32.npz"
    file.write_bytes(emoji.FILE.read_bytes()[:1000])
    monkeypatch.setattr(emoji, "FILE", file)
    with pytest.raises(UserError, match=r"emoji32.npz cannot be read as npz"):
        load("emoji").class_names()
