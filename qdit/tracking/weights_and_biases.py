"""Weights & Biases: a W&B run for each run, in the group of its study, and one for the study itself."""

import logging
import netrc
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from qdit.errors import UserError
from qdit.keys import flatten
from qdit.storage.names import fitting
from qdit.tracking.base import Values, note_reported, was_reported
from qdit.tracking.samples import samples_table

if TYPE_CHECKING:
    import wandb

log = logging.getLogger("qdit")
_ID = re.compile(
    r"[^/\\#?%:;,'\s][^/\\#?%:;,'\n]{,99}"
)  # what W&B takes as the beginning of an id of up to 128 characters
_PRIVATE = ("logger", "runs_dir", "cache_dir", "inception_weights")  # of this machine, not of the experiment
_CHARTS = ("layers", "timesteps", "groups", "bits", "frames")  # as `qdit.runs` draws them
_PICTURES = {"samples": "samples.png"} | {f"charts/{name}": f"{name}.png" for name in _CHARTS}
_ARTIFACTS = {"policy": "policy.yaml", "result": "result.json", "search": "search.jsonl"}


@dataclass(frozen=True, kw_only=True)
class WandbTracker:
    """Reports to a Weights & Biases project; the same config resumes the same W&B run.

    Args:
        project: the project's name.
        entity: user or team; None for the account's default.
        mode: "online" becomes "offline" where there is no key or no network; the variable WANDB_MODE overrules it.
        init_timeout: seconds to wait for the server before the run goes offline.
    """

    project: str = "qdit"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    init_timeout: int = 20

    def knows(self, run_dir: Path) -> bool:
        """Whether W&B has written its folder here, with all of the record."""
        return (run_dir / "wandb").is_dir() and was_reported(run_dir, "wandb")

    @contextmanager
    def open(self, config: dict[str, Any], study: str, name: str, run_id: str, run_dir: Path) -> Iterator["WandbRun"]:
        """Start the W&B run `<study>-<run_id>` in the group of its study; leaving the block finishes it."""
        run_dir.mkdir(parents=True, exist_ok=True)
        options = {
            **{"project": self.project, "entity": self.entity, "group": study, "job_type": "ptq", "name": name},
            **{"id": acceptable_id(study, run_id), "dir": str(run_dir)},
            "config": {key: value for key, value in config.items() if key not in _PRIVATE},
        }
        with self._start(options, run_dir) as run:
            tracker = WandbRun(run)
            yield tracker
        if tracker.finished is not None and run.settings.mode != "disabled":
            note_reported(run_dir, "wandb", tracker.finished)

    def compare(self, study: str, folder: Path, page: Callable[[], str]) -> None:
        """Make the W&B run `<study>-study`: all runs as a table, the page of `qdit-report`, records and configs."""
        options = {
            **{"project": self.project, "entity": self.entity, "group": study, "job_type": "study", "name": study},
            **{"id": acceptable_id(study, "study"), "dir": str(folder)},
        }
        with self._start(options, folder) as run:
            report_study(run, study, folder, page)

    def _start(self, options: dict[str, Any], run_dir: Path) -> "wandb.Run":
        import wandb
        from wandb.errors import Error

        mode, reason = chosen_mode(self.mode)
        if mode == "online" and not has_credentials():
            mode, reason = "offline", "no WANDB_API_KEY and no entry in netrc (`wandb login` makes one)"
        if mode == "online":
            try:
                with _stated(mode):
                    settings = wandb.Settings(quiet=True, console="off", init_timeout=self.init_timeout)
                    return wandb.init(**options, mode="online", resume="allow", settings=settings)
            except Error as error:
                mode, reason = "offline", (str(error) or type(error).__name__).splitlines()[0]
        if mode == "offline":
            log.info("wandb: offline (%s); upload later with: wandb sync %s/wandb/offline-run-*", reason, run_dir)
        with _stated(mode):
            settings = wandb.Settings(silent=True, console="off")
            return wandb.init(**options, mode="disabled" if mode == "disabled" else "offline", settings=settings)


@contextmanager
def _stated(mode: str) -> Iterator[None]:
    """Have WANDB_MODE say the mode while W&B reads it, which refuses an empty one, and capitals."""
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = mode
    try:
        yield
    finally:
        os.environ.pop("WANDB_MODE")
        os.environ.update({} if before is None else {"WANDB_MODE": before})


def chosen_mode(given: str) -> tuple[str, str]:
    """The mode, which is `given` or what WANDB_MODE says (empty: nothing), and why it is offline where it is.

    Another word than W&B's own is no reason to lose a report, so that it is recorded offline.
    """
    known = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
    wanted = os.environ.get("WANDB_MODE", "").strip()
    if (mode := known.get((wanted or given).lower())) is not None:
        return mode, "offline mode was chosen"
    return "offline", f"WANDB_MODE={wanted}: qdit knows online, offline, disabled"


