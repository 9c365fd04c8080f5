"""What a run reads back is of it, whole, and made by what makes it now; else it is made again, and that is said."""

import json

import pytest
import torch
from helpers.damage import flipped
from safetensors.torch import save_file

from qdit.errors import UserError
from qdit.eval.samples import SampleSet
from qdit.runs.evaluation import keep
from qdit.storage.journal import Journal
from qdit.storage.run_folder import CLUSTERS
from qdit.storage.shelf import Shelf

HERE = {"device": "cpu AVX2", "torch": "2.9.0", "execution": "int8"}
THERE = HERE | {"execution": "simulated"}
X = {"x": torch.arange(4.0)}


def test_a_file_of_something_else_is_made_again_and_named(tmp_path, caplog):
    Shelf(tmp_path, {"recipe": "a"}).save("f", X)
    assert Shelf(tmp_path, {"recipe": "b"}).load("f") is None
    assert "f.safetensors is of something else" in caplog.text
    (tmp_path / "f.safetensors").rename(tmp_path / "g.safetensors")
    assert Shelf(tmp_path, {"recipe": "a"}).load("g") is None


def test_a_flipped_file_is_made_again_and_named(tmp_path, caplog):
    shelf = Shelf(tmp_path, {"recipe": "a"}, HERE)
    shelf.save("f", X)
    path = shelf.path("f")
    path.write_bytes(flipped(path.read_bytes(), 1))
    assert shelf.load("f") is None
    assert "f.safetensors is damaged" in caplog.text


def test_a_file_of_an_earlier_qdit_is_read(tmp_path):
    save_file(X, tmp_path / "f.safetensors")
    assert Shelf(tmp_path, {"recipe": "a"}, HERE, shared=True).once("f", lambda: pytest.fail("made")).keys() == {"x"}


def test_machines_that_share_a_cache_keep_their_files(tmp_path):
    here, there = (Shelf(tmp_path, "of", made, shared=True) for made in (HERE, THERE))
    made = []
    for value in (1.0, 2.0, 3.0):
        for shelf in (here, there):
            found = shelf.once(
                "f", lambda value=value, shelf=shelf: made.append(shelf) or {"x": torch.full((1,), value)}
            )
            assert found["x"] == 1
    assert made == [here, there]
    assert here.path("f") == tmp_path / "f.safetensors"
    assert there.path("f").parent.parent == tmp_path


def sample_set(folder, made, kill=None):
    def generate(indices):
        if indices[0] == kill:
            raise KeyboardInterrupt
        sign = 1 if made is HERE else -1
        return sign * torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 4, 2, 2)

    def extract(name):
        return lambda images: {"pooled": images.flatten(1).float()}

    shelf = Shelf(folder, {"run": 1}, made)
    return SampleSet(shelf, 5, 2, generate, lambda x: x.to(torch.int8), extract)


