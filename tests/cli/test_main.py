"""The command line as a user sees it: speed of --help, exit codes, no traceback, multirun with a failing cell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from qdit.assets import CONF
from qdit.cli import table
from qdit.cli.main import main
from qdit.cli.words import as_text

RECIPES = {path.stem for path in (CONF / "quantizer").glob("*.yaml")}
TINY = [
    "quantizer=rtn",
    *("dataset=imagenet256", "dataset.num_classes=10", "dataset.image_size=16", "dataset.reference=emoji"),
    *("sampler.steps=2", "num_samples=4", "batch_size=4", "eval=smoke", "device=cpu"),
]


def process(*words, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "qdit.cli.main", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def qdit(monkeypatch, capfd):
    """The command in this process, which has imported what it needs: its exit code and what it prints."""

    def run(*words, cwd: Path) -> subprocess.CompletedProcess:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["qdit", *words])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return subprocess.CompletedProcess(words, int(code), *capfd.readouterr())

    return run


LIGHT = [
    *("qdit", "qdit.storage", "qdit.tables", "qdit.runs.identity", "qdit.cli.command", "qdit.cli.sweep"),
    *("qdit.cli.table", "qdit.cli.refs", "qdit.cli.design"),
]
"""What starts at once."""


def test_what_starts_at_once_imports_no_torch():
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
        "from qdit.cli import design, refs, table\n"
        f"design.NO_METHOD = {sorted(RECIPES - {'q_dit'})}\n"
        "assert '`q_dit`' in design.table()\n"
        "assert table.main(['--runs-dir', 'nowhere']) == 2\n"
        "try: refs.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tables_are_read_without_hydra():
    code = (
        "import sys, qdit.cli.table, qdit.cli.ls, qdit.runs.versions; assert not {'hydra', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_as_a_process(tmp_path):
    result = process("study=a/b", cwd=tmp_path)  # which is seen before torch is imported
    assert result.returncode == 2
    assert result.stderr.startswith("study='a/b'; a name of one folder")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_names_that_look_like_numbers_stay_text():
    for word, kept in (
        ("study=2026_11_28", "study='2026_11_28'"),
        ("study=1e3,b,true", "study='1e3',b,'true'"),
        ("+quantizer.name=007", "+quantizer.name='007'"),
        ("study='1','2'", "study='1','2'"),
        ("study=choice(1,2)", "study=choice(1,2)"),
        ("study=v1.2", "study=v1.2"),
        ("seed=1_000", "seed=1_000"),
    ):
        assert as_text(word) == kept


def test_a_sweep_that_is_wrong_in_every_cell_says_so_once_before_the_first(tmp_path, qdit):
    result = qdit("-m", "quantizer=rtn,quarot", "bits=w4a8,w4a4", "num_samples=0", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "num_samples=0; allowed: a whole number from 1 to 10,000,000\n"
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("study", ["../../x", "a,../../x"])
def test_a_study_outside_is_refused_before_anything_is_written(study, tmp_path, qdit):
    inside = tmp_path / "one" / "two"
    inside.mkdir(parents=True)
    result = qdit("-m", f"study={study}", "seed=0,1", cwd=inside)
    assert result.returncode == 2
    assert "study='../../x'; a name of one folder" in result.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["one", "two"]


def test_help_lists_groups(tmp_path, qdit):
    result = qdit("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "weight/range: hessian, minmax, mse, pearson, percentile" in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["num_samples=0"], 2, "num_samples=0; allowed: a whole number from 1 to 10,000,000"),
        (["model.path=missing_folder"], 2, "missing_folder"),
        (["bits=w5a5"], 2, "bits=w5a5: there is no such option (did you mean "),
        (["-m", "bits=w4a8,w5a5"], 2, "bits=w5a5: there is no such option (did you mean "),
        (["sampler.stepz=3"], 2, "did you mean sampler.steps"),
    ],
)
def test_mistakes_have_one_message_and_no_traceback(words, code, message, tmp_path, qdit):
    result = qdit(*words, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "HYDRA_FULL_ERROR" not in result.stderr
    assert not list(tmp_path.rglob("*.*"))


def test_unwritable_runs_dir(tmp_path, tiny_pipeline, qdit):
    (tmp_path / "runs").write_text("a file stands where the folder should be")
    result = qdit(*TINY, f"model.path={tiny_pipeline}", cwd=tmp_path)
    assert result.returncode == 2
    assert "cannot write runs" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_failing_cell_is_shown_and_the_others_go_on(tmp_path, tiny_pipeline, qdit, capfd):
    words = ["-m", *TINY, f"model.path={tiny_pipeline}", "study=grid", "weight=group", "weight.group_size=24,16"]
    result = qdit(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert "group_size=24 does not divide" in result.stdout
    assert result.stdout.count("| rtn") == 2
    assert table.main(["--study", "grid", "--format", "csv"]) == 0
    assert "sqnr_stderr" in capfd.readouterr().out.splitlines()[0]


def test_a_dry_sweep_records_nothing_and_tells_of_its_failures(tmp_path, tiny_pipeline, qdit):
    words = ["-m", *TINY, f"model.path={tiny_pipeline}", "study=grid", "weight=group", "weight.group_size=24,16"]
    result = qdit(*words, "dry=true", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "group_size=24 does not divide" in result.stderr
    assert "| rtn" not in result.stdout
    assert [path.name for path in (tmp_path / "runs").rglob("*")] == ["grid", "multirun.yaml"]  # Hydra's, of the words


def test_the_studies_of_a_sweep_may_be_made_of_other_words(tmp_path, tiny_pipeline, qdit):
    words = ["-m", *TINY, f"model.path={tiny_pipeline}", "weight=group", "weight.group_size=24,40"]
    result = qdit(*words, "study=size_${weight.group_size}", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert "no readable" not in result.stderr
    assert result.stdout.count("| rtn") == 2
    records = (tmp_path / "runs").glob("*/*/result.json")
    assert sorted(path.parents[1].name for path in records) == ["size_24", "size_40"]


def test_the_studies_of_a_sweep_may_come_with_its_experiments(tmp_path, qdit, monkeypatch):
    from qdit.cli import sweep

    monkeypatch.setattr(sweep, "begin", lambda count: sys.exit(5))
    watched = []
    monkeypatch.setattr(sweep, "_refuse_common", lambda config, cells: watched.extend(sweep._studies(config, cells)))
    assert qdit("-m", "experiment=smoke,vidit_q", cwd=tmp_path).returncode == 5
    assert watched == ["smoke", "vidit_q"]


def test_a_key_that_a_cell_does_not_have_is_told_once_before_the_first(tmp_path, qdit):
    result = qdit("-m", "quantizer=rtn,awq", "transform.nope=1,2", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("there is no key transform.nope") == 1
    assert "Warning" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_flags_may_stand_between_overrides(qdit, tmp_path):
    words = [f"runs_dir={tmp_path}", "-m", "bits=w4a4,w8a8", "quantizer=rtn", "dry=true", "study=z"]
    found = qdit(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("rtn-w") >= 2


def test_cells_that_are_one_run_are_refused_before_the_first(qdit, tmp_path):
    words = ["-m", f"runs_dir={tmp_path}", "execution=int8,simulated", "quantizer=rtn", "bits=w8a8", "dry=true"]
    found = qdit(*words, cwd=tmp_path)
    assert found.returncode == 2
    assert "execution=int8 and execution=simulated are one run, whose record keeps one of them" in found.stderr
    assert qdit(*words, "study=mine_${execution}", cwd=tmp_path).returncode == 0
