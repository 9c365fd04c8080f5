"""The documentation site: all pages are in it, and reference pages have all there is; where mkdocs is, it builds."""

import re
import subprocess
import sys
import tomllib
from importlib import util
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import qdit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


class Loader(yaml.SafeLoader):
    """Reads `!ENV`, too."""


Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node))


@pytest.fixture(scope="module")
def pages():
    """The module that changes pages."""
    spec = util.spec_from_file_location("site_pages", ROOT / ".ci" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def listed(nav: Any) -> list[str]:
    """The pages of a table of contents."""
    if isinstance(nav, str):
        return [nav]
    return [page for each in (nav.values() if isinstance(nav, dict) else nav) for page in listed(each)]


def test_every_page_has_its_place_and_every_place_a_page():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)["nav"]
    assert [next(iter(part)) for part in nav] == ["Start", "How-to", "Concepts", "Reference", "Results"]
    assert sorted(listed(nav)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_tasks_are_short():
    tasks = sorted((DOCS / "how_to").glob("*.md"))
    assert len(tasks) == 6
    assert {path.stem: n for path in tasks if (n := len(path.read_text(encoding="utf-8").splitlines())) >= 60} == {}


def test_the_reference_has_every_name_of_the_api_and_every_command():
    api = re.findall(r"^::: qdit\.api\.\w+\.(\w+)$", (DOCS / "reference" / "python_api.md").read_text(), re.MULTILINE)
    assert sorted(api) == sorted({*qdit.__all__} - {"UserError"})
    helped = re.findall(r"^<!-- help: (\w+) -->$", (DOCS / "reference" / "cli.md").read_text(), re.MULTILINE)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(f"qdit-{name}" for name in helped) == sorted(set(scripts) - {"qdit"})


def test_the_page_of_commands_says_something_of_each_where_no_site_is_built():
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for part in page.split("\n## ")[1:]:
        name, said, *_ = [line for line in part.splitlines() if line]
        assert f"`{name} --help`" in said


def test_links_out_of_the_documents_titles_and_prompts_are_as_a_site_needs_them(pages):
    text = (
        "[`Site`](../qdit/model/base.py) [words](words.md#x) [web](https://x.org)\n"
        "```yaml title=a/b.yaml\n```\n```console\n$ qdit \\\n    bits=w4a4\n$ qdit-ls\n```\n"
    )
    plain = pages.written(text, PurePosixPath("docs"), "")
    assert plain.startswith("`Site` [words](words.md#x) [web](https://x.org)\n")
    assert '```yaml title="a/b.yaml"' in plain
    assert "```bash\nqdit \\\n    bits=w4a4\nqdit-ls\n```" in plain
    linked = pages.written("[a](../../examples/a.py)", PurePosixPath("docs/how_to"), "https://host/main")
    assert linked == "[a](https://host/main/examples/a.py)"
    inside = "[a](../metrics.md)"
    assert pages.written(inside, PurePosixPath("docs/how_to"), "https://host/main") == inside


def test_a_command_says_its_help(pages):
    text = pages.written("<!-- help: ls -->\n", PurePosixPath("docs/reference"), "")
    assert text.startswith("```text\nusage: qdit-ls ")


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("mkdocs") is None, reason="the site is made with qdit[docs]")
def test_the_site_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "how_to" / "add_a_metric.html").is_file()
