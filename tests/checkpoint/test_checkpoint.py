"""Checkpoints: saved by one process, loaded by another without data, with identical outputs (ptq4dit.md §6 no. 15)."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import BLOCKS, fitted, output, points, refuse

from qdit.activation import DynamicActivation
from qdit.checkpoint import checkpoint
from qdit.checkpoint.manifest import MANIFEST, TENSORS, Manifest
from qdit.errors import UserError
from qdit.ledger import weight_storage_bits
from qdit.method import Method, quantize
from qdit.model.dit import DiT
from qdit.nn.quantizers import BookQuantizer
from qdit.quant.books import Uniform
from qdit.quant.ranges import MinMax
from qdit.quant.time_groups import ALL
from qdit.quantized import Quantized
from qdit.rounding import Nearest
from qdit.scope import Scope
from qdit.weight import WeightGrid

FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from qdit.checkpoint import checkpoint
from qdit.model.dit import DiT

torch.manual_seed(20261121)
torch.randn(1000)
pipeline, folder, given, result = map(Path, sys.argv[1:])
model = DiT(name="tiny", path=str(pipeline)).load("cpu", torch.float32)
quantized, data = checkpoint.load(folder, model), load_file(given)
with quantized.installed(model), torch.no_grad():
    save_file({"output": model.denoise(data["x"], data["t"], data["y"])}, result)
"""


@pytest.mark.slow
def test_no_15_another_process_under_another_seed(tiny_model, tiny_pipeline, tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    quantized, data = fitted(tiny_model), points()
    checkpoint.save(quantized, tmp_path / "saved", checkpoint.provenance(tiny_model))
    save_file({"x": data.x, "t": data.t, "y": data.y}, tmp_path / "given.safetensors")
    places = [tiny_pipeline, tmp_path / "saved", tmp_path / "given.safetensors", tmp_path / "result.safetensors"]
    # As here: the last bits of a product depend on the threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", FRESH, *map(str, places)], check=True, env=environment, cwd=tmp_path)
    assert torch.equal(load_file(places[-1])["output"], output(tiny_model, quantized))


def test_a_loaded_model_is_what_was_saved(tiny_model, tmp_path):
    quantized = fitted(tiny_model)
    checkpoint.save(quantized, tmp_path, checkpoint.provenance(tiny_model))
    before = output(tiny_model, Quantized(quantized.policy, {}))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert torch.equal(output(tiny_model, Quantized(quantized.policy, {})), before)  # the base model is as it was
    assert torch.equal(output(tiny_model, loaded), output(tiny_model, quantized))
    assert loaded.policy == quantized.policy
    assert loaded.rewrite.layers.keys() == quantized.rewrite.layers.keys()
    q, k, out = (loaded.layers[f"transformer_blocks.0.attn1.{n}"] for n in ("to_q", "to_k", "to_out.0"))
    assert q.quantizer is k.quantizer  # they read one input, which is rounded once
    assert q.quantizer is not out.quantizer
    for name, layer in quantized.layers.items():
        for key, tensor in layer.state_dict().items():
            assert torch.equal(loaded.layers[name].state_dict()[key], tensor), (name, key)


def test_layers_that_read_the_clock_read_that_of_the_model(tiny_model, tmp_path):
    quantized = fitted(tiny_model)
    name = "transformer_blocks.0.attn1.to_out.0"
    grid = quantized.layers[name].quantizer
    numbers = torch.cat([grid.scale, grid.zero_point], 1).unsqueeze(0)
    timed = BookQuantizer(grid.spec, Uniform(grid.low, grid.high), numbers, ALL, tiny_model.clock)
    quantized.layers[name].quantizer = timed
    checkpoint.save(quantized, tmp_path, checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert loaded.layers[name].quantizer.clock is tiny_model.clock


def test_the_same_model_is_saved_with_the_same_bytes(tiny_model, tmp_path):
    for place in ("one", "two"):
        checkpoint.save(fitted(tiny_model), tmp_path / place, checkpoint.provenance(tiny_model, note=place))
    one, two = (Manifest.read(tmp_path / place) for place in ("one", "two"))
    assert one.tensors.read_bytes() == two.tensors.read_bytes()
    assert one.identity == two.identity


@pytest.mark.parametrize(("granularity", "bits"), [("row", 4), ("row", 6), ("group", 4), ("group", 8)])
def test_sizes_are_those_of_the_ledger(granularity, bits, tmp_path):
    """Codes at their bits; the ledger counts scales as 16 bits, and they are stored in 32."""
    model = DiT(name="emoji").load("cpu", torch.float32)
    size = 128 if granularity == "group" else None
    recipe = Method(
        scope=Scope(roles=BLOCKS),
        weight=WeightGrid(granularity=granularity, group_size=size, grid="asymmetric", range=MinMax()),
        activation=DynamicActivation(granularity="row", grid="asymmetric"),
        rounding=Nearest(),
        weight_bits=bits,
        activation_bits=8,
        calibration=None,
    )
    saved = checkpoint.save(quantize(model, recipe, refuse), tmp_path, checkpoint.provenance(model))
    sites = [s for s in model.sites() if s.name in saved.content["policy"]]
    spec = recipe.weight.spec(bits)
    counted = sum(weight_storage_bits(site, spec) for site in sites) / 8
    tensors = checkpoint.load_tensors(saved.tensors)
    stored = sum(t.nbytes for name, t in tensors.items() if not name.endswith(".bias"))
    assert counted < stored < 1.05 * counted
    assert saved.bytes() < 1.1 * counted
    for site in sites:
        codes = tensors[f"{site.name}.codes"]
        assert codes.nbytes == (site.in_features * site.out_features * bits + 7) // 8


@pytest.fixture(scope="module")
def saved(tiny_pipeline, tmp_path_factory) -> Path:
    """A whole checkpoint; tests change copies of it."""
    model, folder = DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.float32), tmp_path_factory.mktemp("c")
    checkpoint.save(fitted(model), folder, checkpoint.provenance(model))
    return folder


def copied(saved: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _drop(name):
    return lambda folder: (folder / name).unlink()


def _cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _replace(old: str, new: str):
    def change(folder):
        text = (folder / MANIFEST).read_text()
        assert old in text
        (folder / MANIFEST).write_text(text.replace(old, new, 1))

    return change


def _flip(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(data)


def _foreign(folder):
    (folder / MANIFEST).write_text('{"weight_map": {}}')


def _reformed(folder):
    """A whole file that names a class which does not exist here."""
    from qdit.checkpoint import manifest

    content = json.loads((folder / MANIFEST).read_text().replace("StaticQuantizer", "QuantumQuantizer"))
    manifest.write(folder, {k: v for k, v in content.items() if k not in ("format", "tensors", "digest")})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_drop(MANIFEST), "is unfinished"),
        (_drop(TENSORS), r"quantized.safetensors is missing"),
        (_cut(MANIFEST), r"quantized.json is damaged"),
        (_cut(TENSORS), r"quantized.safetensors is damaged \(it has \d+ bytes instead of"),
        (_flip, r"quantized.safetensors is damaged \(its digest differs"),
        (_foreign, r"quantized.json is no checkpoint of qdit"),
        (_replace('"format": 1', '"format": 2'), "has format 2, and this qdit reads 1"),
        (_replace('"bits": 8', '"bits": 7'), r"quantized.json is damaged \(its digest differs"),
        (_reformed, r"cannot be put together by this version of qdit .*QuantumQuantizer"),
    ],
)
def test_what_is_not_whole_is_refused_in_a_sentence(harm, message, saved, tiny_model, tmp_path):
    folder = copied(saved, tmp_path / "copy")
    harm(folder)
    with pytest.raises(UserError, match=message):
        checkpoint.load(folder, tiny_model)


