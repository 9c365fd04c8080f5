"""Searches on a tiny model: what is assembled, scored, kept, resumed, deployed and built again from a file."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers.prompts import prompts

from qdit.activation import DynamicActivation
from qdit.dataset.base import Dataset
from qdit.errors import UserError
from qdit.eval.distribution import FID
from qdit.eval.paired import SQNR, LatentMSE
from qdit.eval.per_sample import PerSample
from qdit.method import quantize
from qdit.quant.ranges import MinMax
from qdit.rounding import GPTQ
from qdit.search import Fixed, RandomSearch
from qdit.search import scored as scoring
from qdit.search.budget import Bytes, MeanGroup
from qdit.search.objective import Judge, Score
from qdit.search.sensitivity import Meter, Paired, whole
from qdit.search.space import Space, uniform_policy
from qdit.search.variants import Variants
from qdit.seeding import SEARCH
from qdit.storage.journal import Journal
from qdit.weight import WeightGrid


def grouped(size: int) -> dict:
    options = {"granularity": "group", "group_size": size, "grid": "asymmetric"}
    return {"weight": WeightGrid(**options, range=MinMax()), "activation": DynamicActivation(**options)}


def same(first, second) -> bool:
    pairs = [(first.layers[name], second.layers[name]) for name in first.layers]
    assert first.policy.keys() == first.layers.keys() == second.layers.keys()
    return first.policy == second.policy and all(torch.equal(a.weight, b.weight) for a, b in pairs)


def output(model, quantized):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad(), quantized.installed(model):
        return model.denoise(x, torch.tensor([10, 900]), torch.tensor([1, 10]))


@pytest.fixture(params=["nearest", "gptq"])
def rounding(request, parts):
    return parts.recipe().rounding if request.param == "nearest" else GPTQ()


def test_genes_tie_what_reads_one_input(parts, tiny_model):
    space = Space.of(parts.recipe(), tiny_model.sites(), [8, 16, 64, 128])
    assert [[s.name.rsplit(".", 1)[-1] for s in gene.sites] for gene in space.genes[:2]] == [
        ["to_q", "to_k", "to_v"],
        ["0"],
    ]
    assert len(space.genes) == 4 * 2
    assert [gene.sizes for gene in space.genes[:4]] == [(8, 16), (8, 16), (8, 16), (8, 16, 64, 128)]
    assert space.uniform(64) == (16, 16, 16, 64) * 2
    assert space.policy(space.uniform(8)).keys() == {s.name for gene in space.genes for s in gene.sites}


def test_assembled_of_one_size_is_the_fit_of_that_size(parts, tiny_model, rounding):
    recipe = parts.recipe(rounding=rounding)
    variants = Variants(tiny_model, recipe, parts.data)
    space = Space.of(recipe, tiny_model.sites(), [8, 16])
    for size in (8, 16):
        plain = quantize(tiny_model, parts.recipe(rounding=rounding, **grouped(size)), parts.data)
        assembled = variants.assembled(space, space.uniform(size))
        assert same(assembled, plain)
        assert torch.equal(output(tiny_model, assembled), output(tiny_model, plain))


def test_a_mixture_has_the_layers_of_its_sizes(parts, tiny_model):
    recipe = parts.recipe(rounding=GPTQ())
    variants = Variants(tiny_model, recipe, parts.data)
    space = Space.of(recipe, tiny_model.sites(), [8, 32])
    mixed = variants.assembled(space, (8, 32) * 4)
    for gene, size in zip(space.genes, (8, 32) * 4, strict=True):
        for site in gene.sites:
            assert mixed.layers[site.name] is variants.of_size(size).layers[site.name]
            spec = mixed.policy[site.name]
            assert spec.weight.group_size == spec.activation.group_size == size
    assert len(variants.made) == 2


def test_a_size_that_does_not_divide_falls_to_the_next_smaller(parts, tiny_model):
    policy = uniform_policy(parts.recipe(), tiny_model.sites(), 24)
    assert {layer.weight.group_size for layer in policy.values()} == {16}  # of 32 and of 128 inputs


def test_a_changed_activation_group_changes_the_output(parts, tiny_model):
    space = Space.of(parts.recipe(weight_bits=16), tiny_model.sites(), [8, 32])
    variants = Variants(tiny_model, parts.recipe(weight_bits=16), parts.data)
    coarse = output(tiny_model, variants.assembled(space, (32,) * 8))
    for gene in range(8):
        choice = tuple(8 if n == gene else 32 for n in range(8))
        assert not torch.equal(output(tiny_model, variants.assembled(space, choice)), coarse)


def test_the_best_of_the_ledger_is_deployed_and_scores_what_it_scored(parts, tiny_model, tmp_path, rounding):
    search = parts.evolution()
    recipe = parts.recipe(rounding=rounding, search=search)
    setting = parts.setting(tmp_path / "run")
    found = quantize(tiny_model, recipe, parts.data, tmp_path / "blocks", setting)
    header, *entries = map(json.loads, (tmp_path / "run" / "search.jsonl").read_text().splitlines())
    assert header["objective"] == "sqnr"
    assert len(entries) == search.total == len({tuple(e["groups"]) for e in entries})
    best = max(entries, key=lambda e: e["value"])
    space = search.space(recipe, tiny_model.sites())
    assert found.policy == space.policy(tuple(best["groups"]))
    details = found.allocation.details
    assert (details["value"], details["candidates"]) == (best["value"], len(entries))
    assert [g["group_size"] for g in details["groups"]] == best["groups"]
    assert Judge(search.objective, tiny_model, setting)(found) == Score(best["value"], best["stderr"])
    curve = found.allocation.curves["search_best_so_far"]["y"]
    assert curve == sorted(curve)
    assert len(curve) == 3

    found.policy.save(tmp_path / "run" / "policy.yaml")
    fixed = Fixed(policy=str(tmp_path / "run"), budget=search.budget)
    again = quantize(tiny_model, parts.recipe(rounding=rounding, search=fixed), parts.data, None, parts.setting())
    assert same(again, found)
    assert torch.equal(output(tiny_model, again), output(tiny_model, found))


class Counting:
    """A judge that scores by the policy alone, and disturbs every global random state, as sampling may."""

    calls = 0

    def __init__(self, *_):
        pass

    def __call__(self, quantized) -> Score:
        type(self).calls += 1
        torch.manual_seed(0)
        sizes = [layer.weight.group_size for layer in quantized.policy.values()]
        return Score(sum(math.sin(n * size) for n, size in enumerate(sizes)), 0.5)


def test_killed_at_any_candidate_it_ends_the_same(parts, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "Judge", Counting)
    search = parts.evolution(population=6, generations=3)

    def found_in(folder):
        Counting.calls = 0
        result = quantize(tiny_model, parts.recipe(search=search), parts.data, None, parts.setting(folder))
        lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
        return result, [line.get("groups") for line in lines], Counting.calls

    whole, groups, calls = found_in(tmp_path / "whole")
    assert calls == search.total == len(groups) - 1
    text = (tmp_path / "whole" / "search.jsonl").read_bytes()
    ends = [n + 1 for n, byte in enumerate(text) if byte == ord("\n")]
    for kept, end in enumerate(ends[:-1]):
        for torn in (0, 7):
            folder = tmp_path / f"{kept}-{torn}"
            folder.mkdir()
            (folder / "search.jsonl").write_bytes(text[: end + torn])
            again, lines, calls = found_in(folder)
            assert again.policy == whole.policy
            assert again.allocation == whole.allocation
            assert lines == groups
            assert calls == search.total - kept
    assert found_in(tmp_path / "whole")[2] == 0


@pytest.mark.parametrize("text", ["{}\n", "not json\n", '{"ledger": 1, "objective": "fid"}\n'])
def test_a_foreign_or_damaged_ledger_is_refused_by_name(parts, tiny_model, tmp_path, text):
    (tmp_path / "search.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"search.jsonl (is damaged|belongs to another search); move it away"):
        quantize(tiny_model, parts.recipe(search=parts.evolution()), parts.data, None, parts.setting(tmp_path))


def test_a_damaged_line_in_the_middle_is_refused(parts, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "Judge", Counting)
    recipe, setting = parts.recipe(search=parts.evolution()), parts.setting(tmp_path)
    quantize(tiny_model, recipe, parts.data, None, setting)
    path = tmp_path / "search.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:9], *lines[3:]]) + "\n")
    with pytest.raises(UserError, match="is damaged"):
        quantize(tiny_model, recipe, parts.data, None, setting)


def test_screening_with_nearest_deploys_the_recipes_rounding(parts, tiny_model):
    search = parts.evolution(rounding="nearest")
    found = quantize(tiny_model, parts.recipe(rounding=GPTQ(), search=search), parts.data, None, parts.setting())
    deployed = parts.recipe(rounding=GPTQ())
    space = search.space(deployed, tiny_model.sites())
    expected = Variants(tiny_model, deployed, parts.data).assembled(space, found.allocation.choice)
    assert same(found, expected)


def test_lower_is_better_where_the_metric_says_so(parts, tiny_model, tmp_path):
    search = parts.evolution(objective=parts.objective(LatentMSE(), name="latent_mse"))
    recipe = parts.recipe(search=search)
    found = quantize(tiny_model, recipe, parts.data, None, parts.setting(tmp_path))
    _, *entries = map(json.loads, (tmp_path / "search.jsonl").read_text().splitlines())
    assert found.allocation.details["value"] == min(e["value"] for e in entries)


def test_a_diverged_candidate_is_the_worst_and_only_that(parts, tiny_model, tmp_path, monkeypatch):
    class Diverging(Counting):
        def __call__(self, quantized) -> Score:
            score = super().__call__(quantized)
            return Score(None) if score.value > 0 else score

    monkeypatch.setattr(scoring, "Judge", Diverging)
    found = quantize(tiny_model, parts.recipe(search=parts.evolution()), parts.data, None, parts.setting(tmp_path))
    assert found.allocation.details["value"] <= 0
    assert '"value": null' in (tmp_path / "search.jsonl").read_text()
    monkeypatch.setattr(scoring, "Judge", lambda *_: lambda quantized: Score(None))
    with pytest.raises(UserError, match="all 12 candidates diverged"):
        quantize(tiny_model, parts.recipe(search=parts.evolution()), parts.data, None, parts.setting())


def test_candidates_share_noise_that_is_no_others(parts, tiny_model, monkeypatch):
    seen, labels = [], Dataset.labels
    monkeypatch.setattr(Dataset, "labels", lambda own, i, seed: seen.extend(i) or labels(own, i, seed))
    judge = Judge(parts.objective(), tiny_model, parts.setting())
    first, second = judge.draw().latents(), judge.draw().latents()
    assert torch.equal(first, second)
    assert not torch.equal(Judge(parts.objective(seed=1), tiny_model, parts.setting()).draw().latents(), first)
    assert min(seen) == SEARCH
    plain = quantize(tiny_model, parts.recipe(weight_bits=16, activation_bits=16), parts.data)
    assert judge(plain).value == 120  # identical to full precision


def test_the_tracker_gets_a_line_a_generation(parts, tiny_model):
    lines = []

    class Tracker:
        def log(self, values, step, stage):
            lines.append((step, stage, dict(values)))

    quantize(tiny_model, parts.recipe(search=parts.evolution()), parts.data, None, parts.setting(tracker=Tracker()))
    assert [(step, stage) for step, stage, _ in lines] == [(0, "search"), (1, "search"), (2, "search")]
    assert all(v["best"] >= v["median"] and v["best_so_far"] >= v["best"] for _, _, v in lines)


def test_random_search_scores_as_many_as_it_says(parts, tiny_model, tmp_path):
    search = RandomSearch(
        budget=MeanGroup(at_least=16),
        group_sizes=[8, 16, 32],
        objective=parts.objective(),
        candidates=5,
        report_every=2,
    )
    found = quantize(tiny_model, parts.recipe(search=search), parts.data, None, parts.setting(tmp_path))
    assert len((tmp_path / "search.jsonl").read_text().splitlines()) == 6
    assert len(found.allocation.curves["search_median"]["y"]) == 3


def problems(parts, model, **changes) -> list[str]:
    return parts.recipe(**changes).problems(model.sites())


def test_what_cannot_work_is_seen_before_anything_is_computed(parts, tiny_model):
    rows = {
        "weight": WeightGrid(granularity="row", grid="asymmetric", range=MinMax()),
        "activation": DynamicActivation(granularity="row", grid="asymmetric"),
    }
    assert (
        "neither weights nor inputs are quantized in groups"
        in problems(parts, tiny_model, search=parts.evolution(), **rows)[0]
    )
    indivisible = problems(parts, tiny_model, search=parts.evolution(group_sizes=[48, 128]))
    assert indivisible == [
        "none of search.group_sizes divides transformer_blocks.1.ff.net.0.proj (32 inputs); 16 and 32 do"
    ]
    dear = problems(parts, tiny_model, search=parts.evolution(budget=Bytes(at_most=1e-6)))
    assert dear[0].startswith("search.budget cannot be met: 1e-06 MB")
    assert problems(parts, tiny_model, search=parts.evolution(), **grouped(48)) == []  # the recipe's own are not used


def test_groups_that_a_format_owns_are_not_searched(parts, tiny_model):
    """Not even those of integers, whose scales are like all others."""
    for name, size in {"int4_g16": 16, "nvfp4": 16, "mxfp4": 32}.items():
        named = {"weight": parts.recipe().weight.in_format(name), "weight_format": name}
        (found,) = problems(parts, tiny_model, search=parts.evolution(), **named)
        assert f"the format {name} has groups of {size}; use search=none" in found
        assert problems(parts, tiny_model, search=parts.evolution(group_sizes=[size], preset=size), **named) == []
    scaled = replace(parts.recipe().weight, grid="e2m1", scale="e4m3")
    (found,) = problems(parts, tiny_model, search=parts.evolution(), weight=scaled)
    assert "the format e2m1 with scale=e4m3 has groups of 16" in found


def test_references_of_the_objective_are_found_before_sampling(parts, tmp_path):
    objective = parts.objective(FID(extractor="lite0"), name="fid_lite0", num_samples=64)
    search = parts.evolution(objective=objective)
    emoji, cats = (replace(parts.setting().dataset, reference=of, image_size=None) for of in ("emoji", "cats"))
    assert search.preflight(emoji, tmp_path).references.keys() == {"lite0"}
    with pytest.raises(UserError, match=r"search.objective: no lite0 reference statistics of cats"):
        search.preflight(cats, tmp_path)
    assert parts.evolution().preflight(cats, tmp_path).references == {}


class OfPrompts(PerSample):
    """A metric that reads prompts, as EmojiMatch does: it keeps what it was shown."""

    higher_is_better = True

    def unreadable(self, prompts):
        return ["it reads no cats"] if "a cat" in prompts else []

    def each(self, samples, full_precision):
        assert samples.prompts, "no prompts are known"
        OfPrompts.shown = list(samples.prompts), samples.clusters
        return torch.arange(samples.n).double()


def test_an_objective_that_reads_prompts_gets_them_before_and_after_sampling(parts, tiny_model, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a dog", "id": "d"}\n{"prompt": "an owl", "id": "o"}\n')
    objective = parts.objective(OfPrompts(), name="of_prompts")
    search = parts.evolution(objective=objective, population=2, generations=0)
    setting = parts.setting(dataset=(dataset := prompts(file=str(tmp_path / "p.jsonl"))))
    search.preflight(dataset, tmp_path)
    assert quantize(tiny_model, parts.recipe(search=search), parts.data, None, setting).allocation is not None
    first = SEARCH % 2
    names = [["a dog", "an owl"][(first + n) % 2] for n in range(3)]
    assert OfPrompts.shown == (names, [{"a dog": "d", "an owl": "o"}[name] for name in names])
    (tmp_path / "c.txt").write_text("a cat\nan owl\n")
    mine = prompts(file=str(tmp_path / "p.jsonl"), calibration_file=str(tmp_path / "c.txt"))
    with pytest.raises(UserError, match="search.objective: it reads no cats"):  # candidates have calibration's prompts
        search.preflight(mine, tmp_path)
    judge = Judge(objective, tiny_model, parts.setting())
    assert judge.draw().prompts[0].startswith("class ")
    assert judge.draw().clusters is None


def test_a_search_on_evaluated_prompts_says_so_once(parts, tiny_model, tmp_path, caplog):
    (tmp_path / "p.txt").write_text("a dog\nan owl\n")
    (tmp_path / "c.txt").write_text("a cat\n")
    made = [prompts(file=str(tmp_path / "p.txt"))]
    made.append(prompts(file=str(tmp_path / "p.txt"), calibration_file=str(tmp_path / "c.txt")))
    said = []
    for dataset in (*made, parts.setting().dataset):
        caplog.clear()
        Meter(tiny_model, parts.setting(dataset=dataset), Paired(num_samples=2), Journal(None, "", {}, whole))
        assert len(caplog.records) <= 1
        count = len(caplog.records)
        Judge(parts.objective(), tiny_model, parts.setting(dataset=dataset))
        said.append((count, len(caplog.records) - count))
    assert said == [(1, 1), (0, 0), (0, 0)]


def test_an_fid_can_be_the_objective(parts, tiny_model, tmp_path):
    objective = parts.objective(FID(extractor="lite0"), name="fid_lite0", num_samples=40, batch_size=20)
    search = parts.evolution(objective=objective, population=2, generations=0)
    emoji = replace(parts.setting().dataset, image_size=None)
    setting = parts.setting(prepared=search.preflight(emoji, tmp_path))
    found = quantize(tiny_model, parts.recipe(search=search), parts.data, None, setting)
    assert found.allocation.details["value"] > 0


def test_finished_fits_are_resumed_from_their_folder(parts, tiny_model, tmp_path):
    recipe = parts.recipe(rounding=GPTQ(), search=parts.evolution())
    first = quantize(tiny_model, recipe, parts.data, tmp_path, parts.setting())
    assert {p.parent.name for p in tmp_path.rglob("*.safetensors")} == {"group_0008", "group_0016", "group_0032"}
    none = lambda: pytest.fail("calibration data was collected again")  # noqa: E731
    assert same(quantize(tiny_model, recipe, none, tmp_path, parts.setting()), first)


def test_without_a_search_nothing_changes(parts, tiny_model):
    plain = quantize(tiny_model, parts.recipe(), parts.data)
    assert plain.allocation is None
    assert plain.policy == parts.recipe().plan(tiny_model.sites())
    with pytest.raises(ValueError, match="needs its setting"):
        quantize(tiny_model, parts.recipe(search=parts.evolution()), parts.data)


def test_sqnr_is_the_metric_of_the_evaluation(parts):
    assert isinstance(parts.objective().metric, SQNR)
    with pytest.raises(UserError, match="num_samples=0"):
        parts.objective(num_samples=0)
