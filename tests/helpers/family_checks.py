"""What holds of a model of every family: samples stand alone, sites have the rows of a real run, all can be rounded."""

import torch
from helpers.text_models import points

import qdit
from qdit.calibration.observers import operand_values, watching
from qdit.method import quantize
from qdit.quant.time_groups import ALL


def check_a_sample_alone(model, sampler):
    """A sample does not depend on its batch; `sampler` takes one step."""
    both = sampler.sample(model, [0, 1], torch.tensor([0, 1]), seed=0)
    alone = sampler.sample(model, [1], torch.tensor([1]), seed=0)
    assert (both[1] - alone[0]).abs().max() <= 1e-5 * both.abs().max()


def checked_sites(model, sampler):
    """The sites by name, each with the rows for a sample that a real step without guidance has."""
    seen, sites = {}, {site.name: site for site in model.sites()}

    def note(site, layer, x, output):
        seen.setdefault(site.name, x.numel() // site.in_features)

    with watching(model, model.sites(), note):
        sampler.sample(model, [0], torch.tensor([0]), seed=0)
    assert seen == {name: site.tokens for name, site in sites.items()}
    return sites


@torch.no_grad()
def check_all_can_be_quantized(model, data=None):
    """Every layer and attention at once: at 16 bits nothing changes, at 8 a little."""
    data = points(model, 4) if data is None else data
    expected = model.denoise(data.x, data.t, data.y)
    for bits, least in ((16, 1e-5), (8, 0.2)):
        words = ["scope=all", "attention=uniform", "weight=row", "activation=token", f"bits.name=w{bits}a{bits}"]
        words += [f"bits.weight={bits}", f"bits.activation={bits}"]
        with quantize(model, qdit.recipe("rtn", *words, bits="w8a8"), lambda: data).installed(model):
            found = model.denoise(data.x, data.t, data.y)
        assert (found - expected).abs().max() <= least * expected.abs().max()
        assert bits == 16 or not torch.equal(found, expected)


def check_hidden_rows_count_in_no_range(model, text: str, mask: str):
    """What lies behind a prompt's end is in no sample of queries, keys and values.

    Args:
        model: with a table of conditions.
        text: the table's rows of a prompt.
        mask: the table's rows that say which of these are its own.
    """
    data = points(model, 2)
    sites = {a.sites[o]: ALL for a in model.attentions() for o in ("q", "k", "v")}
    expected = operand_values(model, model.attentions(), data, sites)
    rows, before = model.table.rows[text], model.table.rows[text].clone()
    rows[model.table.rows[mask] == 0] += 100
    try:
        found = operand_values(model, model.attentions(), data, sites)
    finally:
        rows.copy_(before)
    for site, (values,) in expected.items():
        assert found[site][0].shape == values.shape
        assert (found[site][0] - values).abs().max() <= 1e-4 * values.abs().max(), site
