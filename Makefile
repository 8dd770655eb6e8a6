# The one door. On a bare clone `make demo` and `make test` need Python 3.11+, make and git; they fetch the rest into .venv.

SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin
BENCH := .venv-bench
SPARK := .venv-spark
ATTRIBUTION := .venv-attribution
# All but spark-classic, which is the same package as spark's with Spark itself.
EXTRAS := frames postgres clickhouse chdb spark fused dev
WORKERS ?= 2

# The first interpreter that is new enough and can make environments. `make test PYTHON=python3.12` chooses another.
FITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c '$(FITS)' >/dev/null 2>&1 && echo "$$p" && break; done)

# Hashes everywhere, and no build isolation: nothing is installed that the pins do not name.
PIP_INSTALL = -m pip install -qq --disable-pip-version-check
PROJECT     = --no-deps --no-build-isolation --editable .
UV_COMPILE  = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --no-header $(UPGRADE)

.PHONY: help demo test test-slow simulations attribution check bench docs lock clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-16s%s\n", $$1, $$2}'

demo: $(VENV)/.core ## a simulated company, measured: the claims in the terminal, the report as a page
	$(BIN)/payoff demo

test: check ## make check, then the tests; PostgreSQL is installed for them where it may be
	@sh tests/postgresql.sh
	$(BIN)/python -m pytest -n $(WORKERS)

test-slow: $(VENV)/.dev $(SPARK)/.spark ## simulations over many worlds with known truth, and a Spark cluster that loses a worker
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

simulations: $(VENV)/.dev ## the proof table, docs/simulations.md: what is not yet computed of it, on all cores
	$(BIN)/python -m tests.simulations

attribution: $(VENV)/.dev ## docs/attribution_models.md: models of attribution beside the truth, in simulated companies
	$(BIN)/python -m tests.simulations.attribution --workers $(WORKERS)

check: $(VENV)/.dev ## format, lint, types, layers
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(BENCH)/.bench ## how far from the raw scan of the same columns, beside other tools; more of them after make .venv-spark/.spark .venv-attribution/.attribution
	$(BENCH)/bin/python benchmarks/scale.py --out benchmarks/seen.md \
		$(if $(wildcard $(SPARK)/.spark),--spark $(SPARK)/bin/python) \
		$(if $(wildcard $(ATTRIBUTION)/.attribution),--channel-attribution $(ATTRIBUTION)/bin/python)

docs: $(VENV)/.dev ## the published schema and the command-line reference, from the code
	$(BIN)/payoff schema > docs/payoff.schema.json
	$(BIN)/typer payoff.cli utils docs --name payoff --title "Command line" --output docs/cli.md

lock: $(VENV)/.dev ## pins with hashes; make lock UPGRADE=--upgrade takes new releases
	$(UV_COMPILE) pyproject.toml --group build --output-file requirements/core.txt
	$(UV_COMPILE) pyproject.toml --group build $(EXTRAS:%=--extra %) --constraints requirements/core.txt --output-file requirements/dev.txt
	$(UV_COMPILE) pyproject.toml --group build --extra fused --extra chdb --group bench --constraints requirements/core.txt --output-file requirements/bench.txt
	$(UV_COMPILE) --group pyproject.toml:spark-build --output-file requirements/spark-build.txt
	$(UV_COMPILE) --group pyproject.toml:attribution-build --constraints requirements/core.txt --output-file requirements/attribution-build.txt
	$(UV_COMPILE) --group pyproject.toml:attribution --constraints requirements/bench.txt --constraints requirements/attribution-build.txt --output-file requirements/attribution.txt
	$(UV_COMPILE) pyproject.toml --group build --group spark --constraints requirements/core.txt --output-file requirements/spark.txt

clean: ## what can be made again; never .payoff/, where results are kept
	rm -rf $(VENV) $(BENCH) $(SPARK) $(ATTRIBUTION) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg $(BENCH)/pyvenv.cfg $(SPARK)/pyvenv.cfg $(ATTRIBUTION)/pyvenv.cfg:
	@"$(PYTHON)" -c '$(FITS)' 2>/dev/null || { echo >&2 \
	"Payoff needs Python 3.11 or newer with its venv module (on Debian and Ubuntu: apt install python3-venv). If you have one, name it: make PYTHON=/path/to/python3"; exit 1; }
	"$(PYTHON)" -m venv $(@D)

# Made again only when the pins or the project's own description change.
$(VENV)/.core: requirements/core.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements/core.txt
	$(BIN)/python $(PIP_INSTALL) $(PROJECT)
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python $(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	$(BIN)/python $(PIP_INSTALL) $(PROJECT)
	@touch $(VENV)/.core $@

# pyspark is a source package: minutes to build, 470 MB.
$(SPARK)/.spark: requirements/spark-build.txt requirements/spark.txt pyproject.toml | $(SPARK)/pyvenv.cfg
	$(SPARK)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/spark-build.txt
	$(SPARK)/bin/python $(PIP_INSTALL) --require-hashes --no-build-isolation -r requirements/spark.txt
	$(SPARK)/bin/python $(PIP_INSTALL) $(PROJECT)
	@touch $@

$(BENCH)/.bench: requirements/bench.txt pyproject.toml | $(BENCH)/pyvenv.cfg
	$(BENCH)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/bench.txt
	$(BENCH)/bin/python $(PIP_INSTALL) $(PROJECT)
	@touch $@

# ChannelAttribution is a source package too, and is compiled against numpy.
$(ATTRIBUTION)/.attribution: requirements/attribution-build.txt requirements/attribution.txt | $(ATTRIBUTION)/pyvenv.cfg
	$(ATTRIBUTION)/bin/python $(PIP_INSTALL) --require-hashes -r requirements/attribution-build.txt
	$(ATTRIBUTION)/bin/python $(PIP_INSTALL) --require-hashes --no-build-isolation -r requirements/attribution.txt
	@touch $@
