"""Sites of all families, derived from one pass on the meta device: order, roles, shared inputs, rows, attentions."""

from collections import Counter

import pytest
import torch
from helpers.families import FAMILIES
from torch import nn

from qdit.errors import UserError
from qdit.model.derive import derive, structure
from qdit.model.dit import one_sample
from qdit.model.roles import ROLES, chosen, named
from qdit.model.trace import LINEAR


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    kind, config, inputs = FAMILIES[request.param]()
    with torch.device("meta"):
        shell = kind(**config)
    return request.param, shell, derive(shell, lambda net: net(**inputs))


def test_every_linear_layer_is_a_site_of_one_role(family):
    _, shell, (sites, _) = family
    layers = {n for n, m in shell.named_modules() if isinstance(m, LINEAR) and getattr(m, "groups", 1) == 1}
    assert [site.name for site in sites if site.name not in layers] == []
    assert len({site.name for site in sites}) == len(sites)
    assert {site.role for site in sites} <= set(ROLES)
    assert layers == {site.name for site in sites}


EXPECTED = {  # roles of the first block, from the dossier's section 2.2
    "pixart_alpha": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
    "pixart_sigma": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
    "latte": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
    "sd35": "adaln adaln qkv qkv qkv text_qkv text_qkv text_qkv text_out attn_out qkv qkv qkv attn_out ffn_up ffn_down "
    "text_up text_down",
    "flux": "adaln adaln qkv qkv qkv text_qkv text_qkv text_qkv attn_out text_out ffn_up ffn_down text_up text_down",
    "flux2": "qkv qkv qkv text_qkv text_qkv text_qkv text_out attn_out ffn_up ffn_down text_up text_down",
    "wan": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
    "ltx": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
    "cogvideox": "adaln qkv qkv qkv attn_out adaln ffn_up ffn_down",
    "sana": "qkv qkv qkv attn_out cross_q cross_kv cross_kv cross_out ffn_up ffn_down",
}


def test_roles_of_the_first_block(family):
    name, _, (sites, _) = family
    if name in EXPECTED:
        assert [site.role for site in sites if site.block == 0] == EXPECTED[name].split()


def test_layers_that_read_one_tensor_are_one_stage(family):
    _, _, (sites, _) = family
    for site in sites:
        if site.name.endswith("to_q"):
            others = {s.name: s for s in sites if s.name.rpartition(".")[0] == site.name.rpartition(".")[0]}
            k = others[site.name.removesuffix("q") + "k"]
            assert (k.stage == site.stage) == (site.role != "cross_q")
    stages = [(s.block, s.stage) for s in sites if s.block is not None]
    assert stages == sorted(stages, key=lambda at: at[0])  # blocks follow one another


def test_videos_have_attentions_side_by_side():
    kind, config, inputs = FAMILIES["latte"]()
    with torch.device("meta"):
        shell = kind(**config)
    sites, attentions = derive(shell, lambda net: net(**inputs))
    shapes = {a.name: (a.copies, a.tokens, a.keys) for a in attentions}
    assert shapes["transformer_blocks.0.attn1"] == (5, 16, 16)
    assert shapes["transformer_blocks.0.attn2"] == (5, 16, 12)
    assert shapes["temporal_transformer_blocks.0.attn1"] == (16, 5, 5)
    blocks = list(dict.fromkeys(site.path for site in sites if site.path))
    assert [block.rpartition(".")[0] for block in blocks] == ["transformer_blocks", "temporal_transformer_blocks"] * 2
    assert next(site.block for site in sites if site.path == blocks[3]) == 3
    assert Counter(site.tokens for site in sites if site.role == "qkv") == {80: 12}


def test_flux_reads_one_input_in_two_roles():
    kind, config, inputs = FAMILIES["flux"]()
    with torch.device("meta"):
        sites, _ = derive(kind(**config), lambda net: net(**inputs))
    group = [s for s in sites if s.path == "single_transformer_blocks.0" and s.stage == 0]
    assert [s.role for s in group] == ["ffn_up", "qkv", "qkv", "qkv"]
    assert {s.role for s in sites if s.name.endswith(".proj_out")} == {"parallel_out"}
    assert sites[-1].role == "final"


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])])

    def forward(self, x):
        return self.blocks[0][1](self.blocks[0][0](x))  # pyright: ignore[reportIndexIssue]


def test_what_cannot_be_derived_is_named():
    with pytest.raises(UserError, match=r"no role is known for 2 of the network's 2 linear layers \(blocks.0.0"):
        derive(Odd(), lambda net: net(torch.zeros(1, 4)))
    sites, _ = derive(Odd(), lambda net: net(torch.zeros(1, 4)), own=(("*.0", "ffn_up"), ("*.1", "ffn_down")))
    assert [site.role for site in sites] == ["ffn_up", "ffn_down"]
    with pytest.raises(UserError, match="does not use blocks.0"):
        derive(Odd(), lambda net: x if (x := torch.zeros(1)) is not None else net)


def test_adapters_and_fused_projections_are_refused(tiny_model):
    tiny_model.denoiser.transformer_blocks[0].attn1.fused_projections = True
    with pytest.raises(UserError, match=r"attn1 has fused projections; call unfuse_qkv_projections"):
        structure(tiny_model.denoiser, one_sample)
    tiny_model.denoiser.transformer_blocks[0].attn1.fused_projections = False
    tiny_model.denoiser.proj_out_2.base_layer = nn.Identity()
    with pytest.raises(UserError, match=r"proj_out_2 has an adapter \(LoRA\)"):
        structure(tiny_model.denoiser, one_sample)


def test_a_name_may_stand_for_several_roles():
    assert chosen("cross_kv", ["cross_qkv"])
    assert not chosen("cross_out", ["cross_qkv"])
    assert named("transformer_blocks.3.proj_out_1", (("proj_out", "final"),)) is None
