"""Checkpoints: saved by one process, loaded by another without data, with identical outputs (ptq4dit.md §6 no. 15)."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from torch import nn

from qdit import checkpoint
from qdit import run as running
from qdit.activation import DynamicActivation, StaticActivation
from qdit.calibration import CalibrationData
from qdit.cli import CONF
from qdit.config import resolved
from qdit.cost import weight_storage_bits
from qdit.errors import UserError
from qdit.manifest import MANIFEST, TENSORS, Manifest
from qdit.model.dit import DiT
from qdit.plain import Reader, Writer, find_class
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.quantize import Quantized, Recipe, quantize
from qdit.rounding import Nearest
from qdit.scope import Scope
from qdit.store import RECIPE_KEYS
from qdit.transform import ChannelScaling
from qdit.transform.statistics import Maximum
from qdit.weight import WeightGrid

BLOCKS = ["qkv", "attn_out", "ffn_up", "ffn_down"]
PROTOCOL = [
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=emoji"),
    *("eval=smoke", "device=cpu", "sampler.steps=3", "num_samples=4", "batch_size=2"),
]
SMALL = {"weight.group_size": 16, "activation.group_size": 16, "rounding.iterations": 3, "correction.num_samples": 2}


def composed(*words: str):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(words))


def run(pipeline: Path, root: Path, *words: str) -> tuple[dict, Path]:
    """The record of a run on the tiny pipeline, and its folder."""
    places = [f"model.path={pipeline}", f"runs_dir={root / 'runs'}", f"cache_dir={root / 'cache'}"]
    every = [*PROTOCOL, *places, *words]
    cfg = composed(*{word.split("=")[0]: word for word in every}.values())
    record = running.run(cfg)
    assert record is not None
    return record, root / "runs" / record["study"] / f"{record['name']}-{record['run_id']}"


def small(*words: str) -> list[str]:
    """The words, with what makes their recipe small."""
    config = resolved(composed(*words))
    wanted = [f"{key}={value}" for key, value in SMALL.items() if config[key.split(".")[0]].get(key.split(".")[1])]
    return [*words, "calibration.num_samples=8", *wanted]


def latents(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "samples").glob("latents*"))]


def refuse(*_: object, **__: object):
    raise AssertionError("calibration data is not needed")


def points() -> CalibrationData:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, 8, 8, generator=generator)
    return CalibrationData(x, torch.linspace(0, 999, 6).long(), torch.arange(6) % 10, 3)


def fitted(model, roles=BLOCKS) -> Quantized:
    """Static inputs, behind a scaling that is folded where it can be."""
    recipe = Recipe(
        scope=Scope(roles=roles),
        weight=WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        activation=StaticActivation(granularity="tensor", grid="asymmetric", range=MinMax()),
        rounding=Nearest(),
        weight_bits=4,
        activation_bits=8,
        calibration=None,
        transform=ChannelScaling(name="smooth", roles=BLOCKS, alpha=0.5, statistic=Maximum()),
    )
    return quantize(model, recipe, points)


def output(model, quantized) -> torch.Tensor:
    data = points()
    with quantized.installed(model), torch.no_grad():
        return model.denoise(data.x, data.t, data.y)


QUANTIZERS = sorted(p.stem for p in (CONF / "quantizer").glob("*.yaml") if p.stem not in ("fp", "load"))
OPTIONS = [
    *("quantizer=rtn weight.grid=symmetric bits=w3a8", "quantizer=rtn weight.grid=symmetric_full bits=w6a6"),
    *("quantizer=rtn weight.grid=asymmetric_free bits=w8a16", "quantizer=rtn scope=all activation=tensor"),
    *("quantizer=rtn weight=tensor attention=uniform", "quantizer=rtn correction=ptqd dtype=bfloat16"),
    "quantizer=q_dit transform=salience scope=blocks_adaln",
]


@pytest.mark.parametrize("words", [*(f"quantizer={name}" for name in QUANTIZERS), *OPTIONS])
def test_every_recipe_is_saved_and_loaded_with_identical_samples(words, tiny_pipeline, tmp_path, monkeypatch):
    record, folder = run(tiny_pipeline, tmp_path, *small(*words.split()))
    assert record["checkpoint"]["bytes"] == sum(file.stat().st_size for file in (folder / "checkpoint").iterdir())
    monkeypatch.setattr("qdit.stages.calibrate", refuse)
    monkeypatch.setattr("qdit.stages.quantize", refuse)
    same = [f"dtype={record['config']['dtype']}", f"quantizer.path={folder}"]
    loaded, other = run(tiny_pipeline, tmp_path, "quantizer=load", *same)
    assert latents(other) == latents(folder)
    assert loaded["metrics"] == record["metrics"]
    assert loaded["layers"] == record["layers"]
    assert {k: v for k, v in loaded["cost"].items() if k in ("model_bytes", "bops", "weight_bits_quantized")} == {
        k: v for k, v in record["cost"].items() if k in ("model_bytes", "bops", "weight_bits_quantized")
    }
    assert loaded["name"] == f"load-{record['name']}"
    assert loaded["config"]["quantizer.name"] == "load"
    assert loaded["config"]["quantizer.source.run_id"] == record["run_id"]
    assert loaded["config"]["bits.name"] == record["config"]["bits.name"]


FRESH = """
import sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from qdit import checkpoint
from qdit.model.dit import DiT

