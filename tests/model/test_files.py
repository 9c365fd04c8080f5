"""Loading: no weight twice in memory, dtypes that are checked, and one set of weights fetched from the hub."""

import logging
import shutil

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.benchmarks.depth import LiveBytes
from qdit.errors import UserError
from qdit.model.files import VARIANTS, load_module, locate

KIND = diffusers.DiTTransformer2DModel


@pytest.fixture
def folder(tiny_pipeline):
    return tiny_pipeline / "transformer"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_weight_is_in_memory_twice(folder, dtype):
    with LiveBytes() as live:
        module = load_module(KIND, folder, dtype)
    weights = sum(p.nbytes for p in module.parameters())
    tables = sum(b.nbytes for b in module.buffers())
    assert live.peak <= (0.5 if dtype == torch.float32 else 1.5) * weights + 4 * tables  # float32 is the file's own
    assert {p.dtype for p in module.parameters()} == {dtype}


def test_what_a_class_keeps_in_float32_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr(KIND, "_keep_in_fp32_modules", ["pos_embed", "proj_out_2"])
    with caplog.at_level(logging.WARNING, "qdit"):
        module = load_module(KIND, folder, torch.bfloat16)
    assert module.proj_out_2.weight.dtype == torch.float32
    assert "keeps 4 of 44 weights in float32 with dtype=bfloat16, as its class demands, such as pos_embed.proj" in (
        caplog.text
    )
    caplog.clear()
    load_module(KIND, folder, torch.float32)
    assert not caplog.records


def test_a_class_that_stays_in_another_dtype_is_refused(folder, monkeypatch):
    original = KIND.from_pretrained
    monkeypatch.setattr(KIND, "from_pretrained", lambda *a, **k: original(*a, **(k | {"torch_dtype": torch.float32})))
    message = r"dtype=bfloat16 was asked for, and 44 of 44 weights are in float32 .*DiTTransf.*; use dtype=float32"
    with pytest.raises(UserError, match=message):
        load_module(KIND, folder, torch.bfloat16)


@pytest.mark.parametrize("plain", [True, False])
def test_variants_are_fetched_only_where_there_is_no_plain_set(tmp_path, folder, monkeypatch, plain):
    asked = []

    def snapshot(repo, revision, allow_patterns, ignore_patterns=()):
        asked.append(list(ignore_patterns))
        (tmp_path / "transformer").mkdir(exist_ok=True)
        for file in folder.iterdir():
            if file.suffix == ".json" or plain or len(asked) > 1:
                shutil.copy(file, tmp_path / "transformer")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert locate("owner/name", None, "model.path", ["transformer/*.json", "transformer/*.safetensors"]) == tmp_path
    assert asked == ([VARIANTS] if plain else [VARIANTS, []])


@pytest.mark.parametrize(
    ("surplus", "message"),
    [
        ("to_q.lora_A.default.weight", r"An adapter \(LoRA\) is in place: fuse or unload it, and save again"),
        ("to_qkv.weight", r"Projections are fused: call unfuse_qkv_projections\(\), and save again"),
    ],
)
def test_what_was_done_to_a_network_is_named(tmp_path, folder, surplus, message):
    shutil.copytree(folder, tmp_path / "transformer")
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    save_file(weights | {f"transformer_blocks.0.attn1.{surplus}": torch.zeros(2, 2)}, file)
    with pytest.raises(UserError, match=message):
        load_module(KIND, tmp_path / "transformer", torch.float32)
