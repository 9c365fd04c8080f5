"""What Hydra composes is the same as without `qdit.cli.quick_hydra`."""

import os

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.cli.quick_hydra import parsed_once, quicken


def composed(folder, *words):
    quicken()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", list(words), return_hydra_config=True)


def slowly(folder, *words):
    quicken()
    source = SourcesRegistry.instance().resolve("file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "load_config", source.load_config.__wrapped__)
        patch.delattr(SourcesRegistry.instance().resolve("structured"), "__deepcopy__")
        patch.setattr(defaults_list, "_create_interpolation_map", defaults_list._create_interpolation_map.__wrapped__)
        return composed(folder, *words)


@pytest.fixture
def folder(tmp_path):
    """Two groups, and a third whose option has the name of their choices."""
    texts = {
        "config": "defaults: [data: tiny, model: a, '${data}_${model}', _self_]\nsize: 1\n",
        **{"data/tiny": "name: tiny\n", "model/a": "name: a\nlayers: [1, 2]\n", "model/b": "name: b\nlayers: []\n"},
        **{"tiny_a": "steps: 3\n", "tiny_b": "steps: 4\n"},
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


@pytest.mark.parametrize("words", ["grid=methods bits=w4a4", "quantizer=tq_dit weight=group +eval=fid ~search"])
def test_configs_are_those_of_hydra(words):
    assert OmegaConf.to_yaml(composed(CONF, *words.split())) == OmegaConf.to_yaml(slowly(CONF, *words.split()))


def test_defaults_are_named_by_choices(folder):
    assert OmegaConf.to_yaml(composed(folder)) == OmegaConf.to_yaml(slowly(folder))  # unresolved: `now` would differ
    assert [composed(folder, f"model={name}").steps for name in "ab"] == [3, 4]


def test_each_composition_is_ones_own(folder):
    first = composed(folder)
    first.model.layers.append(3)
    first.hydra.job.name = "mine"
    second = composed(folder)
    assert second.model.layers == [1, 2]
    assert second.hydra.job.name != "mine"


def test_what_packages_registered_is_shared_by_lookups_and_copied_by_who_reads_it():
    quicken()
    path = ConfigSearchPathImpl()
    path.append("schema", "structured://")
    repository = ConfigRepository(path)
    once, again = CachingConfigRepository(repository), CachingConfigRepository(repository)
    assert once.delegate is not repository
    assert once.get_schema_source() is not again.get_schema_source()
    assert once.get_schema_source().store is ConfigStore.instance()
    once.load_config("hydra/config").config.output_subdir = "mine"
    assert again.load_config("hydra/config").config.output_subdir == ".hydra"
    assert once.get_group_options("hydra/sweeper") == repository.get_group_options("hydra/sweeper") != []


def test_a_file_that_changed_is_read_again(folder):
    file = folder / "model" / "a.yaml"
    assert composed(folder).model.name == "a"
    file.write_text(file.read_text().replace("name: a", "name: x"))  # as long as before
    os.utime(file, ns=(1, 1))  # the clock of a file system may be coarse
    assert composed(folder).model.name == "x"
    file.unlink()
    with pytest.raises(ConfigCompositionException):
        composed(folder)


def test_a_file_is_parsed_once(folder):
    parsed = []
    once = parsed_once(lambda source, path: parsed.append(path))
    for name in ("a", "b", "a", "b"):
        once(FileConfigSource("main", f"file://{folder}"), f"model/{name}")
    assert parsed == ["model/a", "model/b"]
