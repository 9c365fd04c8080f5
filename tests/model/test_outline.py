"""Plans by configs alone: the sites of the loaded model, no memory; weights that do not fit are refused."""

import json
import shutil

import pytest
import torch
from helpers.clip_pipelines import SIZE, write_clip_pipeline
from helpers.flux2_pipeline import write_flux2_pipeline
from helpers.joint_pipelines import write_joint_pipeline, write_wan_pipeline
from helpers.pipelines import write_pipeline, write_text_pipeline
from helpers.qwen_pipeline import write_qwen_pipeline
from helpers.sana_pipeline import write_sana_pipeline
from safetensors.torch import load_file, save_file

from qdit.errors import UserError
from qdit.model.cogvideox import CogVideoX
from qdit.model.dit import DiT
from qdit.model.flux import Flux
from qdit.model.flux2 import Flux2Klein
from qdit.model.hunyuan_video import HunyuanVideo
from qdit.model.latte import Latte
from qdit.model.ltx import LTX
from qdit.model.qwen_image import QwenImage
from qdit.model.sana import Sana
from qdit.model.sd3 import SD3
from qdit.model.wan import Wan, Wan22
from qdit.model.wan_a14b import WanA14B

MAKERS = {
    "dit": (write_pipeline, lambda path: DiT(name="tiny", path=path)),
    "latte": (lambda f: write_text_pipeline(f, "latte"), lambda path: Latte(name="tiny", path=path, text_length=12)),
    "qwen_image": (
        write_qwen_pipeline,
        lambda path: QwenImage(name="tiny", path=path, text_length=12, size=64),
    ),
    "sana": (write_sana_pipeline, lambda path: Sana(name="tiny", path=path, text_length=12)),
    "sd35": (lambda f: write_joint_pipeline(f, "sd35"), lambda path: SD3(name="tiny", path=path, text_length=12)),
    "wan": (
        write_wan_pipeline,
        lambda path: Wan(name="tiny", path=path, text_length=12, frames=9, height=64, width=64),
    ),
    "wan22": (
        lambda f: write_wan_pipeline(f, token_times=True),
        lambda path: Wan22(name="tiny", path=path, text_length=12, **SIZE),
    ),
    "wan_a14b": (
        lambda f: write_wan_pipeline(f, boundary=0.875),
        lambda path: WanA14B(name="tiny", path=path, text_length=12, **SIZE),
    ),
    "cogvideox": (
        lambda f: write_clip_pipeline(f, "cogvideox_5b"),
        lambda path: CogVideoX(name="tiny", path=path, text_length=12, **SIZE),
    ),
    "ltx": (
        lambda f: write_clip_pipeline(f, "ltx"),
        lambda path: LTX(name="tiny", path=path, text_length=12, **SIZE),
    ),
    "hunyuan_video": (
        lambda f: write_clip_pipeline(f, "hunyuan_video"),
        lambda path: HunyuanVideo(name="tiny", path=path, text_length=12, **SIZE),
    ),
    "flux": (
        lambda f: write_joint_pipeline(f, "flux_dev"),
        lambda path: Flux(name="tiny", path=path, text_length=12, size=64),
    ),
    "flux2_klein": (
        write_flux2_pipeline,
        lambda path: Flux2Klein(name="tiny", path=path, text_length=12, size=64),
    ),
}


@pytest.fixture(params=MAKERS)
def option(request, tmp_path):
    write, make = MAKERS[request.param]
    return make(str(write(tmp_path / request.param)))


def test_a_plan_sees_what_a_run_sees(option):
    plan, real = option.outline("cpu", torch.bfloat16), option.load("cpu", torch.bfloat16)
    assert plan.sites() == real.sites()
    assert plan.attentions() == real.attentions()
    assert plan.folds() == real.folds()
    assert (plan.latent_shape, plan.image_size) == (real.latent_shape, real.image_size)
    assert plan.scheduler_config() == real.scheduler_config()
    assert all(weight.is_meta for weight in plan.denoiser.parameters())
    sizes = [sum(weight.nbytes for weight in model.denoiser.parameters()) for model in (plan, real)]
    assert sizes[0] == sizes[1]


def test_the_transformers_config_is_enough(option, tmp_path):
    if isinstance(option, Flux | Flux2Klein | QwenImage):
        option.size = 256  # an unknown autoencoder is taken to divide by 8
    expected, alone = option.outline("cpu", torch.float32), tmp_path / "alone"
    for name in getattr(option, "networks", ["transformer"]):
        (alone / name).mkdir(parents=True)
        shutil.copy(f"{option.path}/{name}/config.json", alone / name)
    option.path = str(alone)
    found = option.outline("cpu", torch.float32)
    assert [site.name for site in found.sites()] == [site.name for site in expected.sites()]
    assert found.autoencoder is None
    assert found.scheduler_config()["_class_name"] in type(found).schedulers


def test_the_published_klein_is_planned_by_its_transformers_config(tmp_path):
    config = {"_class_name": "Flux2Transformer2DModel", "patch_size": 1, "in_channels": 128, "num_layers": 5}
    config |= {"num_single_layers": 20, "attention_head_dim": 128, "num_attention_heads": 24, "guidance_embeds": False}
    config |= {"joint_attention_dim": 7680, "timestep_guidance_channels": 256, "axes_dims_rope": [32] * 4}
    config |= {"mlp_ratio": 3.0, "rope_theta": 2000, "eps": 1e-6, "out_channels": None}
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    about = {"name": "klein", "path": str(tmp_path), "text_length": 512, "size": 1024}
    plan = Flux2Klein(**about).outline("cpu", torch.bfloat16)
    assert round(sum(weight.numel() for weight in plan.denoiser.parameters()) / 1e9, 2) == 3.88
    assert (plan.latent_shape, plan.image_size) == ((32, 128, 128), 1024)
    sizes = {site.name: (site.tokens, site.in_features, site.out_features) for site in plan.sites()}
    first = "single_transformer_blocks.0.attn"
    assert sizes[f"{first}.to_qkv_mlp_proj"] == (4096 + 512, 3072, 9 * 3072)
    assert sizes[f"{first}.to_out"] == (4096 + 512, 4 * 3072, 3072)
    assert sizes["transformer_blocks.4.ff_context.linear_in"] == (512, 3072, 6 * 3072)
    assert len([site for site in plan.sites() if site.block is not None]) == 5 * 12 + 20 * 2


def test_weights_that_do_not_fit_are_refused_by_their_headers(tmp_path):
    folder = write_pipeline(tmp_path / "dit") / "transformer"
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file(tensors | {"proj_out_2.bias": torch.zeros(5)}, file)
    with pytest.raises(UserError, match=r"proj_out_2\.bias is \(5,\) in the weights, and the config asks for \(32,\)"):
        DiT(name="x", path=str(folder.parent)).outline("cpu", torch.float32)
    save_file({name: tensor for name, tensor in tensors.items() if name != "proj_out_2.bias"}, file)
    with pytest.raises(UserError, match=r"1 tensors missing \(proj_out_2\.bias\)"):
        DiT(name="x", path=str(folder.parent)).outline("cpu", torch.float32)
    file.rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle, which can run code"):
        DiT(name="x", path=str(folder.parent)).outline("cpu", torch.float32)


def test_a_config_of_which_nothing_can_be_made_is_refused(tmp_path):
    folder = write_joint_pipeline(tmp_path / "sd3", "sd3") / "transformer"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"qk_norm": "rms_norm", "attention_head_dim": 7}))
    with pytest.raises(UserError):
        SD3(name="x", path=str(folder.parent), text_length=12).outline("cpu", torch.float32)
