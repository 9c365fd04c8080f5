"""Launchers and sweepers of Hydra that are packages of their own: what to install for one that is not there."""

from collections.abc import Sequence

from qdit.errors import did_you_mean

PLUGINS = {
    "launcher/joblib": "qdit[joblib]",
    **dict.fromkeys(("launcher/submitit_local", "launcher/submitit_slurm"), "qdit[slurm]"),
    "sweeper/optuna": "qdit[optuna]",
    **dict.fromkeys(("launcher/ray", "launcher/ray_aws"), "hydra-ray-launcher"),
    "launcher/rq": "hydra-rq-launcher",
    "sweeper/ax": "hydra-ax-sweeper",
    "sweeper/nevergrad": "hydra-nevergrad-sweeper",
}
"""What pip installs for an option of the groups `hydra/launcher` and `hydra/sweeper`."""


def no_option(path: str, options: Sequence[str]) -> str:
    """What to say of an option of Hydra's own groups that is not there.

    Args:
        path: of the option: `hydra/launcher/joblib`.
        options: of its group that are there.

    >>> no_option("hydra/sweeper/optuna", ["basic"])
    "hydra/sweeper=optuna: this sweeper is a package of its own, which is not installed: pip install 'qdit[optuna]'"
    """
    group, _, option = path.rpartition("/")
    kind = group.removeprefix("hydra/")
    if package := PLUGINS.get(f"{kind}/{option}"):
        return f"{group}={option}: this {kind} is a package of its own, which is not installed: pip install '{package}'"
    known = [*options, *(name for each, name in (key.split("/") for key in PLUGINS) if each == kind)]
    return f"{group}={option}: there is no such option{did_you_mean(option, known)}; {group} has {', '.join(options)}"


def no_key(word: str, key: str) -> str | None:
    """What to say of a key of a launcher or sweeper that is not the chosen one's; None of any other key.

    >>> no_key("hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs").partition(";")[0]
    'hydra.launcher.n_jobs=2: the launcher that is chosen has no n_jobs'
    """
    hydra, kind, *inner = [*key.replace("/", ".").split("."), "", ""]
    if hydra != "hydra" or kind not in ("launcher", "sweeper"):
        return None
    named = ".".join(filter(None, inner))
    having = [
        f"{name.replace('/', '=')} ({package})"
        for name, package in PLUGINS.items()
        if name.startswith(kind) and package.startswith("qdit[")
    ]
    return (
        f"{word}: the {kind} that is chosen has no {named}; choose the one that has it, such as "
        f"{' or '.join(f'hydra/{each}' for each in having)}"
    )
