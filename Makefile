# make setup   .venv with the pinned dependencies and limbeck itself
# make demo    the main job on the embedded world, into runs/demo
# make test    lint, format, types and tests, from nothing
# make check   lint, format and types only
# make docs    the generated pages of docs/
# make wheel   dist/*.whl
# make lock    requirements.txt again, from pyproject.toml, with the newest versions that fit

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := $(wildcard src tests claims benchmarks examples docs tools)
# The first Python that is new enough; make PYTHON=/path/to/python setup names another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python,$(shell \
	$(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
# Tests download nothing, and two worker processes with one thread each fill two cores.
OFFLINE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: setup demo test check docs wheel lock clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "limbeck needs Python 3.11 or newer; name one with make PYTHON=... setup" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/limbeck demo --out runs/demo

check: $(STAMP)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

test: check
	$(OFFLINE) $(BIN)/python -m pytest -n 2

docs: $(STAMP)
	$(BIN)/python docs/make.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	{ echo "# Written by make lock; used by make setup."; \
	  build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > requirements.txt

clean:
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache
