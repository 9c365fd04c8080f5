"""GPTQ and AdaRound on a text-to-image and a text-to-video model, and AdaRound on blocks with two streams."""

import pytest
import torch
from helpers.adaround_parts import OPERANDS, STATIC, recipe
from helpers.text_models import load, points

from qdit.method import quantize
from qdit.rounding import GPTQ, AdaRound, Nearest
from qdit.storage import scratch

ROLES = ["qkv", "attn_out", "cross_q", "cross_kv", "cross_out", "ffn_up", "ffn_down", "modulation", "embedder", "final"]


@pytest.fixture(scope="module", params=["pixart_sigma", "latte"])
def model(request, tmp_path_factory):
    """A family's tiny model with three prompts; it is not changed."""
    return load(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def error(model, rounding, **parts):
    """The squared error of a network that was rounded for 7 points, on others."""
    data = points(model, 4, 1)
    expected = model.denoise(data.x, data.t, data.y)
    parts = {"roles": ROLES, "bits": (3, 8)} | parts
    with quantize(model, recipe(rounding, **parts), lambda: points(model, 7)).installed(model):
        return float((model.denoise(data.x, data.t, data.y) - expected).square().mean())


@pytest.mark.parametrize(
    "rounding",
    [
        GPTQ(order="sequential"),
        AdaRound(iterations=8, low_bits=1),
        AdaRound(iterations=4, low_bits=1, weighting="fisher"),
    ],
    ids=["gptq", "adaround", "fisher"],
)
def test_learned_rounding_is_closer_than_nearest(model, rounding):
    assert error(model, rounding) < error(model, Nearest())


def test_blocks_of_two_streams_and_of_one_are_closer_than_nearest(tmp_path):
    made, joined = load("flux2_klein", tmp_path), ["text_qkv", "text_out", "text_up", "text_down"]
    roles = [*ROLES, *joined, "parallel_in", "parallel_out"]
    learned = [AdaRound(iterations=8, low_bits=1), AdaRound(iterations=8, low_bits=1, weighting="fisher")]
    for rounding in (GPTQ(order="sequential"), *learned):
        assert error(made, rounding, roles=roles) < error(made, Nearest(), roles=roles)


def test_attention_operands_learn_too(model):
    assert error(model, AdaRound(iterations=2, low_bits=1), activation=STATIC, attention=OPERANDS) < float("inf")


def test_a_resumed_fit_ends_with_the_bytes_of_an_undisturbed_one(model, tmp_path):
    parts = recipe(AdaRound(iterations=2), roles=ROLES)
    whole, again = tmp_path / "whole", tmp_path / "again"
    quantize(model, parts, lambda: points(model, 5), whole)
    quantize(model, parts, lambda: points(model, 5), again)
    for file in (lost := sorted(again.iterdir())[1::2]):
        file.unlink()
    quantize(model, parts, lambda: points(model, 5), again)
    assert lost
    assert all(file.read_bytes() == (again / file.name).read_bytes() for file in whole.iterdir())


@pytest.mark.parametrize("rounding", [GPTQ(), AdaRound(iterations=2, low_bits=1)], ids=["gptq", "adaround"])
def test_activations_on_disk_give_the_bits_of_those_in_memory(model, rounding, tmp_path, monkeypatch):
    parts = recipe(rounding, roles=["embedder", "ffn_up"])
    memory = quantize(model, parts, lambda: points(model, 5))
    made = Spied(monkeypatch)
    disk = quantize(model, parts, lambda: points(model, 5), tmp_path)
    assert made.folders == {tmp_path}
    for name, layer in memory.layers.items():
        assert torch.equal(layer.weight, disk.layers[name].weight), name


class Spied:
    """No budget of memory, and where what is on disk lies."""

    def __init__(self, monkeypatch):
        self.folders = set()
        mapped = scratch._mapped
        monkeypatch.setattr(scratch, "BUDGET", 0)
        monkeypatch.setattr(scratch, "_mapped", lambda folder, size: self.folders.add(folder) or mapped(folder, size))
