# Two commands on a fresh machine with Python 3.11, pip and make:  make demo   make test
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# img2dataset needs other versions than training does: an environment of its own, for the tests that read what it writes.
IMG2DATASET := $(VENV)-img2dataset
# Two processes, each with a Ray of its own; files in the order that tests/conftest.py gives.
TWO_BY_FILE := -q --durations=15 -n 2 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
# mkdocs-material ends in May 2027; its successor reads the same mkdocs.yml.
export NO_MKDOCS_2_WARNING := 1

$(IMG2DATASET)/.installed: Makefile
	@$(PYTHON) -m venv $(IMG2DATASET)
	@$(IMG2DATASET)/bin/python -m pip install -q 'img2dataset==1.47.0' > $(IMG2DATASET)/install.log 2>&1 \
	    || { tail -n 20 $(IMG2DATASET)/install.log; exit 1; }
	@touch $@

.PHONY: help configuration docs demo demo-long submit test test-cluster test-fast lint format audit clean
help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes; the log is $(VENV)/install.log)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]' > $(VENV)/install.log 2>&1 \
	    || { tail -n 20 $(VENV)/install.log; exit 1; }
	@touch $@

configuration: $(STAMP) ## renew docs/configuration.md, the reference of all fields
	@$(BIN)/python -m ito_ray.config.reference docs/configuration.md

demo: $(STAMP)   ## the main job in a few minutes: data, training, registry, gallery
	@$(BIN)/python -m pipelines.demo

demo-long: $(STAMP) ## the same with five times as many steps
	@$(BIN)/python -m pipelines.demo --recipe icons_cpu_long

submit: $(STAMP) ## a pipeline on the cluster of RAY_API_SERVER_ADDRESS: make submit ARGS='train --recipe …' [JOB=--no-wait]
	@$(BIN)/ray job submit --working-dir . --runtime-env-json '{"excludes": ["docs", "tests"]}' $(JOB) -- python -m pipelines.$(ARGS)

test: lint $(IMG2DATASET)/.installed ## formatting, types, import rules, all tests but those of test-cluster
	@$(BIN)/python -m pytest -m 'not slow' -q -n auto --maxprocesses 8
	@$(BIN)/python -m pytest -m 'slow and not cluster' $(TWO_BY_FILE)

test-cluster: $(STAMP) ## whole sweeps, several nodes, faults: the rest of what CI runs
	@$(BIN)/python -m pytest -m cluster $(TWO_BY_FILE)

test-fast: $(STAMP) $(IMG2DATASET)/.installed ## the tests that start no Ray, server or process
	@$(BIN)/python -m pytest -m 'not slow' -q -n auto --maxprocesses 8

lint: $(STAMP)   ## formatting, types, import rules, secrets
	@$(BIN)/ruff format --check -q .
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --baseline .secrets.baseline

format: $(STAMP) ## format and fix what can be fixed
	@$(BIN)/ruff format -q .
	@$(BIN)/ruff check --fix -q .

docs: $(STAMP)   ## the site in site/, links and anchors checked
	@$(BIN)/mkdocs build --strict --quiet

audit:           ## known vulnerabilities of the pinned packages (needs the network; not part of make test)
	@$(PYTHON) -m venv $(VENV)-audit
	@$(VENV)-audit/bin/python -m pip install -q pip-audit
	@$(VENV)-audit/bin/pip-audit -r constraints.txt --no-deps --disable-pip

clean:           ## remove what the demo and the tests made
	rm -rf demo/data demo/data_long demo/runs demo/summary.json demo/answers.png .pytest_cache .mypy_cache .ruff_cache
