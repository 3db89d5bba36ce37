# Every target sets up what it needs. `make run` and `make test` are all a newcomer has to type.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOOPS  := $(VENV)/.loops
SOURCE ?= sample
PIP    := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check
UV     := $(shell command -v uv 2>/dev/null)
UV_INSTALL := $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]' 2>/dev/null,false)

unexport PYTHONDONTWRITEBYTECODE   # hundreds of processes are started; each would compile everything again
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export GX_ANALYTICS_ENABLED := false
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MPLBACKEND := agg
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help env run check test lint notebooks lab serve up down report bench doctor docs readme prepare clean \
	check-security ci-lint ci-test ci-image ci-smoke ci-load release-build release-check release-notes release-publish

help:            ## This list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

env: $(READY) $(LOOPS)    ## The environment, from pyproject.toml and constraints.txt; uv installs it when it is there

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; name yours with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip 2>/dev/null
	$(PIP) -c constraints.txt torch 2>/dev/null   # by pip in any case: it knows the wheel for this machine
	$(UV_INSTALL) || $(PIP) -c constraints.txt -e '.[dev]' 2>/dev/null || \
		$(BIN)/python -m pip install --no-compile --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import fastapi, great_expectations, lightgbm, lightning, mlflow, optuna, prefect, stockpredict.cli.main, torch' >/dev/null 2>&1 || true   # compiles what is used; pip would compile all there is
	@mkdir -p $(VENV)/share/jupyter/lab/settings   # JupyterLab does not ask whether to fetch news
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' > $(VENV)/share/jupyter/lab/settings/overrides.json
	@touch $@

$(LOOPS): $(READY) $(shell grep -ls '^@compiled' stockpredict/*/*.py)   # once a machine: a loop that did not change is found again
	@$(BIN)/python -c 'from stockpredict.catalogue.warm_up import fill_loop_cache; print(fill_loop_cache())' && touch $@ || echo "The compiled loops could not be prepared; each is compiled at its first use."

run: env         ## Market data to a served prediction, on the offline sample (SOURCE=files|simulated for others)
	$(BIN)/python flows/retrain.py --source $(SOURCE) $(ARGS)

check: env       ## In a minute: lint, laws, the notebooks you changed and the tests near them
	$(BIN)/python nbs/check.py

test: env lint notebooks   ## Everything CI runs; ARGS=--all-steps kills at every step there is and measures coverage
	$(if $(findstring --all-steps,$(ARGS)),OMP_NUM_THREADS=1 $(BIN)/python nbs/lessons.py --top-to-bottom)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations=15 tests $(ARGS)

lint: env        ## Style and mistakes a machine can see
	$(BIN)/ruff check .

notebooks: env   ## Run every lesson against the exported package (with --all-steps: how much of it they reach)
	OMP_NUM_THREADS=1 $(BIN)/python nbs/lessons.py $(if $(findstring --all-steps,$(ARGS)),--coverage)

lab: env         ## JupyterLab on the notebooks, with kernel, clean hook, merge driver and trust set
	$(BIN)/python nbs/lab.py $(ARGS)

serve: env       ## The prediction service (needs a `make run` before)
	$(BIN)/stockpredict serve

up: env          ## API, Prefect with its schedules, MLflow, JupyterLab (ARGS=--spare-ports: beside another one)
	@$(BIN)/python nbs/lab.py --prepare
	$(BIN)/stockpredict up $(ARGS)

down: env        ## Stop what `make up` started
	$(BIN)/stockpredict down

report: env      ## Where the reports are
	$(BIN)/stockpredict report

bench: env       ## Every speed claim, beside its peer, in this run
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

doctor: env      ## What is wrong, and the line that mends it
	$(BIN)/stockpredict doctor

docs: env        ## The documentation site, in _docs: from the notebooks, without a network
	$(BIN)/python deploy/docs/build_site.py $(ARGS)

readme: env      ## README.md from nbs/index.ipynb
	$(BIN)/python nbs/readme.py

prepare: env     ## Export, clean and rebuild README.md: before a commit
	$(BIN)/nbdev-export && $(BIN)/nbdev-clean && $(BIN)/python nbs/readme.py

check-security: env   ## Bandit, secrets, licences, advisories, list of parts (ARGS=--online: no advisory unread)
	$(BIN)/python deploy/release/security.py all $(ARGS)

ci-lint: lint    ## What the workflows ask first: style, the workflows themselves, version and changelog
	$(BIN)/actionlint
	$(BIN)/python -m pytest -q tests/deploy/test_workflows.py

ci-test:         ## What lands or rejects a change: .ci/run; or a part of it, PART=lessons, PART=1/4 …
	$(if $(PART),PYTHON=$(PYTHON) bash deploy/release/part.sh $(PART),bash .ci/run)

ci-image: env    ## Build the images, run them, print sizes and times (ARGS="reader --base python:3.11-slim")
	$(BIN)/python deploy/images/check.py $(ARGS)

ci-smoke: env    ## What a place answers after a rollout (URL=https://…, key in STOCKPREDICT_API_KEY); here: the images
	$(BIN)/python deploy/images/smoke.py $(URL)

ci-load: env     ## A short load on a service that gets a new model, restarts and is killed: no wrong answer
	$(BIN)/python benchmarks/serving_load.py --seconds $(or $(SECONDS_EACH),3) --clients 4

release-build: env   ## Wheel, source distribution and their sums, in dist
	$(BIN)/python deploy/release/package.py build

release-check: env   ## The same, installed into an empty environment with all it needs, and asked
	$(BIN)/python deploy/release/package.py check

release-notes:       ## The section of this version in CHANGELOG.md
	@$(PYTHON) deploy/release/package.py notes

release-publish:     ## What a release would be; ARGS=--really makes it, on the tag
	$(PYTHON) deploy/release/package.py publish $(ARGS)

clean:           ## Remove what runs and tests leave behind (not the environment, not the lake)
	rm -rf .pytest_cache .ruff_cache .coverage htmlcov build *.egg-info
