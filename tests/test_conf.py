"""Every option of conf/ composes, names real targets with fitting arguments, and its name tells the truth."""

import pytest
from helpers.configs import config as composed
from omegaconf import OmegaConf

from qdit.assets import CONF
from qdit.config import check, type_problems
from qdit.errors import UserError
from qdit.keys import COMPONENTS, flatten
from qdit.quant.named import label
from qdit.runs.identity import science
from qdit.runs.parts import build_recipe
from qdit.storage.digest import digest
from qdit.tables.families import FAMILIES

OVERLAYS = ("hydra", "local")
JUDGED = {"model=pipeline", "sampler=own_call", "quantizer=external"}
"""Options that are for each other alone: they say how pipelines are called, and have no recipe."""
NO_RECIPES = {"fp", "load", "external"}
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF).as_posix()}={path.stem}"
    for path in CONF.rglob("*.yaml")
    if path.parent != CONF and path.relative_to(CONF).parts[0] not in OVERLAYS
)


def overrides_of(option: str) -> list[str]:
    """The command line that chooses an option: those inside a group need the option that has them."""
    group, name = option.split("=")
    hosts = {f"activation/{part}": ["activation=tensor"] for part in ("range", "time")}  # dynamic options have none
    hosts |= {"attention/probabilities": ["attention=multi_region"], "transform/range": ["transform=reparam"]}
    hosts |= {"transform/statistic": ["transform=salience"], "attention/range": ["attention=uniform"]}
    hosts |= {"transform/alpha": ["transform=smooth"]}
    hosts |= {"weight/range/target": ["weight/range=hessian"]}
    hosts |= {"activation/range/target": ["activation=tensor", "activation/range=hessian"]}
    hosts |= {"attention/range/target": ["attention=multi_region", "attention/range=hessian"]}
    hosts |= {f"search/{part}": ["search=evolution"] for part in ("budget", "objective")}
    hosts |= {f"search/{part}": ["search=mixed_precision"] for part in ("bit_budget", "allocator", "split", "groups")}
    if group.startswith("experiment/"):
        return [f"experiment={group.removeprefix('experiment/')}/{name}"]
    if group == "experiment":  # files of captions are the user's
        wanted = OmegaConf.missing_keys(OmegaConf.load(CONF / group / f"{name}.yaml"))
        return [option, *(f"{key}=plain" for key in sorted(wanted))]
    if option == "quantizer=load":
        return [option, "quantizer.path=run"]
    if option == "model=pipeline":
        return [option, "quantizer=external", "model.path=A", "model.against=B"]
    if option == "search=fixed":
        return [option, "search.policy=policy.yaml"]
    return [*hosts.get(group, []), f"eval=[{name}]" if group == "eval" else option]


def packed(options: list[str]) -> list[list[str]]:
    """Command lines that choose many options at once, as a composition takes long: each group once, a recipe alone."""
    rows: list[dict[str, str]] = []
    parts = {*COMPONENTS, "bits", "quantizer"}
    for option in options:
        words = dict(word.split("=") for word in overrides_of(option))
        own = parts & {key.split("/")[0] for key in words}
        for row in rows:
            others = parts & {key.split("/")[0] for key in row}
            recipe = "quantizer" in own | others and own and others
            if not recipe and all(row.get(key, value) == value for key, value in words.items()):
                row |= words
                break
        else:
            rows.append(words)
    return [[f"{key}={value}" for key, value in row.items()] for row in rows]


ROWS = packed([option for option in OPTIONS if not option.startswith(("grid", "experiment"))])  # which have tests below


@pytest.mark.parametrize("words", ROWS)
def test_options_compose_resolve_and_fit_their_targets(words):
    config = composed(*words)
    for key, node in config.items():
        if isinstance(node, dict):
            assert type_problems(node, key) == []


@pytest.mark.parametrize("name", sorted({path.stem for path in (CONF / "quantizer").glob("*.yaml")} - NO_RECIPES))
def test_a_recipe_says_its_family_and_its_own_name(name):
    words = next(row for row in ROWS if f"quantizer={name}" in row)
    quantizer = composed(*words)["quantizer"]
    assert quantizer["name"] == name
    assert quantizer["family"] in FAMILIES


EXPERIMENTS = [option for option in OPTIONS if option.startswith("experiment")]


def first_of_folders(options: list[str]) -> list:
    """The steps of a study differ in a word or two: all but the first are marked slow."""
    heads = [option.split("=")[0] for option in options]
    alone = [head == "experiment" or head not in heads[:n] for n, head in enumerate(heads)]
    return [pytest.param(each, marks=() if a else pytest.mark.slow) for each, a in zip(options, alone, strict=True)]


@pytest.mark.parametrize("option", first_of_folders(EXPERIMENTS))
def test_an_experiment_is_checked_whole_and_takes_the_policy_that_it_found(option):
    config = composed(*overrides_of(option))
    check(config)
    build_recipe(config)
    if "_target_" in config["search"]:
        check(composed(*overrides_of(option), "search=fixed", "search.policy=policy.yaml"))


GRIDS = sorted((CONF / "grid").glob("*.yaml"))