def test_another_model_or_dtype_or_no_checkpoint_is_refused(saved, tiny_model, tiny_pipeline, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} holds no checkpoint"):
        checkpoint.load(tmp_path, tiny_model)
    half = DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.bfloat16)
    with pytest.raises(UserError, match="saved of a model in float32, and this one is in bfloat16; use dtype=float32"):
        checkpoint.load(saved, half)
    with torch.no_grad():
        next(tiny_model.denoiser.parameters()).view(-1)[0] += 1
    with pytest.raises(UserError, match="belongs to a model with other weights"):
        checkpoint.load(saved, tiny_model)


def test_a_transform_that_is_carried_out_otherwise_is_refused(saved, tiny_model, monkeypatch):
    from qdit.transform.folding import Draft

    original = Draft.scale_output
    monkeypatch.setattr(Draft, "scale_output", lambda self, producer, by: original(self, producer, by * 1.0001))
    with pytest.raises(UserError, match="carries out the transform otherwise"):
        checkpoint.load(saved, tiny_model)


@pytest.mark.parametrize("place", ["save_plain", "write"])
def test_a_killed_save_leaves_no_checkpoint_and_is_made_up_for(place, tiny_model, tmp_path, monkeypatch):
    quantized, about = fitted(tiny_model), checkpoint.provenance(tiny_model)
    checkpoint.save(quantized, tmp_path, about)

    def killed(*_: object):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, place, killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(quantized, tmp_path, about)
    with pytest.raises(UserError, match="unfinished"):
        checkpoint.load(tmp_path, tiny_model)
    checkpoint.save(quantized, tmp_path, about)
    assert torch.equal(output(tiny_model, checkpoint.load(tmp_path, tiny_model)), output(tiny_model, quantized))
    assert not list(tmp_path.glob("*.tmp"))


def test_a_rewrite_of_unknown_origin_is_not_saved(tiny_model, tmp_path):
    quantized = fitted(tiny_model)
    with pytest.raises(UserError, match=r"Rewrite\.origin"):
        checkpoint.save(
            replace(quantized, rewrite=replace(quantized.rewrite, origin=None)),
            tmp_path,
            checkpoint.provenance(tiny_model),
        )
    assert not list(tmp_path.iterdir())
