"""Folds of text models, image and video, and of a joint attention: exact, and only with all of their layers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.families import sd35
from helpers.pipelines import liven
from helpers.text_models import FAMILIES, JOINT, load, points

from qdit.model.derive import derive
from qdit.model.loaded import value_folds
from qdit.nn.basis import Rotation
from qdit.runs.plan import transform_text
from qdit.transform import Centred, Hadamard
from qdit.transform.folding import Draft
from qdit.transform.rotation import random_signs
from qdit.transform.scaling import Scaling

ROLES = ["qkv", "attn_out", "ffn_up", "ffn_down"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    """A family's tiny model; it is not changed."""
    return load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def joint():
    """A tiny SD3.5, whose image and text attend to each other."""
    kind, config, given = sd35()
    with torch.device("meta"):
        sites, attentions = derive(kind(**config), lambda shell: shell(**given))
    denoiser = kind(**config).eval().requires_grad_(False)
    liven(denoiser, 0)
    folds = value_folds(sites, attentions)
    return SimpleNamespace(denoiser=denoiser, folds=lambda: folds, sites=lambda: sites, device="cpu")


@torch.no_grad()
def outputs(model):
    if not isinstance(model, SimpleNamespace):
        data = points(model, 2, seed=1)
        return model.denoise(data.x, data.t, data.y)
    random = torch.Generator().manual_seed(1)
    given = {key: torch.randn(value.shape, generator=random) for key, value in sd35()[2].items()}
    return model.denoiser(**given, return_dict=False)[0]


def difference(model, change, fold):
    """How far outputs are from those of the network as it was, relative to the largest."""
    draft, expected = Draft(model), outputs(model)
    change(draft, fold)
    with draft.rewrite().installed(model):
        return ((outputs(model) - expected).abs().max() / expected.abs().max()).item()


def factors(width):
    return 4 ** (2 * torch.rand(width, generator=torch.Generator().manual_seed(3)) - 1)


def scaled(draft, fold):
    by = factors(draft.model.denoiser.get_submodule(fold.readers[0]).in_features)
    draft.scale_output(fold, 1 / by)
    for reader in fold.readers:
        draft.scale_columns(reader, by)


def shifted(draft, fold):
    by = factors(draft.model.denoiser.get_submodule(fold.readers[0]).in_features)
    draft.shift_output(fold, by)
    for reader in fold.readers:
        draft.shift_columns(reader, by)


def rotated(draft, fold):
    width = draft.model.denoiser.get_submodule(fold.readers[0]).in_features
    turn = Rotation(random_signs(0, "a fold", width), fold.mixing)
    draft.rotate_output(fold, width, turn)
    for reader in fold.readers:
        draft.rotate_columns(reader, turn)


def check_scales(model, fold):
    check(model, fold, scaled)


def check(model, fold, *changes):
    for change in changes or (scaled, shifted, rotated):
        assert difference(model, change, fold) <= 2e-6
    lacking = [replace(fold, sources=tuple(s for s in fold.sources if s != source)) for source in fold.sources]
    lacking += [replace(fold, readers=tuple(r for r in fold.readers if r != reader)) for reader in fold.readers[1:]]
    for some in lacking:
        assert difference(model, scaled, some) > 1e-4


def test_every_fold_is_exact_and_all_of_its_layers_are_necessary(model):
    attentions = len(model.attentions())
    assert len(model.folds()) == attentions + 1  # the values of each, and the projection of the text
    for fold in model.folds():
        check(model, fold)


def test_values_of_image_and_text_fold_together(joint):
    both = [fold for fold in joint.folds() if len(fold.sources) == 2]
    assert [len(fold.readers) for fold in both] == [2, 2, 1]  # the last block's text goes nowhere
    for fold in joint.folds():
        check(joint, fold)


@pytest.mark.parametrize("family", [*JOINT, "hunyuan_video"])
def test_joint_families_fold_values_and_modulations(family, tmp_path):
    model = load(family, tmp_path)
    read = {reader for fold in model.folds() for reader in fold.readers}
    roles = {site.role for site in model.sites() if site.name in read}
    assert roles >= {"qkv", "text_qkv", "attn_out", "text_out", "ffn_up", "text_up", "final"}
    left = {site.role for site in model.sites() if site.block is not None and site.name not in read}
    assert left <= {"ffn_down", "text_down", "adaln", "parallel_out"}
    for fold in model.folds():
        check(model, fold) if fold.mixing > 1 else check_scales(model, fold)


