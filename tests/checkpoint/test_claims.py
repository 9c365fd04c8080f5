"""What a checkpoint says of itself is what is in it: bits, policy, scope and parts that were edited are refused."""

import json
from copy import deepcopy

import pytest
import torch
from helpers.checkpoints import BLOCKS, fitted, output

from qdit.checkpoint import checkpoint, claims, manifest
from qdit.checkpoint.manifest import MANIFEST, Manifest
from qdit.errors import UserError
from qdit.model.dit import DiT

NONE = {"name": "none"}
CONFIG = {
    "study": "s",
    "name": "n",
    "quantizer": {"name": "rtn", "paper": None},
    "bits": {"name": "w4a8", "weight": 4, "activation": 8},
    "scope": {"_target_": "qdit.scope.Scope", "roles": BLOCKS, "include": [], "exclude": []},
    "weight": {"_target_": "qdit.weight.WeightGrid", "granularity": "row", "group_size": None, "grid": "asymmetric"},
    "transform": {"_target_": "qdit.transform.ChannelScaling"},
    **dict.fromkeys(("attention", "correction", "search"), NONE),
}
FIRST = "transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def model(tiny_pipeline):
    return DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.float32)


@pytest.fixture(scope="module")
def quantized(model):
    return fitted(model)


@pytest.fixture(scope="module")
def saved(model, quantized, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return checkpoint.save(quantized, folder, checkpoint.provenance(model, config=CONFIG))


@pytest.fixture
def edited(saved, tmp_path):
    """A function that saves the checkpoint again, with its manifest changed and a digest that is right."""

    def edit(change):
        content = deepcopy({k: v for k, v in saved.content.items() if k not in ("format", "tensors", "digest")})
        change(content)
        (tmp_path / saved.tensors.name).write_bytes(saved.tensors.read_bytes())
        manifest.write(tmp_path, content)
        return tmp_path

    return edit


def test_what_agrees_is_loaded(edited, model, quantized):
    assert torch.equal(output(model, checkpoint.load(edited(lambda _: None), model)), output(model, quantized))


def claim(**changes):
    return lambda content: content["provenance"]["config"].update(changes)


def policy(part: str, **changes):
    return lambda content: content["policy"][FIRST][part].update(changes)


def every(part: str, **changes):
    def change(content):
        for layer in content["policy"].values():
            layer[part].update(changes)

    return change


def codes(content):
    content["model"]["layers"][FIRST]["rounded"]["state"]["spec"]["bits"] = 2
    content["policy"][FIRST]["weight"]["bits"] = 2


def two_bits(content):
    """All that is readable says two bits; the codes have four."""
    every("weight", bits=2)(content)
    for layer in content["model"]["layers"].values():
        layer["rounded"]["state"]["spec"]["bits"] = 2
    claim(bits={"name": "w2a8", "weight": 2, "activation": 8})(content)


def finer(content):
    """The input's quantizer says two bits, and has the levels of eight."""
    text = json.dumps(content["model"]).replace('"bits": 8', '"bits": 2')
    content["model"] = json.loads(text)
    every("activation", bits=2)(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (claim(bits={"name": "w2a2", "weight": 2, "activation": 2}), "bits.weight=2, and its weights have 4"),
        (claim(bits={"name": "w4a2", "weight": 4, "activation": 2}), "bits.activation=2, and its inputs have 8"),
        (claim(bits={"name": "w4a16", "weight": 4, "activation": 16}), "bits.activation=16, and its inputs have 8"),
        (claim(weight=CONFIG["weight"] | {"granularity": "tensor"}), "weight.granularity=tensor, and it has row"),
        (claim(scope=CONFIG["scope"] | {"roles": []}), "nothing is quantized"),
        (claim(scope=CONFIG["scope"] | {"roles": ["qkv"]}), "scope and its layers differ in transformer_blocks.0.a"),
        (claim(transform=NONE), "transform is none, and it has ChannelScaling"),
        (claim(scope="blocks"), "is damaged"),
        (claim(bits=4), "is damaged"),
        (claim(quantizer="rtn"), "is damaged"),
        (claim(name=["n"]), "is damaged"),
        (lambda content: content.update(provenance=[]), "is damaged"),
        (lambda content: content.update(base={"digest": 1}), "is damaged"),
        (lambda content: content["model"].update(layers=[]), "is damaged"),
        (policy("weight", bits=2), f"{FIRST} has weights of 4 bits, and its policy says 2"),
        (every("activation", bits=2), "rounds its input to 8 bits, and its policy says 2"),
        (policy("weight", granularity="tensor"), "has weights of 4 bits"),
        (lambda content: content["policy"][FIRST].update(bases=2), "has weights of 4 bits, and its policy says 4, 4"),
        (lambda content: content["policy"].pop(FIRST), f"policy and layers differ in {FIRST}"),
        (codes, "bits.weight=4, and its weights have 2, 4"),
        (two_bits, r"cannot be put together .* bytes hold no \d+ codes of 2 bits"),
        (finer, "rounds its input to 256 levels, and its policy says 2 bits"),
    ],
)
def test_what_was_edited_is_refused(change, message, edited, model):
    with pytest.raises(UserError, match=message):
        checkpoint.load(edited(change), model)


def test_scales_must_be_as_many_as_the_spec_says(edited, model):
    def coarser(content):
        every("weight", granularity="tensor")(content)
        for layer in content["model"]["layers"].values():
            layer["rounded"]["state"]["spec"]["granularity"] = "tensor"
        claim(weight=CONFIG["weight"] | {"granularity": "tensor"})(content)

    with pytest.raises(UserError, match="32 scales and 32 zero points do not fit 1 rows"):
        checkpoint.load(edited(coarser), model)


def test_a_manifest_of_another_encoding_or_depth_is_one_message(saved, tmp_path):
    for text in (b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "format": 1}', b'{"format": NaN}'):
        (tmp_path / MANIFEST).write_bytes(text)
        with pytest.raises(UserError, match=r"quantized.json is damaged: .*; save the checkpoint again"):
            Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("probs", "attention", "message"),
    [
        (8, {"probability_bits": 8}, None),
        (4, {"probabilities": {"bits": 4}}, None),
        (8, {"probabilities": {"bits": None}}, "bits.activation=6, and its inputs have 6, 8"),
        (6, {"probabilities": {"bits": None}}, None),
        (6, {"probabilities": {"bits": 4}}, "probabilities have 4 bits, and they have 6"),
    ],
)
def test_probabilities_may_have_bits_of_their_own(probs, attention, message):
    rounded = {"a.q": 6, "a.probs": probs, "up": 6}
    claimed = {name: {"activation": {"bits": bits}} for name, bits in rounded.items()}
    config = {"bits": {"activation": 6}, "attention": attention}
    found = claims._activations(config, claimed, ["a.q", "a.probs"])
    assert (found == []) if message is None else (message in found[0])
