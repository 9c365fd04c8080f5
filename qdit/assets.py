"""Where the files that are shipped with qdit are, and where reference statistics are found. Imports no torch."""

from pathlib import Path

from qdit.storage.names import component

_here = Path(__file__).parent
CONF = next(p for p in (_here / "conf", _here.parent / "conf") if p.is_dir())
"""The configs: beside the code where it is installed, else in the source tree."""
ASSETS = Path(__file__).resolve().parent / "assets"
EMBEDDED = Path(__file__).parent / "assets" / "emoji" / "model"
"""The embedded DiT, which is meant where a path is null."""
MODELS = ASSETS / "models"
"""The other embedded pipelines, each in a folder of its name."""
PROMPTS = ASSETS / "prompts"
"""Lists of captions that come with qdit."""
PREFIX = "embedded:"


def folder_of(path: str | None) -> Path:
    """The folder that a model's path means: a shipped one (null, the DiT, or `embedded:NAME`), else the user's own.

    Raises:
        UserError: the name is none of a folder.
    """
    if path is None:
        return EMBEDDED
    name = path.removeprefix(PREFIX)
    return Path(path).expanduser() if name == path else MODELS / component(name, "model.path")


def captions_file(name: str) -> Path:
    """The file that the name of a list of captions means: one that comes with qdit, else the user's own."""
    plain = "/" not in name and "." not in name
    return shipped if plain and (shipped := PROMPTS / f"{name}.txt").is_file() else Path(name).expanduser()


def places(dataset: str, extractor: str, cache_dir: Path) -> list[Path]:
    """Where the reference of a data set may lie, the first choice first: the shipped file, then the cache."""
    return [_asset(dataset, extractor), cached(dataset, extractor, cache_dir)]


def shipped(dataset: str, extractor: str) -> bool:
    """Whether the reference of a data set comes with qdit."""
    return _asset(dataset, extractor).is_file()


def _asset(dataset: str, extractor: str) -> Path:
    return ASSETS / component(dataset, "dataset.reference") / component(f"reference-{extractor}.safetensors", "a file")


def cached(dataset: str, extractor: str, cache_dir: Path) -> Path:
    """Where `qdit-refs` puts a reference."""
    return cache_dir / "references" / component(f"{dataset}-{extractor}.safetensors", "the name of a reference")
