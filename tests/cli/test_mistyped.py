"""What is said of groups, options and keys that are not there, on a folder of three groups; and that Hydra may tell."""

import re
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.types import RunMode

from qdit.api.compose import composed
from qdit.cli.mistyped import Mistyped, explain, unknown_options
from qdit.cli.plugins import PLUGINS, no_option
from qdit.errors import UserError

TEXTS = {
    "config": "defaults: [model: base, data: tiny, parts: [one], _self_]\nsize: 1\nsampler: {steps: 20, cfg: 2.0}\n",
    **{"data/tiny": "name: tiny\n", "data/large": "name: large\n", "data/inner/deep": "name: deep\n"},
    **{
        "model/base": "width: 8\nhead: {count: 2}\n",
        "model/deep": "depth: 2\n",
        "parts/one": "a: 1\n",
        "parts/two": "b: 2\n",
    },
}


@pytest.fixture
def words(tmp_path):
    """Composes words."""
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / f"{name}.yaml").write_text(text)

    def made(*given):
        explain()
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("config", list(given))

    return made


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["data=tinny"],
            r"data=tinny: there is no such option \(did you mean tiny\?\); data has large, tiny\. .*--config-dir",
        ),
        (["parts=[one,tow]"], r"parts=tow: there is no such option \(did you mean two"),
        (["data=inner/dep"], r"data/inner=dep: there is no such option \(did you mean deep"),
        (["modle=base"], r"modle=base: there is no key modle \(did you mean model"),
        (["sampler.step=3", "size=2"], r"did you mean sampler\.steps.*\); sampler has steps, cfg\."),
        (["steps=3"], r"did you mean sampler\.steps\?"),
        (["model.heads.count=3"], r"did you mean model\.head\.count"),
        (["hydra/launcher=ray"], r"pip install 'hydra-ray-launcher'$"),
        (
            ["hydra/launcher=bsic"],
            r"hydra/launcher=bsic: there is no such option \(did you mean basic\?\); .* has basic",
        ),
        (["hydra/launcher=submitit_slrm"], r"did you mean submitit_slurm"),
        (
            ["hydra.launcher.n_tasks=2"],
            r"the launcher that is chosen has no n_tasks; .* hydra/launcher=joblib \(qdit\[",
        ),
        (["hydra/sweeper/sampler=tpe"], r"the sweeper that is chosen has no sampler; .* hydra/sweeper=optuna \(qdit\["),
        (["data/inner=deep"], r"data/inner=deep: this config has no data/inner to replace; \+data/inner=deep adds it"),
    ],
)
def test_the_message_has_the_nearest_names(given, said, words):
    with pytest.raises(Mistyped, match=said):
        words(*given)


def test_what_is_right_composes_as_before(words):
    assert words("data=large", "+size2=3", "~model").data.name == "large"


def test_other_mistakes_are_hydras(words, monkeypatch):
    with pytest.raises(ConfigCompositionException, match="already at 'size'") as caught:
        words("+size=3")
    assert not isinstance(caught.value, Mistyped)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(MissingConfigException, match="Could not find 'data/tinny'"):
        words("data=tinny")


def test_the_options_of_a_sweep_are_looked_up_together(words, tmp_path):
    words()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        right = ["data=tiny", "parts=[one,two]", "data=inner/deep", "size=3", "+data@here=large", "~model", "data=null"]
        right += ["data=${model}", "data={a: 1}"]
        assert unknown_options(loader, right) == []
        found = unknown_options(loader, [*right, "data=x", "data=x", "parts=[two,three]"])
    assert [text.split(":")[0] for text in found] == ["data=x", "parts=three"]


def test_a_sweep_over_options_may_set_what_the_default_option_lacks(words, tmp_path):
    words()
    sweep = ["model=deep,base", "model.depth=3", "size=4", "+more=1"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", sweep, RunMode.MULTIRUN)
        assert list(config.hydra.overrides.task) == sweep
        cell = loader.load_sweep_config(config, ["model=deep", *sweep[1:]])
        assert (cell.model.depth, cell.size, cell.more) == (3, 4, 1)
        with pytest.raises(Mistyped, match=r"model\.depth=3: there is no key model\.depth"):
            loader.load_sweep_config(config, ["model=base", *sweep[1:]])
        with pytest.raises(Mistyped, match=r"szie=4: there is no key szie"):
            loader.load_configuration("config", ["size=1,2", "szie=4"], RunMode.MULTIRUN)


def test_the_python_api_says_the_same():
    with pytest.raises(UserError, match=r"^transform\.alpha=0\.3: .* these have: .*transform=smooth"):
        composed("quantizer=rtn", "transform.alpha=0.3")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("hydra/launcher/joblib", "hydra/launcher=joblib: this launcher .* not installed: pip install 'qdit.joblib.'"),
        ("hydra/launcher/submitit_slurm", "this launcher .*: pip install 'qdit.slurm.'"),
        ("hydra/sweeper/optuna", "hydra/sweeper=optuna: this sweeper .*: pip install 'qdit.optuna.'"),
    ],
)
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(path, said):
    assert re.search(f"{said}$", no_option(path, ["basic"]))


def test_the_extras_that_messages_name_are_there():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    named = {package[5:-1] for package in PLUGINS.values() if package.startswith("qdit[")}
    assert named <= set(project["optional-dependencies"])