def test_a_run_continued_under_another_execution_mixes_nothing(tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        sample_set(tmp_path, HERE, kill=4).latents()
    assert sample_set(tmp_path, HERE).latents()[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    sample_set(tmp_path, HERE).features("lite0")
    assert not caplog.text
    other = sample_set(tmp_path, THERE)
    assert not other.complete()
    assert other.latents()[:, 0, 0, 0].tolist() == [0, -1, -2, -3, -4]
    assert other.features("lite0")["pooled"][:, 0].tolist() == [0, -1, -2, -3, -4]
    assert other.generated == 5
    assert caplog.text.count("it is made again, not mixed") == 1


def test_finished_samples_are_taken_as_they_were_made(tmp_path):
    sample_set(tmp_path, HERE).latents()
    other = sample_set(tmp_path, THERE)
    assert not other.adopt(THERE)
    assert other.made == THERE
    assert other.adopt(HERE)
    assert other.latents()[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert other.adopt(None)


def test_damaged_chunks_are_made_again_with_their_features(tmp_path):
    samples = sample_set(tmp_path, HERE)
    features = samples.features("lite0")["pooled"]
    path = tmp_path / "latents_00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(flipped(whole, 1))
    assert torch.equal(samples.latents()[:, 0, 0, 0], torch.arange(5.0))
    assert path.read_bytes() == whole
    path = tmp_path / "features-lite0_00001.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 3))
    assert torch.equal(samples.features("lite0")["pooled"], features)


def journal(folder, made, shared=False, identity=None):
    return Journal(Shelf(folder, identity, made, shared), "search", {"ledger": 1}, lambda entry: entry["value"])


def test_lines_of_another_execution_are_not_used(tmp_path):
    journal(tmp_path, HERE).append({"value": 1.5})
    assert journal(tmp_path, HERE).entries == [{"value": 1.5}]
    assert journal(tmp_path, THERE).entries == []
    journal(tmp_path, THERE).append({"value": 2.5})
    assert journal(tmp_path, HERE, shared=True).entries == []
    assert journal(tmp_path, THERE, shared=True).entries == [{"value": 2.5}]


def test_a_journal_that_is_deleted_beside_its_owner_begins_anew(tmp_path):
    """As `overwrite=true` in another terminal does, whose search is of the same sensitivities."""
    mine = journal(tmp_path, HERE)
    mine.append({"value": 1.5})
    (tmp_path / "search.jsonl").unlink()
    mine.append({"value": 2.5})
    mine.append({"value": 3.5})
    assert journal(tmp_path, HERE).entries == [{"value": 2.5}, {"value": 3.5}]


def test_a_flipped_line_or_another_identity_is_refused(tmp_path):
    journal(tmp_path, HERE, identity={"run": 1}).append({"value": 1.5})
    path = tmp_path / "search.jsonl"
    with pytest.raises(UserError, match="belongs to another search"):
        journal(tmp_path, HERE, identity={"run": 2})
    text = path.read_text()
    for damaged in (text.replace("1.5", "1.7"), text.replace('"check"', '"chack"'), text[1:]):
        path.write_text(damaged)
        with pytest.raises(UserError, match=r"search.jsonl (is damaged|belongs to another)"):
            journal(tmp_path, HERE, identity={"run": 1})


def test_a_journal_of_an_earlier_qdit_goes_on(tmp_path):
    (tmp_path / "search.jsonl").write_text('{"ledger": 1}\n{"value": 1.5}\n')
    journal(tmp_path, HERE).append({"value": 2.5})
    assert [entry["value"] for entry in journal(tmp_path, HERE).entries] == [1.5, 2.5]
    assert "check" in json.loads((tmp_path / "search.jsonl").read_text().splitlines()[-1])


def test_features_are_of_the_files_that_made_them(tmp_path):
    """An extractor's weights that the user replaces make its features again; the latents stay."""
    samples, brought = sample_set(tmp_path, HERE), ["one"]
    samples.weights = lambda name: brought[0] if name == "clip_b32" else None
    seen = []
    samples.extract = lambda name: lambda images: seen.append(name) or {"pooled": images.flatten(1).float()}
    for name in ("clip_b32", "lite0", "clip_b32"):
        samples.features(name)
    assert seen == ["clip_b32"] * 3 + ["lite0"] * 3
    brought[0] = "another"
    assert samples.missing(["clip_b32", "lite0"]) == ["clip_b32"]
    samples.features("clip_b32")
    assert seen[6:] == ["clip_b32"] * 3
    assert samples.generated == 5


def test_the_number_of_each_prompt_is_kept_with_values(tmp_path):
    """Even where none is shared: another seed's samples are of the same prompts."""
    shelf = Shelf(tmp_path, {"run": 1})
    keep(shelf, "psnr@1", torch.zeros(3), ["b", "a", "c"])
    stored = shelf.load("values")
    assert stored is not None
    assert stored[CLUSTERS].tolist() == [0, 1, 2]
