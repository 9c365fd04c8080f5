"""The card of an exported model: what the hub's own reader finds in it, and what a person reads."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from qdit.exports.card import About, card
from qdit.ledger import ledger
from qdit.policies import Policy

RECORD = {
    "seed": 3,
    "protocol": "emoji_dit|ddim20|N=64",
    "config": {"dataset.name": "emoji"},
    "cost": {"executed": "int8"},
    "metrics": {
        "sqnr": {"value": 36.71, "stderr": 0.42, "n": 64, "higher_is_better": True, "delta": None},
        "fid_lite0": {"value": 61.5, "stderr": None, "n": 64, "higher_is_better": False, "delta": 1.5},
    },
}


@pytest.fixture
def about(tiny_model) -> About:
    cost = ledger(tiny_model.denoiser, tiny_model.sites(), Policy(), tiny_model.attentions())
    return About(
        name="mine",
        target="torchao",
        needs="diffusers and torchao",
        loading=("import torch", "pipe = 1"),
        cost=cost,
        base="facebook/DiT-XL-2-256",
        config={"quantizer": {"name": "rtn", "paper": None}},
        record=RECORD,
        command="qdit quantizer=rtn",
    )


def test_the_hubs_reader_finds_metrics_protocol_and_original(about):
    found = ModelCard(str(card(about))).data
    assert (found.base_model, found.library_name, found.base_model_relation) == (about.base, "diffusers", "quantized")
    results = {result.metric_type: result for result in found.eval_results}
    assert results["sqnr"].metric_value == 36.71
    assert results["sqnr"].metric_args == {"stderr": 0.42, "n": 64}
    assert results["fid_lite0"].metric_args == {"n": 64, "delta": 1.5}
    assert results["sqnr"].dataset_args == {"protocol": RECORD["protocol"]}


def test_a_person_reads_bits_metrics_with_errors_and_the_command(about):
    text = card(about).text
    for part in ("| sqnr | ↑ | 36.71 ± 0.42 | 64 |", "| fid_lite0 | ↓ | 61.5 | 64 |", "$ qdit quantizer=rtn", "seed 3"):
        assert part in text
    assert f"| none | {about.cost.weight_bits_model:.2f} |" in text
    assert "max / 127.5" not in text
    assert "max / 127.5" in card(replace(about, near=True)).text


def test_a_metric_without_a_direction_has_no_arrow(about):
    energy = {"value": 2.5, "stderr": None, "n": 8, "higher_is_better": None, "delta": None}
    text = card(replace(about, record=RECORD | {"metrics": {"motion_energy": energy}})).text
    assert "| motion_energy | — | 2.5 | 8 |" in text


def test_without_a_run_there_are_no_metrics(about):
    made = card(replace(about, record=None, config=None, base=None, command=None))
    assert "Metrics" not in made.text
    assert ModelCard(str(made)).data.eval_results is None