class WandbRun:
    """The tracker of one open W&B run."""

    def __init__(self, run: "wandb.Run") -> None:
        self.run = run
        self.stages: set[str] = set()
        self.finished: Mapping[str, Any] | None = None

    def log(self, values: Values, step: int, stage: str) -> None:
        """Log `stage/<name>` curves over `stage/step`, each stage with its own axis."""
        values = values() if callable(values) else values
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self.run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def finish(self, record: Mapping[str, Any], run_dir: Path) -> None:
        """Put metrics and cost into the summary; log the layers' table, pictures, curves; save policy and result."""
        import wandb

        self.run.summary.update(summary(record))
        media: dict[str, Any] = {
            name: wandb.Image(str(run_dir / file)) for name, file in _PICTURES.items() if (run_dir / file).is_file()
        }
        layers = record.get("layers") or []
        if layers:
            columns = list(layers[0])
            media["layers"] = wandb.Table(columns=columns, data=[[layer[key] for key in columns] for layer in layers])
        for name, curve in (record.get("curves") or {}).items():
            axes = [curve.get("xlabel", "x"), curve.get("ylabel", "y")]
            points = wandb.Table(columns=axes, data=[list(point) for point in zip(curve["x"], curve["y"], strict=True)])
            media[f"curves/{name}"] = wandb.plot.line(points, *axes, title=name)
        if (clips := video(run_dir)) is not None:
            media["clips"] = clips
        if (table := samples_table(run_dir, record.get("metrics") or {})) is not None:
            media["samples_table"] = table
        if media:
            self.run.log(media)
        for kind, file in _ARTIFACTS.items():
            if (run_dir / file).is_file():
                artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
                artifact.add_file(str(run_dir / file))
                self.run.log_artifact(artifact)
        self.finished = record


def report_study(run: "wandb.Run", study: str, folder: Path, page: Callable[[], str]) -> None:
    """Log a study to an open W&B run: `runs`, a row each; what made them; `comparison`, the page, if it has one.

    Runs of several models or protocols are on no page together.
    """
    import wandb

    from qdit.tables import load_results

    frame = load_results(folder.parent, study)
    plain = frame.drop(columns=[name for name in ("folder",) if name in frame]).astype(object)
    rows = plain.where(frame.notna(), None).to_numpy().tolist()
    runs = wandb.Table(columns=[str(name) for name in plain.columns], data=rows, allow_mixed_types=True)
    run.log({"runs": runs})
    made_of = wandb.Artifact(f"study-{run.id}", type="study")
    for file in sorted([*folder.glob("*/config.yaml"), *folder.glob("*/result.json")]):
        made_of.add_file(str(file), name=f"{file.parent.name}/{file.name}")
    run.log_artifact(made_of)
    try:
        run.log({"comparison": wandb.Html(page(), inject=False)})
    except UserError as error:
        log.info("wandb: the study %s is there without its page (%s)", study, error.lines()[0])


def video(run_dir: Path) -> "wandb.Video | None":
    """The clips of a run; W&B takes no animated PNG, so that of one a GIF is made."""
    import io

    import wandb

    if (file := run_dir / "samples.mp4").is_file():
        return wandb.Video(str(file), format="mp4")
    if not (file := run_dir / "samples_moving.png").is_file():
        return None
    from PIL import Image

    data = io.BytesIO()
    with Image.open(file) as image:
        image.save(data, "gif", save_all=True, loop=0)
    data.seek(0)
    return wandb.Video(data, format="gif")


def acceptable_id(study: str, run_id: str) -> str:
    """The id of a run for W&B: `<study>-<run_id>`, with a study that W&B would refuse written another way.

    >>> acceptable_id("table 1", "1a2b3c4d"), acceptable_id("50%", "1a2b3c4d")
    ('table 1-1a2b3c4d', '50_-f363cba1-1a2b3c4d')
    """
    return f"{study if _ID.fullmatch(study) else fitting(f'{study}/')}-{run_id}"


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands in W&B's runs table: `<metric>`, `<metric>_stderr`, `<metric>_delta` …, `cost/…`, protocol.

    What is missing in the record is left out.
    """
    found = {key: record.get(key) for key in ("status", "error", "protocol", "protocol_id", "seed")}
    for name, metric in (record.get("metrics") or {}).items():
        fields = ("stderr", "n", "delta", "delta_stderr")
        found |= {name: metric.get("value"), **{f"{name}_{field}": metric.get(field) for field in fields}}
    found |= {f"cost/{key}": value for key, value in flatten(dict(record.get("cost") or {})).items()}
    return {key: value for key, value in found.items() if value is not None}


def has_credentials() -> bool:
    """Return whether wandb could log in without asking: a key in the environment, or netrc has its server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    files = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for file in (Path(name).expanduser() for name in files if name):
        try:
            hosts = netrc.netrc(str(file)).hosts
        except (OSError, netrc.NetrcParseError):
            continue
        if server in hosts or any("wandb" in host for host in hosts):
            return True
    return False
