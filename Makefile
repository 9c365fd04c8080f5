# Two commands do all the set-up: `make demo` runs the main job on the embedded model, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint newest notebooks docs clean

demo: .venv/.installed
	$(BIN)/qdit study=demo num_samples=64

test: .venv/.installed
	$(BIN)/pytest -n 2

# A newer interpreter, if there is one, with the newest dependencies: every import, one run, one table.
newest: .venv/.installed
	.ci/newest

# Runs every notebook and keeps what it shows, as they are committed.
notebooks: .venv/.installed
	$(BIN)/python .ci/notebooks

# The documentation site, in site/; a link that leads nowhere is an error.
docs: .venv/.installed
	$(BIN)/pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# One pip call: torch and torchvision must be resolved together; while it is silent, a line every ten seconds says how much is
# there. The stamp makes a second `make` skip the installation.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@.ci/growing .venv $(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-newest runs cache site