def covering(params: dict[str, str]) -> list[list[str]]:
    """Rows of a grid with every choice of it: the first, all that differ from it in one key, and the last."""
    choices = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    first, last = [values[0] for values in choices], [values[-1] for values in choices]
    apart = [[*first[:n], value, *first[n + 1 :]] for n, values in enumerate(choices) for value in values[1:]]
    return [list(row) for row in dict.fromkeys(map(tuple, [first, *apart, last]))]


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.stem == "vidit_q_ablation" else pytest.mark.slow) for p in GRIDS],
    ids=lambda p: p.stem,
)
def test_every_choice_of_a_grid_is_a_run_of_its_own(path):
    node = OmegaConf.to_container(OmegaConf.load(path))
    cells = covering(node["hydra"]["sweeper"]["params"])
    configs = [composed(f"grid={path.stem}", *cell) for cell in cells]
    assert all(config["study"] == path.stem.removesuffix("_seeds") for config in configs)
    seeds = [(config["seed"], config["calibration"]["seed"]) for config in configs]
    assert len({(config["name"], *seed) for config, seed in zip(configs, seeds, strict=True)}) == len(configs)
    assert len({digest(science(config)) for config in configs}) == len(configs)
    for config in configs:
        check(config)


def test_defaults_pass_the_check_and_science_is_plain():
    config = composed()
    check(config)
    assert all(not isinstance(v, dict) or v == {} for v in flatten(config).values())


def chosen(group: str) -> dict[str, dict]:
    """A group's node by the option that was chosen, in the compositions of ROWS."""
    rows = {word: row for row in ROWS for word in row}
    options = [path.stem for path in sorted((CONF / group).glob("*.yaml")) if f"{group}={path.stem}" not in JUDGED]
    return {option: composed(*rows[f"{group}={option}"])[group] for option in options}


def test_the_name_of_bits_is_its_values():
    for option, bits in chosen("bits").items():
        assert bits["name"] == option == label(bits)


@pytest.mark.parametrize(
    "group", ["weight", "activation", "calibration", "scope", "sampler", "bits", "dataset", "model"]
)
def test_options_of_a_group_have_the_same_keys(group):
    own = {
        "range",
        "time",
        "mean",
        "deviation",
        "dimensions",
        "shifts",
        "shifted",
        "clusters",
        "clustered",
        "radius",
        "variety",
        "probes",
    }  # of one option each
    own |= {"size", "frames", "height", "width"}  # of families whose configs do not say them
    own |= {"boundary_ratio", "guidance_2"}  # of two networks
    own |= {"mask_negative"}  # of Latte
    keys: dict[str, set[frozenset[str]]] = {}
    for node in chosen(group).values():
        reads = "prompts" if {"text_length", "negative"} & node.keys() else "classes"  # a model, or its data
        keys.setdefault(reads, set()).add(frozenset(node.keys() - own))
    assert [len(found) for found in keys.values()] == [1] * len(keys)


def test_a_command_line_choice_beats_the_recipe():
    config = composed("quantizer=rtn", "weight=group", "rounding=nearest")
    assert config["weight"]["granularity"] == "group"
    assert config["quantizer"]["name"] == "rtn"


def test_a_class_that_cannot_be_imported_is_reported_once(caplog):
    """Hydra logs it, too, before it raises."""
    with pytest.raises(UserError, match=r"^weight\._target_=qdit\.weight\.Nothing cannot be imported: .*") as caught:
        check(composed("weight._target_=qdit.weight.Nothing"))
    assert len(str(caught.value).splitlines()) == 1
    assert not caplog.records


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("num_samples=0", "num_samples=0; allowed: a whole number from 1 to 10,000,000"),
        ("num_samples=1000000000000", "num_samples=1000000000000; allowed: a whole number from 1 to 10,000,000"),
        (
            "calibration.num_samples=1000000000000",
            "calibration.num_samples=1000000000000; allowed",
        ),
        ("batch_size=many", "batch_size='many'"),
        ("sampler.steps=many", "sampler.steps='many'; allowed: a whole number"),
        ("bits.weight=9", "bits.weight=9; allowed: a whole number (2 to 8, or 16 for full precision)"),
        ("bits.weight=eight", "bits.weight='eight'"),
        ("bits.name=w2a2", "bits.name='w2a2' but the values say 'w4a8'"),
        ("dtype=float8", "dtype='float8'; allowed: float32"),
        ("execution=int4", "execution='int4'; allowed: auto, int8, fp8, simulated, openvino"),
        ("execution=openvino compile=true", "one graph already; use compile=false"),
        ("weight.grid=diagonal", "allowed: asymmetric, asymmetric_free"),
        ("scope.roles=qkv", "scope.roles='qkv'; allowed: a list of text"),
        ("dry=perhaps", "dry='perhaps'; allowed: true or false"),
        ("+weight.colour=red", "weight.colour is not an argument of WeightGrid"),
        ("weight._target_=qdit.weight.Nothing", "cannot be imported"),
        ("rounding=gptq rounding.damping=-1", "rounding.damping=-1; allowed: a number of at least 0 (0.01 is usual)"),
        ("transform=smooth transform.alpha=2", "transform.alpha=2; allowed: a number from 0 to 1 or Alpha"),
        ("seed=1.5", "seed=1.5; allowed: a whole number"),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(override, message):
    with pytest.raises(UserError, match=".*") as caught:
        check(composed(*override.split()))
    assert message in str(caught.value)


def test_all_problems_come_in_one_message():
    with pytest.raises(UserError) as caught:
        check(composed("num_samples=0", "bits.weight=9", "dtype=float8"))
    assert str(caught.value).startswith("3 problems in this config:\n  num_samples=0")


def test_mandatory_values_are_asked_for():
    with pytest.raises(UserError, match="no value for model.path; give one, as in model.path=VALUE"):
        composed("model.path=???")
