"""Names that results depend on: the classes that configs describe, and those that checkpoints of before hold.

A `_target_` is part of a run's hash, and a class path part of a checkpoint: both stay, wherever the code moves.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from hydra.utils import get_class

from qdit.assets import CONF
from qdit.checkpoint.manifest import MANIFEST, TENSORS
from qdit.checkpoint.serialize import Reader, Writer
from qdit.nn.clock import Clock
from qdit.storage.tensors import load_tensors

GOLDENS = sorted(Path(__file__).with_name("goldens").iterdir())
"""Checkpoints of the tiny pipeline, saved at commit 7d51186: a kind of recipe each."""
TARGETS = Path(__file__).with_name("targets.txt").read_text().split()
"""The `_target_`s of conf/ at that commit."""


def test_no_config_names_a_class_by_another_address():
    now = {name for file in CONF.rglob("*.yaml") for name in re.findall(r"_target_: *([\w.]+)", file.read_text())}
    kept = set(TARGETS) - {"qdit.callback.TableCallback"}  # of Hydra's node, which is in no hash
    assert kept <= now
    for target in kept:
        get_class(target)


MARKS = {"object", "tensor", "dtype", "list", "tuple", "dict", "same"}
"""Keys of a JSON value that stands for an object, and is no folder of such values."""


def read(reader: Reader, node):
    """What a tree of a checkpoint stands for, in the order in which it was written."""
    if isinstance(node, dict) and not MARKS & node.keys():
        return {key: read(reader, value) for key, value in node.items()}
    return [read(reader, value) for value in node] if isinstance(node, list) else reader.value(node)


def written(writer: Writer, node, made, path: str):
    """The inverse of `read`; `node` shows the folders."""
    if isinstance(node, dict) and not MARKS & node.keys():
        return {key: written(writer, node[key], made[key], f"{path}.{key}") for key in node}
    if isinstance(node, list):
        return [written(writer, *pair, f"{path}.{n}") for n, pair in enumerate(zip(node, made, strict=True))]
    return writer.value(made, path)


def same(one, other, tensors, others) -> bool:
    """Whether two trees are equal, but for the names of equal tensors."""
    if isinstance(one, str) and one in tensors:
        return torch.equal(tensors[one], others[other])
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k], tensors, others) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(*pair, tensors, others) for pair in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("folder", GOLDENS, ids=lambda folder: folder.name)
def test_a_checkpoint_of_before_is_read_and_written_again_alike(folder):
    model, tensors = json.loads((folder / MANIFEST).read_text())["model"], load_tensors(folder / TENSORS)
    tree = [model["rewrite"]["origin"] if model["rewrite"] else None, model["layers"], model["others"]]
    reader, writer = Reader(tensors, torch.device("cpu"), {Clock: Clock()}), Writer()
    again = written(writer, tree, read(reader, tree), "x")
    assert same(tree, again, tensors, writer.tensors)
