"""TQ-DiT's recipe on DiT-XL/2 (golden 10 of its specification), and its parts as single overrides of other recipes."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from helpers.configs import config as composed

from qdit.config import check
from qdit.model.dit import list_attentions, list_sites
from qdit.runs.parts import build_recipe


@pytest.fixture(scope="module")
def dit_xl():
    """DiT-XL/2 for 256 pixels without its weights' values."""
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        denoiser = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, num_layers=28, patch_size=2)
    return SimpleNamespace(sites=lambda: list_sites(denoiser), attentions=lambda: list_attentions(denoiser))


def recipe(*words):
    config = composed(*words)
    check(config)
    made = build_recipe(config)
    assert made is not None
    return made


def completed(words, model):
    made = recipe(*words)
    assert not made.problems(model.sites())
    return made.completed(made.plan(model.sites()), model)


def test_golden_10_what_stays_in_full_precision(dit_xl):
    policy = completed(["quantizer=tq_dit", "bits=w6a6"], dit_xl)
    left = Counter(s.role for s in dit_xl.sites() if s.name not in policy)
    assert left == {"embedder": 1 + 2 * 28, "adaln": 28, "final": 1}
    assert "proj_out_2" in policy
    assert "proj_out_1" not in policy


def test_granularities_are_those_of_the_release(dit_xl):
    policy = completed(["quantizer=tq_dit", "bits=w6a6"], dit_xl)
    block = "transformer_blocks.3"
    for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"):
        weight, inputs = policy[f"{block}.{name}"].weight, policy[f"{block}.{name}"].activation
        assert (weight.granularity, weight.grid, weight.bits) == ("tensor", "symmetric_full", 6)
        grid = "two_sided" if name == "ff.net.2" else "symmetric_full"
        assert (inputs.granularity, inputs.grid, inputs.bits, inputs.time_groups) == ("tensor", grid, 6, 10)
        assert not inputs.dynamic
    for operand in "qkv":
        spec = policy[f"{block}.attn1.{operand}"].activation
        assert (spec.granularity, spec.grid, spec.bits) == ("head", "symmetric_full", 6)
    probs = policy[f"{block}.attn1.probs"].activation
    assert (probs.granularity, probs.grid, probs.bits, probs.time_groups) == ("tensor", "two_region", 6, 10)


def test_by_output_channel_is_one_override(dit_xl):
    policy = completed(["quantizer=tq_dit", "bits=w6a6", "weight=row"], dit_xl)
    weights = [layer.weight for layer in policy.values() if layer.weight]
    assert {(w.granularity, w.grid) for w in weights} == {("row", "symmetric_full")}


def test_groups_as_released_are_those_of_probabilities(dit_xl):
    policy = completed(["quantizer=tq_dit", "bits=w8a8", "activation.time.where=[probs]"], dit_xl)
    grouped = {name.rpartition(".")[2] for name, layer in policy.items() if layer.activation.time_groups}
    assert grouped == {"probs"}


RECIPES = ["rtn", "smoothquant", "q_dit", "vidit_q", "ptq4dit", "q_diffusion", "repq_vit"]
PARTS = [
    ["attention=multi_region"],
    ["activation/regions=gelu"],
    ["activation=time_grouped"],
    ["weight/range=hessian"],
    ["attention=multi_region", "attention/range=hessian"],
]


@pytest.mark.parametrize(
    "quantizer", [pytest.param(n, marks=() if n in ("vidit_q", "ptq4dit") else pytest.mark.slow) for n in RECIPES]
)
@pytest.mark.parametrize("part", PARTS, ids=lambda part: part[-1])
def test_each_part_is_one_override_in_any_other_recipe(quantizer, part, dit_xl):
    assert completed([f"quantizer={quantizer}", *part], dit_xl)


@pytest.mark.parametrize("row", ["1_none", "2_mrq", "3_tgq", "4_ho", "5_all"])
def test_rows_of_the_ablation_have_the_parts_of_their_names(row, dit_xl):
    parts = recipe(f"experiment=tq_dit_ablation/{row}", "bits=w8a8")
    policy = completed([f"experiment=tq_dit_ablation/{row}", "bits=w8a8"], dit_xl)
    inputs = [layer.activation for layer in policy.values()]
    found = {
        "mrq": {i.grid for i in inputs} >= {"two_region", "two_sided"},
        "tgq": {i.time_groups for i in inputs} == {10},
        "ho": {type(part.range).__name__ for part in (parts.weight, parts.activation, parts.attention)} == {"Hessian"},
    }
    assert found == {part: row in (f"{number}_{part}", "5_all") for number, part in enumerate(found, 2)}
