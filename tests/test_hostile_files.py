"""Each reader of files, given valid files that were changed: the value is what it was, or there is one message.

Never another number where a digest or a checksum says what was written, and never a traceback.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import fitted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qdit.checkpoint import checkpoint
from qdit.checkpoint.manifest import MANIFEST, TENSORS, Manifest
from qdit.errors import UserError
from qdit.eval import reference
from qdit.eval.statistics import Moments
from qdit.model.checks import check_dit
from qdit.model.dit import DiT
from qdit.model.files import read_config
from qdit.policies import Policy
from qdit.storage.arrays import read_arrays, read_image
from qdit.storage.journal import Journal
from qdit.storage.run_folder import RunDir
from qdit.storage.tensors import load_tensors, save_tensors
from qdit.tables.records import read_record

METRICS = {"sqnr": {"value": 12.5, "stderr": 0.25, "n": 64, "settings": "0a1b2c3d", "higher_is_better": True}}
SKIPPED = object()
"""What a reader gives that leaves a damaged file out."""


@dataclass(frozen=True)
class Case:
    """A reader, and the valid file that it reads."""

    file: str
    make: Callable[[Path], object]
    """Writes the file into a folder, and what belongs to it."""
    read: Callable[[Path], Any]
    """The value of the file, as something that can be compared; SKIPPED where it is left out."""
    sure: bool = True
    """Whether another value cannot pass; without a digest it can, if it is a possible one."""


def plain(record: dict | None) -> Any:
    """A record without its digest and keys that are not a record's."""
    return SKIPPED if record is None else {key: record.get(key) for key in ("schema", "metrics", "cost", "status")}


def lists(tensors: dict) -> Any:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def write_record(folder: Path) -> None:
    RunDir(folder).save_result(
        {"schema": 1, "status": "done", "metrics": METRICS, "cost": {"bops": 1.5e9, "seconds": {"sample": 0.125}}}
        | {"config": {"quantizer.name": "rtn", "bits.name": "w4a8"}, "seed": 0, "study": "s", "name": "n"}
    )


def write_checkpoint(folder: Path) -> None:
    model = MODEL[0]
    checkpoint.save(fitted(model), folder, checkpoint.provenance(model))


def write_reference(folder: Path) -> None:
    pooled, spatial = torch.rand(6, 1280), torch.rand(6, 448)
    a, b = Moments.of(pooled), Moments.of(spatial)
    about = {"mu": a.mean, "sigma": a.covariance(), "mu_s": b.mean, "sigma_s": b.covariance(), "pooled": pooled}
    made = reference.Reference(name="toy", extractor="lite0", n=6, provenance={"source": "x"}, **about)
    made.save(folder / "r.safetensors")


def read_reference(folder: Path) -> Any:
    found: Any = reference.load(folder / "r.safetensors")
    return found.n, found.name, found.mu.tolist(), found.mu_s.tolist(), float(found.sigma_s.sum())


def write_policy(folder: Path) -> None:
    spec = {"bits": 4, "granularity": "group", "group_size": 64, "grid": "asymmetric", "dynamic": False}
    span = {"first": 999, "last": 500, "steps": 10, "weight": spec}
    Policy.of(
        {
            "a": {"weight": spec, "activation": None, "spans": [span], "bases": 2},
            "b": {"weight": None, "activation": spec | {"dynamic": True}},
        }
    ).save(folder / "policy.yaml")


def write_journal(folder: Path) -> None:
    journal = Journal.__new__(Journal)
    journal.path, journal.entries, journal.first = folder / "search.jsonl", [], {"ledger": 1, "x": {"y": 2}}
    for entry in (journal.first, {"score": 1.5}, {"score": -2.25}):
        journal.append(entry)


def read_journal(folder: Path) -> Any:
    lines = Journal.__new__(Journal)._lines(folder / "search.jsonl", lambda entry: "score" in entry)
    return [entry["score"] for entry in lines[1:]]


def read_model(folder: Path) -> Any:
    config = read_config(folder)
    check_dit(folder / "config.json", config)
    return config


def write_model(folder: Path) -> None:
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 2, "attention_head_dim": 16}
    config |= {"in_channels": 4, "num_layers": 2, "num_embeds_ada_norm": 10, "sample_size": 8, "patch_size": 2}
    (folder / "config.json").write_text(json.dumps(config))


