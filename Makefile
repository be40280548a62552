# Everything a reader needs, one word each.  `make help` lists it.
# Every target sets up .venv from requirements.lock first, once, and again when the lock or pyproject.toml changes.

PROFILE ?= tiny
CORES ?=
VENV ?= .venv
PIECE ?= a
OUT ?= .cache/gpu-out
READY := $(VENV)/ready
BIN := $(VENV)/bin

# Threads that spin while they wait lose a factor of ten and more as soon as anything else runs on the machine.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test quick lab bench gpu site notebooks publish readme clean lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "variables:      PROFILE=$(PROFILE) CORES=$(or $(CORES),(all)) VENV=$(VENV) PYTHON=(the first of 3.11, 3.12, … found)"

setup: $(READY) ## create .venv and install requirements.lock into it

$(READY): requirements.lock pyproject.toml
	@python="$(PYTHON)"; \
	for candidate in python3.11 python3.12 python3.13 python3; do \
	  test -n "$$python" && break; \
	  "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python="$$candidate"; \
	done; \
	test -n "$$python" || { echo "Python 3.11 or newer is needed; name it with PYTHON=/path/to/python." >&2; exit 1; }; \
	echo "Setting up $(VENV) with $$python (some minutes, 7 GB)"; \
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --progress-bar off --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

reproduce: $(READY) ## run the notebooks of PROFILE into results/local (tiny: 10 minutes on 2 cores), compare with what is published
	$(BIN)/paperlib reproduce $(PROFILE) $(if $(CORES),--cores $(CORES))

test: $(READY) ## all tests, and every notebook against its committed outputs
	$(BIN)/python -m pytest --nbval --nbval-current-env tests notebooks

quick: $(READY) ## the tests that take less than two minutes together
	$(BIN)/python -m pytest -n 2 -m "not slow" tests

lab: $(READY) ## JupyterLab with the notebooks
	$(BIN)/jupyter lab --notebook-dir=notebooks

bench: $(READY) ## benchmarks against other libraries, results/bench (an hour and a half, machine at rest; ONLY=… for some)
	$(BIN)/python tests/bench/run.py $(ONLY)

gpu: ## on a machine with a GPU: PIECE=a tests and measures, PIECE=b trains; what comes back in OUT=… (docs/gpu.md)
	$(or $(PYTHON),python3) tools/gpu.py --piece $(PIECE) --out $(OUT)

site: $(READY) ## the notebooks and the API as a web site that needs no network, docs/_build/html (needs npm, for MathJax)
	$(BIN)/python -m tools.mathjax
	rm -rf docs/_build docs/api docs/notebooks && mkdir docs/notebooks && cp notebooks/*.ipynb docs/notebooks/
	$(BIN)/python -m tools.moving docs/_extra/moving.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

notebooks: $(READY) ## execute the notebooks in place at the profile tiny, as they are committed
	$(BIN)/python -m jupytext --update --to ipynb notebooks/[0-9]*.py
	PAPERLIB_READ_PUBLISHED=1 $(BIN)/python -m nbconvert --to notebook --execute --inplace notebooks/[0-9]*.ipynb
	$(BIN)/python -m nbstripout --keep-output --keep-count --keep-id \
	  --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution metadata.widgets" notebooks/[0-9]*.ipynb
	$(BIN)/python -m tools.pictures notebooks/[0-9]*.ipynb

publish: $(READY) ## for maintainers: what `make reproduce` made becomes results/PROFILE, and README.md is filled from it
	$(BIN)/python -m tools.publish $(PROFILE)
	$(MAKE) readme

readme: $(READY) ## fill README.md and docs/preregistration.md from results, docs/equations.md and docs/costs.md from the code
	$(BIN)/python -m tools.equations
	$(BIN)/python -m tools.costs
	$(BIN)/python -m tools.readme

clean: ## remove caches, results made here and the site; published results and the packages in .venv stay
	rm -rf .cache .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf results/interactive results/local docs/_build docs/_extra docs/api docs/notebooks $(READY)

lock: ## resolve pyproject.toml into requirements.lock again (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: pip install uv" >&2; exit 1; }
	UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile pyproject.toml --extra test --extra features --extra datasets --extra site \
	  --universal --python-version 3.11 --generate-hashes --no-emit-index-url --quiet --output-file requirements.lock
