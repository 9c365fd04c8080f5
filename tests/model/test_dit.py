"""The DiT adapter: sites, parity with the original's details, decoding, and every complaint about files."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from qdit import assets, keys
from qdit.errors import UserError
from qdit.model import weights
from qdit.model.dit import DiT
from qdit.model.roles import ROLES

CONF = Path(__file__).parents[2] / "conf" / "model"
OPTIONS = sorted(p.stem for p in CONF.glob("*.yaml") if "qdit.model.dit.DiT" in p.read_text())
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def load(folder, **changes):
    return DiT(name="tiny", path=str(folder), **changes).load("cpu", torch.float32)


@pytest.fixture
def pipeline(tiny_pipeline, tmp_path):
    """A copy of the tiny pipeline that a test may damage."""
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "model"))


def edit_weights(pipeline, edit):
    tensors = load_file(pipeline / WEIGHTS)
    edit(tensors)
    save_file(tensors, pipeline / WEIGHTS)


def edit_config(pipeline, part="transformer", **changes):
    file = pipeline / part / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", OPTIONS)
def test_options_build_with_equal_keys(name):
    config = OmegaConf.load(CONF / f"{name}.yaml")
    assert list(config) == list(OmegaConf.load(CONF / "emoji_dit.yaml"))
    assert instantiate(config).name == name
    if name.startswith("dit_"):
        assert instantiate(config).protocol().endswith("vae=own|frequencies=dit|eps=1e-06")


def test_facts_of_the_tiny_model(tiny_model):
    assert tiny_model.latent_shape == (4, 8, 8)
    assert (tiny_model.num_classes, tiny_model.null_class, tiny_model.image_size) == (10, 10, 16)
    assert tiny_model.learned_variance
    assert not tiny_model.denoiser.training
    assert not any(p.requires_grad for p in tiny_model.denoiser.parameters())
    assert tiny_model.scheduler_config()["beta_schedule"] == "linear"


def test_sites_are_every_linear_in_forward_order(tiny_model):
    sites, called, handles = tiny_model.sites(), {}, []
    kinds = {n: m for n, m in tiny_model.denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    for name, module in kinds.items():

        def record(module, args, output, name=name):
            called.setdefault(name, (args[0], output))

        handles.append(module.register_forward_hook(record))
    tiny_model.denoise(torch.randn(2, 4, 8, 8), torch.tensor([5, 5]), torch.tensor([0, 1]))
    assert [s.name for s in sites] == list(called)
    assert set(called) == set(kinds)
    for site in sites:
        rows, output = called[site.name][0], called[site.name][1]
        assert site.role in set(ROLES) - {*keys.FOREIGN}
        assert site.macs * 2 == output.numel() * kinds[site.name].weight[0].numel()
        if isinstance(kinds[site.name], nn.Linear):
            assert (rows.numel() // rows.shape[-1], rows.shape[-1]) == (2 * site.tokens, site.in_features)
            assert site.out_features == kinds[site.name].out_features
    block = [(s.role, s.stage) for s in sites if s.block == 1 and s.stage >= 0]
    assert block == [("qkv", 0)] * 3 + [("attn_out", 1), ("ffn_up", 2), ("ffn_down", 3)]
    assert [s.role for s in sites].count("adaln") == 2
    assert sum(p.numel() for m in kinds.values() for p in [m.weight]) == sum(
        s.in_features * s.out_features for s in sites
    )


def test_timestep_frequencies(tiny_pipeline):
    t, i = torch.tensor([0, 37, 999]), torch.arange(128)
    for choice, half in {"dit": 128, "diffusers": 127}.items():
        projection = load(tiny_pipeline, timestep_frequencies=choice).denoiser.get_submodule(
            "transformer_blocks.1.norm1.emb.time_proj"
        )
        angle = t[:, None] * torch.exp(-math.log(10000) * i / half)
        assert torch.allclose(projection(t), torch.cat([angle.cos(), angle.sin()], 1), atol=1e-4)


def test_layer_norm_eps(tiny_pipeline):
    def all_eps(model):
        return {m.eps for m in model.denoiser.modules() if isinstance(m, nn.LayerNorm)}

    assert all_eps(load(tiny_pipeline)) == {1e-5, 1e-6}
    assert all_eps(load(tiny_pipeline, layer_norm_eps=1e-6)) == {1e-6}


def naive_dit(weights: dict, x, t, y):
    """The original DiT's forward pass on the tiny model's weights, in a few lines (frequencies i/half, eps 1e-6)."""

    def linear(name, v):
        return v @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(v):
        return (v - v.mean(-1, keepdim=True)) / (v.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def positions():
        at = torch.arange(4.0)[:, None] * torch.exp(-math.log(10000) * torch.arange(8) / 8)
        line = torch.cat([at.sin(), at.cos()], 1)  # [4, 16]
        return torch.cat([line.repeat(4, 1), line.repeat_interleave(4, 0)], 1)  # columns first, then rows

    b = len(x)
    patches = x.reshape(b, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, 16, 16)
    h = patches @ weights["pos_embed.proj.weight"].flatten(1).T + weights["pos_embed.proj.bias"] + positions()
    angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    frequencies = torch.cat([angle.cos(), angle.sin()], 1)
    conditions = []  # each block has its own copy of the embedder; the final layer reads block 0's
    for i in range(2):
        p = f"transformer_blocks.{i}."
        e = p + "norm1.emb.timestep_embedder.linear_"
        c = linear(e + "2", nn.functional.silu(linear(e + "1", frequencies)))
        c = c + weights[p + "norm1.emb.class_embedder.embedding_table.weight"][y]
        conditions.append(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(p + "norm1.linear", nn.functional.silu(c))[:, None].chunk(
            6, -1
        )
        v = norm(h) * (1 + scale1) + shift1
        q, k, v = (linear(f"{p}attn1.to_{n}", v).view(b, 16, 2, 16).transpose(1, 2) for n in "qkv")
        attended = ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).reshape(b, 16, 32)
        h = h + gate1 * linear(p + "attn1.to_out.0", attended)
        v = nn.functional.gelu(linear(p + "ff.net.0.proj", norm(h) * (1 + scale2) + shift2), approximate="tanh")
        h = h + gate2 * linear(p + "ff.net.2", v)
    shift, scale = linear("proj_out_1", nn.functional.silu(conditions[0]))[:, None].chunk(2, -1)
    out = linear("proj_out_2", norm(h) * (1 + scale) + shift)
    return out.view(b, 4, 4, 2, 2, 8).permute(0, 5, 1, 3, 2, 4).reshape(b, 8, 8, 8)


def test_original_details_make_it_the_original(tiny_pipeline):
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0, 400, 999]), torch.tensor([0, 4, 10])
    expected = naive_dit(load_file(tiny_pipeline / WEIGHTS), x, t, y)
    as_original = load(tiny_pipeline, timestep_frequencies="dit", layer_norm_eps=1e-6).denoise(x, t, y)
    assert (as_original - expected).abs().max() < 2e-4
    assert (load(tiny_pipeline).denoise(x, t, y) - expected).abs().max() > 1e-2  # the keys matter


def test_decode_follows_the_uint8_rule(tiny_model):
    latents = torch.randn(2, 4, 8, 8)
    images = tiny_model.decode(latents)
    scaled = latents / tiny_model.autoencoder.config.scaling_factor
    pixels = tiny_model.autoencoder.decode(scaled, return_dict=False)[0]
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images, (127.5 * pixels + 128).clamp(0, 255).to(torch.uint8))
    tiny_model.autoencoder.decode = lambda z, return_dict: (torch.tensor([-1.0, 0.0, 1.0, -3.0, 3.0]).expand(1, 5),)
    assert tiny_model.decode(latents)[0].tolist() == [0, 128, 255, 0, 255]


def test_decode_refuses_what_diverged(tiny_model):
    latents = torch.zeros(3, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"1 of 3 images are not finite .*\[1\]"):
        tiny_model.decode(latents)


def test_half_precision_on_disk_is_upcast_and_vae_path_is_used(pipeline, tiny_pipeline):
    edit_weights(pipeline, lambda w: w.update({k: v.half() for k, v in w.items()}))
    shutil.rmtree(pipeline / "vae")
    for vae in (tiny_pipeline, tiny_pipeline / "vae"):  # a whole pipeline, or the autoencoder's own folder
        model = load(pipeline, vae_path=str(vae))
        assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    model = DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.bfloat16)
    x = torch.randn(2, 4, 8, 8)
    assert model.denoise(x, torch.tensor([3, 3]), torch.tensor([0, 1])).dtype == torch.bfloat16
    assert {p.dtype for p in model.autoencoder.parameters()} == {torch.float32}


def test_checkpoint_with_the_old_class_name_loads(pipeline):
    edit_config(pipeline, _class_name="Transformer2DModel", norm_type="ada_norm_zero", cross_attention_dim=None)
    assert load(pipeline).num_classes == 10


def damage_truncate(pipeline):
    (pipeline / WEIGHTS).write_bytes((pipeline / WEIGHTS).read_bytes()[:-100])


def damage_pickle(pipeline):
    (pipeline / WEIGHTS).rename(pipeline / "transformer" / "diffusion_pytorch_model.bin")


def damage_nan(pipeline):
    edit_weights(pipeline, lambda w: w["transformer_blocks.1.attn1.to_q.weight"][0].fill_(float("nan")))


def damage_json(pipeline):
    (pipeline / "transformer" / "config.json").write_text("{")


DAMAGE = {
    "truncated": (damage_truncate, r"model\.safetensors is truncated or damaged"),
    "html": (lambda p: (p / WEIGHTS).write_bytes(b"<html>404</html>"), r"model\.safetensors is truncated or damaged"),
    "vae": (lambda p: (p / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), r"vae/.*truncated or damaged"),
    "pickle": (damage_pickle, r"diffusion_pytorch_model\.bin, a pickle"),
    "nan": (damage_nan, r"transformer_blocks\.1\.attn1\.to_q\.weight contains NaN or infinity"),
    "json": (damage_json, r"transformer/config\.json is damaged"),
    "architecture": (lambda p: edit_config(p, _class_name="FluxTransformer2DModel"), "FluxTransformer2DModel"),
    "pixart": (lambda p: edit_config(p, _class_name="Transformer2DModel", norm_type="ada_norm_single"), "DiTTransf"),
    "shape": (lambda p: edit_config(p, attention_head_dim=8), r"do not fit together.*expected shape torch.Size\(\[16"),
    "missing": (lambda p: edit_weights(p, lambda w: w.pop("proj_out_1.weight")), r"1 tensors missing \(proj_out_1"),
    "surplus": (lambda p: edit_config(p, num_layers=1), r"19 not used"),
    "scheduler": (lambda p: shutil.rmtree(p / "scheduler"), r"scheduler_config\.json is missing"),
    "no transformer": (lambda p: shutil.rmtree(p / "transformer"), r"transformer/config\.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_or_foreign_files_are_refused_by_name(kind, pipeline):
    damage, message = DAMAGE[kind]
    damage(pipeline)
    with pytest.raises(UserError, match=message) as caught:
        load(pipeline)
    assert "\n" not in str(caught.value)


def test_autoencoder_of_other_channels_is_refused(pipeline):
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=3, block_out_channels=(8,), norm_num_groups=4).save_pretrained(pipeline / "vae")
    with pytest.raises(UserError, match="3 latent channels, the transformer reads 4"):
        load(pipeline)


def test_missing_paths_say_where_they_were_sought(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=rf"looked for {tmp_path}/nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no such folder"):
        load("./also/not/there")
    monkeypatch.setattr(assets, "EMBEDDED", tmp_path)
    with pytest.raises(UserError, match="this embedded model is not installed"):
        DiT(name="emoji").load("cpu", torch.float32)


def test_wrong_frequencies_are_refused(tiny_pipeline):
    with pytest.raises(UserError, match="allowed: diffusers, dit"):
        load(tiny_pipeline, timestep_frequencies="sincos")


def test_hub_without_network_is_one_message(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("Name or service not known\nlong traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"facebook/DiT-XL-2-256: .* revision refs/pr/1 .*Name or service") as caught:
        DiT(name="xl", path="facebook/DiT-XL-2-256", revision="refs/pr/1").load("cpu", torch.float32)
    assert "\n" not in str(caught.value)


def test_hub_snapshot_is_loaded_like_a_folder(monkeypatch, tiny_pipeline):
    import huggingface_hub

    asked = []

    def snapshot(repo, revision, allow_patterns, ignore_patterns=()):
        asked.append((repo, sorted(allow_patterns)))
        return str(tiny_pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    model = DiT(name="hub", path="owner/model", vae_path="owner/vae").load("cpu", torch.float32)
    assert model.image_size == 16
    assert [repo for repo, _ in asked] == ["owner/model", "owner/vae"]
    assert not any("vae" in pattern or "bin" in pattern for pattern in asked[0][1])


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_variants_and_shards_are_read_like_one_plain_file(variant, shards, tiny_model, pipeline):
    (pipeline / WEIGHTS).unlink()
    options = {"max_shard_size": "100KB"} if shards else {}
    tiny_model.denoiser.save_pretrained(pipeline / "transformer", variant=variant, **options)
    found, names = weights.weight_files(pipeline / "transformer")
    assert (found, len(names) > 1) == (variant, shards)
    again = load(pipeline).denoiser.state_dict()
    assert all(torch.equal(again[key], value) for key, value in tiny_model.denoiser.state_dict().items())


def test_a_plain_file_comes_before_its_variants_and_two_variants_are_a_question(tmp_path):
    for variant in ("fp16", "bf16"):
        (tmp_path / f"diffusion_pytorch_model.{variant}.safetensors").touch()
    with pytest.raises(UserError, match=r"several variants \(bf16, fp16\)"):
        weights.weight_files(tmp_path)
    (plain := tmp_path / "diffusion_pytorch_model.safetensors").touch()
    assert weights.weight_files(tmp_path) == (None, [plain])


def test_an_index_that_names_files_elsewhere_is_refused(pipeline, tiny_model):
    folder = pipeline / "transformer"
    (pipeline / WEIGHTS).unlink()
    tiny_model.denoiser.save_pretrained(folder, max_shard_size="100KB")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002", "../model-00002"))
    with pytest.raises(UserError, match=r"names .*\.\./model-00002.*, which is not beside it"):
        load(pipeline)


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
FOREIGN = {  # (part, changes; None takes a key away, message)
    "flow": ("scheduler", FLOW, r"scheduler_config\.json: _class_name='FlowMatchEuler.*allowed: DDIMScheduler, DDPM"),
    "prediction": ("scheduler", {"prediction_type": "flow_prediction"}, "'flow_prediction'; allowed: epsilon, sample"),
    "no prediction": ("scheduler", {"prediction_type": None}, "prediction_type is missing; allowed: epsilon"),
    "betas": ("scheduler", {"beta_schedule": "cosine"}, "beta_schedule='cosine'; allowed: linear"),
    "no betas": ("scheduler", {"beta_start": None}, "beta_start is missing; allowed: a number between 0 and 1"),
    "text": ("scheduler", {"beta_end": "0.02"}, r"beta_end='0\.02'; allowed: a number between"),
    "steps": ("scheduler", {"num_train_timesteps": 1e3}, r"num_train_timesteps=1000\.0; allowed: a whole number"),
    "list": ("scheduler", {"trained_betas": [0.1]}, "a list of 1000 numbers between 0 and 1"),
    "threshold": ("scheduler", {"thresholding": True}, "thresholding=True; allowed: False"),
    "quantized": ("transformer", {"quantization_config": {"quant_method": "bitsandbytes"}}, "already .*bitsandbytes"),
    "patch": ("transformer", {"sample_size": 9}, "sample_size=9 is not a multiple of patch_size=2"),
    "sizes": ("transformer", {"sample_size": [8, 8]}, r"sample_size=\[8, 8\]; allowed: a whole number"),
    "layers": ("transformer", {"num_layers": 10**7}, "num_layers=10000000; allowed: a whole number of 1 to"),
    "layers fit": ("transformer", {"num_layers": 60_000}, "do not fit together: num_layers is 60000.*have 2 blocks"),
    "width": ("transformer", {"num_attention_heads": 4096}, "do not fit together: .*65536 wide.*32"),
    "channels": ("transformer", {"out_channels": 5}, "out_channels=5; allowed: 4, 8"),
    "activation": ("transformer", {"activation_fn": "swiglu"}, "'swiglu'; allowed: gelu"),
    "eps": ("transformer", {"norm_eps": 1e300}, "norm_eps=.*finite number above 0"),
    "digits": ("transformer", {"norm_eps": 10**400}, "a whole number has more than 64 bits"),
    "scale": ("vae", {"scaling_factor": 0}, "scaling_factor=0; allowed: a finite number above 0"),
    "widths": ("vae", {"block_out_channels": []}, "block_out_channels=.*a list of 1 to 10"),
    "mean": ("vae", {"latents_mean": [0.0] * 4}, "latents_mean=.*allowed: null"),
    "gray": ("vae", {"out_channels": 1}, "out_channels=1; allowed: 3"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_values_of_foreign_configs_are_refused_by_name(kind, pipeline):
    part, changes, message = FOREIGN[kind]
    file = pipeline / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=message) as caught:
        load(pipeline)
    assert "\n" not in str(caught.value)


def test_weights_that_are_quantized_already_are_refused(pipeline):
    edit_weights(pipeline, lambda w: w.update({"proj_out_1.weight": w["proj_out_1.weight"].to(torch.int8)}))
    with pytest.raises(UserError, match=r"not in floating point, such as proj_out_1\.weight \(I8\).*quantized already"):
        load(pipeline)
