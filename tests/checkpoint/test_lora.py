"""LoRA beside a quantized model changes its output as full precision's, whatever was folded into its layers."""

from copy import deepcopy

import pytest
import torch
from helpers.joint_pipelines import write_joint_pipeline
from helpers.pipelines import write_text_pipeline
from safetensors.torch import save_file

import qdit
from qdit.checkpoint import folder, installed
from qdit.errors import UserError

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
POINTS = ("calibration.num_samples=4", "calibration.per_trajectory=2")
SMALL = (
    *("transform.steps.lowrank.rank=4", "transform.steps.lowrank.iterations=2"),
    *("weight.group_size=16", "activation.group_size=16"),
)
RECIPES = {
    "plain": ("rtn",),
    "scaled": ("smoothquant", *POINTS),
    "rotated": ("quarot", "rounding=nearest"),
    "both": ("vidit_q", *POINTS),
    "shifted": ("rtn", "transform=reparam", *POINTS),
    "lowrank": ("svdquant", *SMALL, *POINTS),
    "by_range": ("viditq_v1", *POINTS),
}


def adapted(network, targets=TARGETS, alpha=3):
    """A network with a LoRA whose branches are not zero, and the same in each network."""
    config = peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=targets, init_lora_weights=False)
    peft.inject_adapter_in_model(config, network)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora_" in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=random))
    return network.eval()


def call(network, data):
    with torch.no_grad():
        return network(data.x[:2], timestep=data.t[:2], class_labels=data.y[:2], return_dict=False)[0]


@pytest.fixture(scope="module")
def dit(tiny_pipeline):
    """A tiny DiT, its calibration data, its output, and its output with an adapter."""
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(tiny_pipeline)
    data = qdit.calibrate(pipe, num_samples=4, steps=4)
    return pipe, data, call(pipe.transformer, data), call(adapted(deepcopy(pipe.transformer)), data)


def error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", RECIPES)
def test_where_nothing_is_rounded_the_change_is_that_of_full_precision(kind, dit, tmp_path):
    from diffusers import DiTTransformer2DModel

    pipe, data, before, wanted = dit
    network = qdit.quantize(deepcopy(pipe.transformer), *RECIPES[kind], bits="w16a16", data=data)
    folded = installed.needed(network).quantized.rewrite.folded
    assert bool(folded) == (kind not in ("plain", "by_range"))
    network.save_pretrained(tmp_path)
    read = DiTTransformer2DModel.from_pretrained(tmp_path)
    assert error(before, wanted) > 0.05
    assert error(call(adapted(network), data), wanted) < 2e-5
    assert error(call(adapted(read), data), wanted) < 2e-5


def images(pipe):
    """Two of the stock pipeline's, as latents."""
    options = {"use_resolution_binning": False, "height": 16, "width": 16, "num_inference_steps": 2}
    options |= {"output_type": "latent", "generator": torch.manual_seed(0), "clean_caption": False}
    return pipe("a red cat", **options)[0]