torch.manual_seed(20261121)
torch.randn(1000)
pipeline, folder, given, result = map(Path, sys.argv[1:])
model = DiT(name="tiny", path=str(pipeline)).load("cpu", torch.float32)
quantized, data = checkpoint.load(folder, model), load_file(given)
with quantized.installed(model), torch.no_grad():
    save_file({"output": model.denoise(data["x"], data["t"], data["y"])}, result)
"""


def test_no_15_another_process_under_another_seed(tiny_model, tiny_pipeline, tmp_path):
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    quantized, data = fitted(tiny_model), points()
    checkpoint.save(quantized, tmp_path / "saved", checkpoint.provenance(tiny_model))
    save_file({"x": data.x, "t": data.t, "y": data.y}, tmp_path / "given.safetensors")
    places = [tiny_pipeline, tmp_path / "saved", tmp_path / "given.safetensors", tmp_path / "result.safetensors"]
    # As here: the last bits of a product depend on the threads.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
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
    quantized.layers[name].quantizer.timed = tiny_model.clock
    checkpoint.save(quantized, tmp_path, checkpoint.provenance(tiny_model))
    loaded = checkpoint.load(tmp_path, tiny_model)
    assert loaded.layers[name].quantizer.timed is tiny_model.clock


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
    recipe = Recipe(
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
    from qdit import manifest

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
    from qdit.transform.draft import Draft

    original = Draft.scale_output
    monkeypatch.setattr(Draft, "scale_output", lambda self, producer, by: original(self, producer, by * 1.0001))
    with pytest.raises(UserError, match="carries out the transform otherwise"):
        checkpoint.load(saved, tiny_model)


@pytest.mark.parametrize("place", ["save_tensors", "write"])
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


class Outside(nn.Module):
    pass


def test_only_classes_of_qdit_and_torch_are_saved_and_made():
    with pytest.raises(UserError, match=r"site.quantizer is a .*Outside, which cannot be saved"):
        Writer().value(Outside(), "site.quantizer")
    with pytest.raises(UserError, match="x.see is a .*function, which cannot be saved"):
        Writer().value({"see": refuse}, "x")
    for name in ("os.system", "subprocess.Popen", "torch.load", "qdit.checkpoint.Path", "qdit.errors.UserError"):
        with pytest.raises(ValueError, match="cannot be loaded"):
            find_class(name)


def test_plain_values_tensors_and_shared_objects_come_back():
    writer, spec = Writer(), QuantSpec(bits=4)
    linear = nn.Linear(2, 3, bias=False).requires_grad_(False).eval()
    value = {"a": [1, 2.5, None, True], (1, "b"): (spec, spec), "linear": linear, "dtype": torch.bfloat16}
    tree = json.loads(json.dumps(writer.value(value, "it")))
    found = Reader(writer.tensors, torch.device("cpu")).value(tree)
    assert found.keys() == value.keys()
    assert found["a"] == value["a"]
    assert found[1, "b"] == (spec, spec)
    assert found[1, "b"][0] is found[1, "b"][1]
    assert found["dtype"] is torch.bfloat16
    assert not found["linear"].training
    assert torch.equal(found["linear"](torch.ones(2)), linear(torch.ones(2)))


def test_what_belongs_to_the_base_model_is_given_and_not_made_again():
    writer, mine = Writer(), QuantSpec(bits=4)
    tree = writer.value({"a": QuantSpec(bits=8), "b": 1}, "it")
    assert Reader({}, torch.device("cpu"), {QuantSpec: mine}).value(tree)["a"] is mine


def test_parts_of_a_recipe_beside_a_checkpoint_are_refused(tiny_pipeline, tmp_path):
    config = resolved(composed("quantizer=load", "quantizer.path=x"))
    assert [key for key in RECIPE_KEYS if key in config] == ["bits"]
    with pytest.raises(UserError, match="rounding and bits cannot be chosen with quantizer=load"):
        run(tiny_pipeline, tmp_path, "quantizer=load", "quantizer.path=x", "bits=w8a8", "rounding=gptq")
    with pytest.raises(UserError, match="no value for quantizer.path; give one"):
        run(tiny_pipeline, tmp_path, "quantizer=load")
    with pytest.raises(UserError, match=r"quantizer.path=7; the folder of a run"):
        run(tiny_pipeline, tmp_path, "quantizer=load", "quantizer.path=7")


def test_runs_save_when_told_to_and_overwriting_a_load_leaves_its_source(tiny_pipeline, tmp_path, capsys):
    from qdit.sampler.sampler import Sampler

    record, folder = run(tiny_pipeline, tmp_path, "quantizer=rtn", "save_checkpoint=false")
    assert record["checkpoint"] is None
    assert not (folder / "checkpoint").exists()
    before = latents(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sampler, "step", lambda *a: pytest.fail("samples were made again"))
        record, _ = run(tiny_pipeline, tmp_path, "quantizer=rtn")
    assert record["checkpoint"]["bytes"] > 0
    (folder / "checkpoint" / MANIFEST).rename(tmp_path / MANIFEST)
    assert run(tiny_pipeline, tmp_path, "quantizer=rtn")[0] == record  # what was thrown away is not made again
    (tmp_path / MANIFEST).rename(folder / "checkpoint" / MANIFEST)
    words = ["quantizer=load", f"quantizer.path={folder}"]
    _, loaded = run(tiny_pipeline, tmp_path, *words)
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")}
    run(tiny_pipeline, tmp_path, *words, "overwrite=true")
    assert latents(loaded) == before
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*.*")} == kept
    assert not (loaded / "checkpoint").exists()
    assert running.run(composed(*PROTOCOL, f"model.path={tiny_pipeline}", *words, "dry=true")) is None
    shown = capsys.readouterr().out
    assert "12 of 21 sites quantized" in shown
    assert f"saved by quantizer rtn, study default, name rtn-w4a8, seed 0, run_id {record['run_id']}" in shown


def test_a_rewrite_of_unknown_origin_is_not_saved(tiny_model, tmp_path):
    quantized = fitted(tiny_model)
    with pytest.raises(UserError, match=r"Rewrite\.origin"):
        checkpoint.save(
            replace(quantized, rewrite=replace(quantized.rewrite, origin=None)),
            tmp_path,
            checkpoint.provenance(tiny_model),
        )
    assert not list(tmp_path.iterdir())