def test_qwen_image_folds_values_and_modulations(tmp_path):
    model = load("qwen_image", tmp_path)
    read = {reader for fold in model.folds() for reader in fold.readers}
    assert {site.role for site in model.sites() if site.block is not None and site.name not in read} == {
        *("adaln", "ffn_down", "text_down")
    }
    for fold in model.folds():
        last = any(reader.startswith("transformer_blocks.1.") for reader in fold.readers)  # its text goes nowhere
        if last:
            assert difference(model, scaled, fold) <= 2e-6
        elif fold.mixing > 1:
            check(model, fold)
        else:
            check_scales(model, fold)


def test_flux2_folds_values_and_gated_feed_forwards(tmp_path):
    model = load("flux2_klein", tmp_path)
    read = {reader for fold in model.folds() for reader in fold.readers}
    assert {site.role for site in model.sites() if site.name in read} == {
        *("attn_out", "text_out", "ffn_down", "text_down", "final")
    }
    for fold in model.folds():
        check(model, fold, *((scaled, rotated) if fold.mixing > 1 else (scaled,)))
    closing = [fold for fold in model.folds() if not fold.shifts]
    assert [fold.readers for fold in closing] == [
        ("transformer_blocks.0.ff.linear_out",),
        ("transformer_blocks.0.ff_context.linear_out",),
    ]
    assert all(difference(model, shifted, fold) > 1e-3 for fold in closing)


def test_a_shift_behind_a_gate_is_taken_away_at_run_time(tmp_path):
    model = load("flux2_klein", tmp_path)
    expected, shift = outputs(model), Centred(name="shift", roles=["ffn_down", "final"])
    sites = [site for site in model.sites() if site.role != "parallel_out"]
    middles = shift.measure(model, sites, lambda: points(model, 2), None)  # pyright: ignore
    rewrite = shift.rewrite(model, sites, middles)
    with rewrite.installed(model):
        assert (outputs(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    gated = {f"transformer_blocks.0.{name}.linear_out" for name in ("ff", "ff_context")}
    assert set(rewrite.inputs) == {left.site.name for left in shift.run_time(model, sites)} == gated
    assert shift.carriers(model, sites) == dict.fromkeys(gated) | {"proj_out": "norm_out.linear"}


def test_sana_folds_the_values_of_both_kinds_of_attention(tmp_path):
    model = load("sana", tmp_path)
    assert len(model.folds()) == 4
    for fold in model.folds():
        check(model, fold)


@pytest.mark.parametrize("family", ["wan", "ltx"])
def test_values_and_the_text_of_all_blocks_fold_where_one_projection_modulates_all(family, tmp_path):
    model = load(family, tmp_path)
    assert len(model.folds()) == len(model.attentions()) + 1
    for fold in model.folds():
        check(model, fold)


@pytest.mark.parametrize("family", ["cogvideox_2b", "cogvideox_5b"])
def test_cogvideox_folds_values_and_the_modulations_of_both_streams(family, tmp_path):
    model = load(family, tmp_path)
    read = {reader for fold in model.folds() for reader in fold.readers}
    inside = {site.role for site in model.sites() if site.block is not None and site.name not in read}
    assert inside == {"adaln", "ffn_down"}
    assert [len(fold.sources) for fold in model.folds() if fold.mixing == 1] == [2, 2, 2, 2, 1]
    last = "transformer_blocks.1.ff.net.0.proj"  # what it makes of the text goes nowhere
    for fold in model.folds():
        if fold.readers == (last,):
            assert all(difference(model, change, fold) <= 2e-6 for change in (scaled, shifted))
            fold = replace(fold, sources=fold.sources[:1])
        check(model, fold) if fold.mixing > 1 else check(model, fold, scaled, shifted)


class Wild(Scaling):
    """Factors between 1/4 and 4 for every input."""

    def measure(self, model, sites, collect, trial):
        return {each.name: factors(each.channels) for each in self.inputs(model, sites)}


def test_what_does_not_fold_is_done_at_run_time_and_is_exact(model):
    expected = outputs(model)
    wild = Wild(name="wild", roles=ROLES)
    for transform in (wild, Hadamard(name="hadamard", roles=ROLES, block=None, seed=0)):
        measured = transform.measure(model, model.sites(), lambda: pytest.fail("no data"), None)  # pyright: ignore
        rewrite = transform.rewrite(model, model.sites(), measured)
        with rewrite.installed(model):
            assert (outputs(model) - expected).abs().max() <= 1e-5 * expected.abs().max()
        roles = {site.role for site in model.sites() if site.name in rewrite.inputs}
        assert roles == {"qkv", "cross_q", "ffn_up", "ffn_down"}
        assert {left.site.role for left in transform.run_time(model, model.sites())} == roles
    text = transform_text(wild.carriers(model, [site for site in model.sites() if site.block == 0]))
    assert "folded into transformer_blocks.*.attn2.to_v for transformer_blocks.*.attn2.to_out.0" in text
    assert "folded into caption_projection.linear_2 for transformer_blocks.*.attn2.to_k" in text
