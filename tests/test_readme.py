"""Every command of README.md and docs/ works as written, and what they say of files, classes and one's own parts is so.

`qdit` is composed and checked with dry=true, in this process, on stand-ins of the models that are not here: a network
of DiT-XL/2's width with one block. Of a sweep the first and the last cell are taken. One's own parts run for real.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from zlib import crc32

import pytest
import torch
from helpers.pipelines import make_vae, write_hunyuan_pipeline, write_pipeline, write_text_pipeline
from helpers.vbench_suite import write_suite
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins

from qdit.api import exports
from qdit.assets import CONF
from qdit.cli import design, export, ls, pick, refs, report, score, table, vbench
from qdit.cli.main import main as cli
from qdit.errors import UserError
from qdit.model import files
from qdit.model.adapter import FAMILIES
from qdit.model.dit import DiT
from qdit.quant.affine import affine
from qdit.quant.grid import fake_quantize
from qdit.quant.ranges import MinMax
from qdit.quant.spec import QuantSpec
from qdit.runs import run
from qdit.storage.run_folder import RunDir

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INSPECTING = ("--help", "--cfg", "--info")  # what composes and stops
PLUGINS = {"joblib": "joblib", "submitit_slurm": "slurm", "optuna": "optuna"}  # option -> extra
TINY = [
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=emoji"),
    *("sampler.steps=2", "num_samples=4", "batch_size=4", "calibration.num_samples=8", "eval=smoke", "device=cpu"),
]


def command_lines(document: Path) -> list[str]:
    """What follows `$ ` in the console blocks, with its continuation lines."""
    blocks = re.findall(r"^```console\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line[2:] for line in lines if line.startswith("$ ")]


def scripts(document: Path) -> list[str]:
    """The blocks of Python without a title."""
    return re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def titled(document: Path) -> dict[str, str]:
    """The files that a document shows: blocks with a title."""
    text = document.read_text(encoding="utf-8")
    return dict(re.findall(r"^```\w+ title=(\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))


COMMANDS = [
    pytest.param(
        line,
        id=f"{document.stem}: {re.sub(' +', ' ', line)[:60]}",
        # Pages with more of what the README shows, and figures as other kinds of files (tests/plots has them)
        marks=pytest.mark.slow if document.stem in ("components", "protocols") or "--figure-files" in line else (),
    )
    for document in DOCUMENTS
    for line in command_lines(document)
]


# --- Stand-ins


def latent_pipeline(folder: Path, heads: int, head_dim: int, classes: int, sample_size: int) -> Path:
    """A random DiT of one block whose autoencoder has eight pixels a latent."""
    from diffusers import DiTTransformer2DModel

    write_pipeline(folder)  # for its scheduler and index
    DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=sample_size,
        patch_size=2,
        num_embeds_ada_norm=classes,
    ).save_pretrained(folder / "transformer")
    make_vae((4,) * 4, 8 * sample_size).save_pretrained(folder / "vae")
    return folder


def resized(pipeline: Path, folder: Path, sample_size: int) -> Path:
    """The same weights, told that latents have another size."""
    shutil.copytree(pipeline, folder, copy_function=os.link)
    config = folder / "transformer" / "config.json"
    text = json.loads(config.read_text()) | {"sample_size": sample_size}
    config.unlink()  # a link
    config.write_text(json.dumps(text))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, Path]:
    """What the hub would give, by name."""
    root = tmp_path_factory.mktemp("hub")
    small = latent_pipeline(root / "xl256", heads=16, head_dim=72, classes=1000, sample_size=32)
    large = resized(small, root / "xl512", sample_size=64)
    families = {"pixart_alpha": "PixArt-alpha/PixArt-XL-2-1024-MS", "latte": "maxin-cn/Latte-1"}
    families["pixart_sigma"] = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
    heads = {"pixart_alpha": 24}  # of three parts of the channels
    text = {name: write_text_pipeline(root / f, f, heads=heads.get(f, 16)) for f, name in families.items()}
    dits = {"facebook/DiT-XL-2-256": small, "facebook/DiT-XL-2-512": large, "stabilityai/sd-vae-ft-mse": small / "vae"}
    return dits | text


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, hub) -> Path:
    """A reader's folder: the files that the documents show, models, and a run with its checkpoint."""
    root = tmp_path_factory.mktemp("workshop")
    for document in DOCUMENTS:
        for name, text in titled(document).items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    latent_pipeline(root / "my_dit", heads=2, head_dim=64, classes=10, sample_size=32)
    write_text_pipeline(root / "my_pixart", "pixart_sigma", heads=16)
    write_text_pipeline(root / "my_latte", "latte", heads=16)
    for name in ("full", "theirs", "ours"):  # pipelines that are judged
        (root / name).symlink_to(root / "my_pixart")
    write_suite(root)
    for name in ("coco_1024.txt", "coco_128.txt", "calib.txt", "ucf_101.txt"):
        shutil.copyfile(root / "captions.txt", root / name)
    (root / "mjhq_5000.jsonl").write_text('{"id": "a", "prompt": "a red cat"}\n')
    write_hunyuan_pipeline(root / "my_hunyuan")
    (root / "DiT-XL-2-256").symlink_to(hub["facebook/DiT-XL-2-256"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("qdit.runs.stages.DIAGNOSED", 1)
        qdit(["eval=smoke", *("num_samples=4", "batch_size=4", "sampler.steps=2", "calibration.num_samples=8")], patch)
    shutil.copytree(root / "runs" / "default", root / "runs" / "q_dit")
    return root


LOADED: dict[tuple, object] = {}


@pytest.fixture
def reader(workshop, hub, monkeypatch):
    """In the reader's folder, with the hub at hand; models are read from the disk once."""
    load = DiT.load

    def loaded(self, device, dtype):
        key = *vars(self).values(), str(device), dtype
        if key not in LOADED:
            LOADED[key] = load(self, device, dtype)
        return LOADED[key]

    monkeypatch.chdir(workshop)
    monkeypatch.setattr(DiT, "load", loaded)
    monkeypatch.setattr(files, "_download", lambda repo, *_: hub[repo])
    return workshop


# --- Commands


def qdit(words: list[str], monkeypatch) -> None:
    """Run the command in this process; no cell of a sweep may fail."""
    # Hydra reads its plugins anew: these are not the classes that an import gives.
    plugins = Plugins.instance().class_name_to_class
    launcher = plugins["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    sweeper = plugins["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]
    failures, carry_out, launch = [], run.run, launcher.launch

    def watched(cfg):
        try:
            return carry_out(cfg)
        except Exception as error:
            failures.append(error)
            raise

    def ends(self, job_overrides, initial_job_idx):
        jobs = list(job_overrides)
        return launch(self, jobs if len(jobs) < 3 else [jobs[0], jobs[-1]], initial_job_idx)

    with monkeypatch.context() as patch:
        patch.setattr(run, "run", watched)
        patch.setattr(launcher, "launch", ends)
        patch.setattr(sweeper, "validate_batch_is_legal", lambda *_: None)  # tests/test_conf.py has every cell
        patch.setattr(sys, "argv", ["qdit", *words])
        GlobalHydra.instance().clear()
        code = None
        try:
            cli()
        except SystemExit as stop:
            code = stop.code
    assert not failures
    assert not code


def without_plugins(words: list[str]) -> list[str]:
    """The command for the plugins that are always here; others must be of an extra."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    kept = []
    for word in words:
        group, _, option = word.partition("=")
        if group in ("hydra/launcher", "hydra/sweeper"):
            assert PLUGINS[option] in extras
        elif not group.startswith(("hydra.launcher.", "hydra.sweeper.")):
            kept.append(re.sub(r"interval\(([^,]+),.*\)", r"\1", word))
    return kept


def run_qdit(words: list[str], reader: Path, monkeypatch) -> None:
    made = next((reader / "runs" / "default").glob("q_dit-w4a8-*")).name
    words = [word.replace("<run>", made) for word in without_plugins(words)]
    if not set(words) & set(INSPECTING):
        words += [*([] if "dry=true" in words else ["dry=true"]), "device=cpu"]
    qdit(words, monkeypatch)


def run_table(words: list[str], reader: Path) -> None:
    """On a study of its name, made of copies of one run."""
    if words == ["--help"]:
        with pytest.raises(SystemExit, match="^0$"):
            table.main(words)
        return
    if "--study" in words:
        pretended_study(reader, words[words.index("--study") + 1])
    if "--write" in words:  # is for who has the repository
        (reader / "docs").mkdir(exist_ok=True)
        for name in ("README.md", "docs/results.md"):
            shutil.copyfile(ROOT / name, reader / name)
        if not (reader / "experiments").exists():
            (reader / "experiments").symlink_to(ROOT / "experiments")
    assert table.main(words) == 0


def pretended_study(reader: Path, name: str) -> None:
    """Two recipes at two bit-widths below `runs/<name>`."""
    for quantizer, family in {"rtn": "baseline", "q_dit": "dit"}.items():
        for bits in ("w8a8", "w4a8"):
            pretended(reader, reader / "runs" / name / f"{quantizer}-{bits}", quantizer, family, bits)


def run_report(words: list[str], reader: Path) -> None:
    """Of a study of its name; tests/test_shipped.py makes the page of the repository's own."""
    if "--runs-dir" in words:
        report._parser().parse_args(words)
    else:
        pretended_study(reader, words[0])
        assert report.main(words) == 0


def pretended(reader: Path, folder: Path, quantizer: str, family: str, bits: str) -> None:
    """The run of the reader's folder, under the name of another."""
    if folder.exists():
        return
    shutil.copytree(next(reader.glob("runs/default/q_dit-w4a8-*")), folder, copy_function=os.link)
    record = json.loads((folder / "result.json").read_text())
    record["config"] |= {"quantizer.name": quantizer, "quantizer.family": family, "bits.name": bits}
    record["config"] |= {"bits.weight": int(bits[1]), "bits.activation": int(bits[3])}
    record["run_id"] = f"{crc32(folder.name.encode()):08x}"
    record["metrics"]["sqnr"] |= {"value": 25.0}  # more than what commands ask for
    record["metrics"].setdefault("fid_lite0", record["metrics"]["sqnr"] | {"higher_is_better": False})
    (folder / "result.json").unlink()  # a link
    RunDir(folder).save_result(record | {"study": folder.parent.name, "name": folder.name})


def run_export(words: list[str], reader: Path, monkeypatch) -> None:
    """Of the run that the page says; the list of one recipe, for tests/api/test_exports.py has several."""
    monkeypatch.setattr(exports, "recipes", lambda: ["rtn"])
    if "<run>" in " ".join(words):
        page = command_lines(ROOT / "docs" / "use_what_you_quantized.md")
        made = next(shlex.split(line, comments=True)[1:] for line in page if line.startswith("qdit "))
        qdit([*made, "eval=smoke", "num_samples=2", "batch_size=2", "sampler.steps=2", "device=cpu"], monkeypatch)
        [folder] = (reader / "runs" / "leaving").glob("rtn-*")
        words = [word.replace("<run>", folder.name) for word in words]
        assert export.main(words) == 0
        assert (reader / words[1] / "model_index.json").is_file()
        return
    assert export.main(words) == 0


def run_make(targets: list[str]) -> None:
    known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert set(targets) <= set(known)


def check_installation(arguments: list[str]) -> None:
    """Of this checkout, or of an extra that it has; nothing is installed."""
    if arguments != ["install", "-e", "."]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert arguments[0] == "install"
        assert set(arguments[1:]) <= {f"qdit[{extra}]" for extra in project["optional-dependencies"]}


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, reader, monkeypatch):
    words = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", words[0]):
        variable, _, value = words.pop(0).partition("=")
        assert variable == "PYTHONPATH"
        monkeypatch.syspath_prepend(reader / value)
    program, arguments = words[0], words[1:]
    if program == "qdit":
        run_qdit(arguments, reader, monkeypatch)
    elif program == "qdit-table":
        run_table(arguments, reader)
    elif program == "qdit-design":  # with one recipe of those that are shipped: tests/cli/test_design.py has all
        shipped = {path.stem for path in (CONF / "quantizer").glob("*.yaml")}
        monkeypatch.setattr(design, "NO_METHOD", shipped - {"q_dit"})
        assert design.main(arguments) == 0
    elif program == "qdit-report":
        run_report(arguments, reader)
    elif program in ("qdit-ls", "qdit-pick"):
        if "--study" in arguments:
            pretended_study(reader, arguments[arguments.index("--study") + 1])
        assert {"qdit-ls": ls, "qdit-pick": pick}[program].main(arguments) == 0
    elif program == "qdit-refs":
        refs._parser().parse_args(arguments)
    elif program == "qdit-score":
        score._parser().parse_args(arguments)
    elif program == "qdit-vbench":
        vbench._parser().parse_args(arguments)
    elif program == "qdit-export":
        run_export(arguments, reader, monkeypatch)
    elif program == "make":
        run_make(arguments)
    elif program == "pip":
        check_installation(arguments)
    else:
        pytest.fail(f"no test knows what {program!r} should do")


@pytest.mark.slow
def test_the_documents_script_runs_as_written(tmp_path, monkeypatch):
    blocks = scripts(ROOT / "docs" / "python.md")
    monkeypatch.chdir(tmp_path)
    first, second = {}, {}
    exec(blocks[0], first)
    exec(blocks[1], second)
    images = [
        each["pipe"]([3], num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
        for each in (first, second)
    ]
    assert (images[0] == images[1]).all()


@pytest.mark.slow
def test_the_documents_lines_for_prompts_run_as_written(reader):
    from diffusers import PixArtSigmaPipeline

    import qdit as api

    blocks = scripts(ROOT / "docs" / "python.md")
    exec(blocks[2], {"qdit": api, "pipe": PixArtSigmaPipeline.from_pretrained("my_pixart")})


def test_the_readmes_script_is_the_documents_in_short():
    [short] = scripts(ROOT / "README.md")
    whole = scripts(ROOT / "docs" / "python.md")[0].splitlines()
    assert [
        line.partition("  #")[0]
        for line in short.splitlines()
        if line.partition("  #")[0] not in [other.partition("  #")[0] for other in whole]
    ] == []


def test_every_document_shows_how():
    assert [d.name for d in DOCUMENTS if not command_lines(d) and not scripts(d)] == []


# --- What the documents say


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere_and_classes_are_where_they_are_said_to_be(document):
    for text, target in re.findall(r"\[([^]]+)\]\(([^)]+)\)", document.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        where = (document.parent / path).resolve() if path else document
        assert where.exists(), target
        if where.suffix == ".py" and re.fullmatch(r"`\w+`", text):
            assert f"class {text.strip('`')}" in where.read_text(encoding="utf-8"), f"{text} in {target}"
        if anchor:
            heads = re.findall(r"^#+ (.+)$", where.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
            assert anchor in slugs, f"{anchor} is none of {slugs}"


# --- One's own method and model, for real


@pytest.mark.slow
def test_the_documents_method_works_with_an_installed_qdit(workshop, tiny_pipeline, tmp_path):
    line = next(line for line in command_lines(ROOT / "docs" / "add_a_method.md") if "octav" in line)
    shutil.copytree(workshop / "mine", tmp_path / "mine")
    words = shlex.split(line, comments=True)
    program = Path(sys.executable).with_name("qdit")  # the console script: it does not look for modules here
    words = [str(program) if word == "qdit" else word for word in words] + [*TINY, f"model.path={tiny_pipeline}"]
    script = shlex.join(words).replace("'PYTHONPATH=mine'", "PYTHONPATH=mine")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/octav/rtn-*/result.json")]
    found = {record["config"]["activation.range._target_"]: record["metrics"]["sqnr"]["value"] for record in records}
    assert set(found) == {"qdit.quant.ranges.MinMax", "qdit.quant.ranges.MSE", "octav.Octav"}
    assert len(set(found.values())) == 3
    assert "octav.Octav" in done.stdout  # a row of the table


def own(module: str, workshop: Path, monkeypatch):
    monkeypatch.syspath_prepend(workshop / "mine")
    return import_module(module)


def test_the_documents_range_has_less_error_than_its_rivals(workshop, monkeypatch):
    octav = own("octav", workshop, monkeypatch).Octav()
    torch.manual_seed(0)
    rows = torch.distributions.StudentT(4.0).sample((8, 4096))
    spec = QuantSpec(bits=4, granularity="row", grid="symmetric")
    errors = {}
    for name, rule in {"octav": octav, "minmax": MinMax()}.items():
        grid = affine(*rule(rows, spec), spec)
        errors[name] = (grid.round(rows) - rows).square().mean(-1)
    assert (errors["octav"] < errors["minmax"]).all()
    assert errors["octav"].mean() < 0.5 * errors["minmax"].mean()
    lo, hi = octav(rows, spec)
    for factor in (0.5, 2.0):  # near a minimum
        grid = affine(lo * factor, hi * factor, spec)
        assert (errors["octav"] < (grid.round(rows) - rows).square().mean(-1)).all()
    assert octav(torch.zeros(2, 8), spec)[1].tolist() == [[0.0], [0.0]]


def test_the_documents_rounding_balances_rows(workshop, monkeypatch):
    squant = own("squant", workshop, monkeypatch)
    weight, spec = torch.randn(16, 128, generator=torch.Generator().manual_seed(0)), QuantSpec(bits=4)
    grid = affine(weight.amin(1, True), weight.amax(1, True), spec)
    rounded = squant.balanced(weight, grid, spec)
    error = (weight - rounded.weight) / grid.scale
    assert error.sum(1).abs().max() <= 0.5 + 1e-3
    assert error.abs().max() < 1
    nearest = (weight - fake_quantize(weight, spec)) / grid.scale
    assert nearest.sum(1).abs().max() > 1
    assert (rounded.codes.float() - grid.encode(weight)).abs().max() == 1


def test_the_documents_rounding_runs(reader, tiny_pipeline, monkeypatch, no_charts):
    line = next(line for line in command_lines(ROOT / "docs" / "add_a_method.md") if "squant" in line)
    monkeypatch.syspath_prepend(reader / "mine")
    words = shlex.split(line, comments=True)
    qdit([*words[words.index("qdit") + 1 :], *TINY, f"model.path={tiny_pipeline}"], monkeypatch)
    assert len(list(reader.glob("runs/squant/*/result.json"))) == 3  # full precision, the first and the last cell


def test_ones_own_model_runs(reader, monkeypatch, no_charts):
    commands = command_lines(ROOT / "docs" / "your_model.md")
    line = next(line for line in commands if "my_dit" in line and "eval=paired" in line)
    small = [*TINY[4:9], "device=cpu", "study=own_flowers"]
    small = [word for word in small if not word.startswith("eval")]
    qdit([*shlex.split(line, comments=True)[1:], *small], monkeypatch)
    record = json.loads(next(reader.glob("runs/own_flowers/q_dit-*/result.json")).read_text())
    assert record["config"]["dataset.name"] == "flowers"
    assert record["metrics"]["sqnr"]["n"] == 4


def test_the_documents_model_runs(reader, monkeypatch, no_charts):
    line = next(line for line in command_lines(ROOT / "docs" / "add_a_model.md") if "quarot_rtn" in line)
    monkeypatch.syspath_prepend(reader / "mine")
    words = shlex.split(line, comments=True)
    small = ["num_samples=2", "batch_size=2", "sampler.steps=2", "calibration.num_samples=4", "device=cpu"]
    qdit([*words[words.index("qdit") + 1 :], *small, "study=real", "model.text_dtype=float32"], monkeypatch)
    found = [json.loads(file.read_text()) for file in reader.glob("runs/real/*/result.json")]
    assert len(found) == 3  # full precision, and two recipes
    assert all(each["metrics"]["sqnr"]["value"] > 5 for each in found if "fp" not in each["name"])


@pytest.mark.parametrize("script", ["check.py", "quantize_hunyuan.py"])
def test_the_documents_scripts_run(script, reader, monkeypatch):
    monkeypatch.syspath_prepend(reader / "mine")
    monkeypatch.setattr("qdit.model.adapter.FAMILIES", dict(FAMILIES))
    exec((reader / "mine" / script).read_text(), {})


def test_a_family_without_the_role_of_a_layer_is_refused_as_the_document_says(reader, monkeypatch):
    hunyuan = own("hunyuan_dit", reader, monkeypatch)
    monkeypatch.setattr(hunyuan.LoadedHunyuan, "roles", ())
    text = (ROOT / "docs" / "add_a_model.md").read_text(encoding="utf-8")
    [said] = re.findall(r"^```text\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)
    option = hunyuan.HunyuanDiT(name="x", path="my_hunyuan", text_length=256)
    with pytest.raises(UserError, match=re.escape(said)):
        option.load("cpu", torch.float32)
    monkeypatch.setattr(hunyuan.LoadedHunyuan, "roles", (("skip_linear", "skip"),))
    with pytest.raises(UserError, match="the adapter's roles name skip; there are qkv, attn_out"):
        option.load("cpu", torch.float32)


def test_a_missing_class_is_one_message(reader, tmp_path):
    (tmp_path / "weight" / "range").mkdir(parents=True)
    (tmp_path / "weight" / "range" / "lost.yaml").write_text("_target_: nowhere.Lost\n")
    with pytest.raises(UserError, match="nowhere"), pytest.MonkeyPatch.context() as patch:
        compose_and_check(tmp_path, patch)


def compose_and_check(folder: Path, patch) -> None:
    from hydra import compose, initialize_config_dir

    from qdit.config import check, resolved

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        check(resolved(compose("config", [f"hydra.searchpath=[file://{folder}]", "weight/range=lost"])))