@pytest.fixture(scope="module")
def pixart(tmp_path_factory):
    from diffusers import DiffusionPipeline

    made = write_text_pipeline(tmp_path_factory.mktemp("pixart") / "sigma", "pixart_sigma", heads=6)
    pipe = DiffusionPipeline.from_pretrained(made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_pixart_is_changed_as_in_full_precision_within_the_error_of_quantization(pixart):
    data = qdit.calibrate(pixart, ["a red cat", "blue dog on table"], num_samples=2, steps=2)
    original = pixart.transformer
    quantized = qdit.quantize(deepcopy(original), *RECIPES["both"], bits="w8a8", data=data)
    made = {}
    for name, network in {"full": original, "quantized": quantized}.items():
        pixart.transformer = deepcopy(network)
        made[name] = images(pixart)
        pixart.transformer = adapted(pixart.transformer)
        made[f"{name} with LoRA"] = images(pixart)
    pixart.transformer = original
    change = made["full with LoRA"] - made["full"]
    assert error(made["quantized with LoRA"] - made["quantized"], change) < 0.15
    without, beside = made["quantized"] - made["full"], made["quantized with LoRA"] - made["full with LoRA"]
    assert 0 < beside.norm() < 1.5 * without.norm()  # no more than the quantization's own


def test_the_branch_is_in_floating_point_and_leaves_no_trace(dit, tmp_path):
    pipe, data, *_ = dit
    network = qdit.quantize(deepcopy(pipe.transformer).to(torch.bfloat16), "quarot", "rounding=nearest", bits="w4a4")
    rows = {"hidden_states": data.x[:2].bfloat16(), "timestep": data.t[:2], "class_labels": data.y[:2]}
    with torch.no_grad():
        before = network(**rows, return_dict=False)[0]
        wanted = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        peft.inject_adapter_in_model(wanted, network)
        branch = network.transformer_blocks[0].attn1.to_v
        assert {weight.dtype for name, weight in network.named_parameters() if "lora_" in name} == {torch.bfloat16}
        assert not torch.equal(network(**rows, return_dict=False)[0], before)
        for refused in (lambda: network.save_pretrained(tmp_path), lambda: qdit.dequantize(network)):
            with pytest.raises(UserError, match="to_q has an adapter .LoRA. in place, .* unload it first"):
                refused()
        assert list(tmp_path.glob("*.safetensors")) == []
        with pytest.raises(UserError, match="cannot be fused into a quantized weight"):
            branch.merge()
        from diffusers.utils.peft_utils import recurse_remove_peft_layers

        recurse_remove_peft_layers(network)
        assert torch.equal(network(**rows, return_dict=False)[0], before)
    plain = peft.inject_adapter_in_model(wanted, deepcopy(pipe.transformer)).transformer_blocks[0].attn1.to_v
    assert type(plain).__module__.startswith("peft.")  # the same words, for a network that is not quantized


@pytest.mark.parametrize("change", [{"use_dora": True}, {"init_lora_weights": "olora"}])
def test_variants_that_need_the_original_are_refused(change, dit):
    network = qdit.quantize(deepcopy(dit[0].transformer), "rtn", bits="w8a8")
    with pytest.raises(UserError, match="takes plain LoRA only"):
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q"], **change), network)


def test_no_export_leaves_an_adapter_out(dit, tmp_path):
    network = qdit.quantize(deepcopy(dit[0].transformer), "rtn", bits="w8a8")
    adapted(network)
    for target in ("torchao", "diffusers"):
        with pytest.raises(UserError, match="unload"):
            qdit.export(network, tmp_path / target, to=target)


def test_a_folder_that_does_not_say_what_was_folded_takes_none(dit, tmp_path, monkeypatch):
    from diffusers import DiTTransformer2DModel

    network = qdit.quantize(deepcopy(dit[0].transformer), "rtn", bits="w8a8")
    packed = folder.packed
    monkeypatch.setattr(
        "qdit.checkpoint.diffusers.packed",
        lambda model: ({k: v for k, v in packed(model)[0].items() if k != folder.FOLDED}, *packed(model)[1:]),
    )
    network.save_pretrained(tmp_path)
    read = DiTTransformer2DModel.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="saved by an earlier qdit, and does not say what was folded"):
        adapted(read)


def test_a_stock_pipeline_loads_it_from_a_file_and_does_not_fuse_it(tmp_path):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(write_joint_pipeline(tmp_path / "sd3", "sd3"))
    pipe.set_progress_bar_config(disable=True)
    wanted = adapted(deepcopy(pipe.transformer), targets=["to_q", "to_v", "to_out.0"], alpha=2)
    state = peft.get_peft_model_state_dict(wanted)
    save_file({f"transformer.{name}": weight for name, weight in state.items()}, tmp_path / "lora.safetensors")
    qdit.quantize(pipe.transformer, "quarot", "rounding=nearest", bits="w16a16")
    start, options = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(1)), {"height": 16, "width": 16}
    options |= {"num_inference_steps": 2, "output_type": "latent"}
    before = pipe("a red cat", latents=start, **options)[0]
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="mine")
    made = pipe("a red cat", latents=start, **options)[0]
    with pytest.raises(UserError, match="cannot be fused into a quantized weight"):
        pipe.fuse_lora(lora_scale=0.5)
    assert torch.equal(pipe("a red cat", latents=start, **options)[0], made)
    pipe.unload_lora_weights()
    assert torch.equal(pipe("a red cat", latents=start, **options)[0], before)
    pipe.transformer = wanted
    assert error(before, pipe("a red cat", latents=start, **options)[0]) > 0.02
    assert error(made, pipe("a red cat", latents=start, **options)[0]) < 1e-4