def write_image(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")


MODEL: list[Any] = []
TENSORS_OF = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int8)}
CASES = {
    "result.json": Case("result.json", write_record, lambda folder: plain(RunDir(folder).result())),
    "record of a table": Case("result.json", write_record, lambda folder: plain(read_record(folder / "result.json"))),
    "metrics.json": Case(
        "metrics.json",
        lambda folder: RunDir(folder).save_metrics(METRICS),
        lambda folder: RunDir(folder).metrics() or SKIPPED,
    ),
    "policy": Case("policy.yaml", write_policy, lambda f: Policy.load(f / "policy.yaml").tree(), sure=False),
    "manifest": Case(MANIFEST, write_checkpoint, lambda folder: Manifest.read(folder).content),
    "checkpoint": Case(
        TENSORS,
        write_checkpoint,
        lambda folder: lists(checkpoint.load(folder, MODEL[0]).layers["transformer_blocks.0.attn1.to_q"].state_dict()),
    ),
    "tensors": Case(
        "a.safetensors",
        lambda folder: save_tensors(folder / "a.safetensors", TENSORS_OF, {"of": "it"}),
        lambda folder: lists(load_tensors(folder / "a.safetensors")),
    ),
    "reference": Case("r.safetensors", write_reference, read_reference),
    "ledger": Case("search.jsonl", write_journal, read_journal, sure=False),
    "config.json": Case("config.json", write_model, read_model, sure=False),
    "npz": Case(
        "a.npz",
        lambda folder: np.savez_compressed(folder / "a.npz", a=np.arange(40.0), b=np.zeros((3, 2), np.uint8)),
        lambda folder: [array.tolist() for array in read_arrays(folder / "a.npz", ["a", "b"], "mend it")],
    ),
    "image": Case("a.png", write_image, lambda folder: read_image(folder / "a.png", "mend it").tolist()),
}

VALUES: list[Any] = [None, True, -1, 0, 3, 0.5, 1e308, "", "x", "a\0b", [], {}, [[]], {"": 1}, 2**70, "é", [1, "a"]]
VALUES += [json.loads("[" * 150 + "]" * 150), float("inf"), "../../x", -(2**63)]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A way to change a file: bytes flipped, cut off, put in, or a value of JSON put in the place of another."""
    at, other = draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["flip", "flips", "cut", "insert", "repeat", "value", "value", "key"]))
    bits, new = draw(st.integers(1, 255)), draw(st.sampled_from(VALUES))
    inserted = draw(st.binary(min_size=1, max_size=8))

    def change(data: bytes) -> bytes:
        place, end = int(at * len(data)), int(other * len(data))
        if kind == "flip":
            return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]
        if kind == "flips":
            return data[:place] + bytes(b ^ bits for b in data[place : place + 16]) + data[place + 16 :]
        if kind == "cut":
            return data[:place]
        if kind == "insert":
            return data[:place] + inserted + data[place:]
        if kind == "repeat":
            return data[:place] + data[end : end + 40] + data[place:]
        with suppress(ValueError):
            return swapped(json.loads(data), at, new, kind == "key")
        return data[: place // 2]

    return change


def swapped(tree: Any, at: float, new: Any, key: bool) -> bytes:
    """A JSON text with one value in the place of another, or one key removed."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for name, value in items:
            places.append((node, name))
            walk(value)

    walk(tree)
    node, name = places[int(at * len(places))]
    if key:
        del node[name]
    else:
        node[name] = new
    return json.dumps(tree).encode()


@pytest.fixture(scope="module")
def files(tiny_pipeline, tmp_path_factory) -> dict[str, tuple[Path, bytes, Any]]:
    """For each reader the folder, the valid file, and its value."""
    MODEL[:] = [DiT(name="tiny", path=str(tiny_pipeline)).load("cpu", torch.float32)]
    found = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("files")
        case.make(folder)
        found[name] = folder, (folder / case.file).read_bytes(), case.read(folder)
        assert found[name][2] is not SKIPPED
    return found


def tried(name: str, files: dict, change: Callable[[bytes], bytes]) -> None:
    """Read a changed file: an equal value, a message, or a documented omission."""
    case, (folder, whole, value) = CASES[name], files[name]
    data = change(whole)
    (folder / case.file).write_bytes(data)
    try:
        found = case.read(folder)
    except UserError as error:
        found = str(error)
        if not found.strip() or "Traceback" in found:
            pytest.fail(f"{case.file}: {found!r} is no message")
        return
    assert found is SKIPPED or found == value or not case.sure, f"{found} instead of {value}"


def how(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@pytest.mark.parametrize("name", CASES)
@how(9)  # 100 in all
@given(change=mutations())
def test_a_changed_file_gives_its_value_or_a_message(name, files, change):
    tried(name, files, change)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@how(170)  # 2,000 in all
@given(change=mutations())
def test_many_changed_files_give_their_value_or_a_message(name, files, change):
    tried(name, files, change)
