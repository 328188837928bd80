# Each target does the set-up that it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORES  ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
STAMP  := $(VENV)/.installed
# Where Snakemake looks for profiles.
PROFILES := $(or $(XDG_CONFIG_HOME),$(HOME)/.config)/snakemake

.PHONY: help install install-profile demo test slow slurm lint format bench generate clean

help:
	@echo "make install   .venv with the package and its tools"
	@echo "make demo      a whole study on synthetic images, in minutes"
	@echo "make test      the tests"
	@echo "make slow      the tests that take minutes"
	@echo "make slurm     all tests on a local Slurm, what goes wrong on clusters among them (root, Debian)"
	@echo "make lint      ruff, snakefmt, snakemake --lint"
	@echo "make bench     side-by-side ratios"
	@echo "make generate  config schema and table, from the config models"
	@echo "make install-profile   --profile slurm from every folder, not only the checkout"

install: $(STAMP)

$(STAMP): pyproject.toml envs/requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=python3.12")'
	@echo "Installing into $(VENV): PyTorch and the rest, about 7 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	# --no-compile: bytecode is made where a module is first imported; most never are.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint envs/requirements.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/snakemake --configfile config/demo.yaml --cores $(CORES) all
	$(BIN)/ultrarefiner summary --run demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --ignore tests/slurm

# -s: each test prints what its user would see.
slurm: $(STAMP)
	$(BIN)/python -m pytest -s -m "slow or not slow" tests/slurm

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile rules
	$(BIN)/snakemake --lint

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/Snakefile rules

bench: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

generate: $(STAMP)
	$(BIN)/ultrarefiner generate

install-profile:
	mkdir -p $(PROFILES)
	test ! -e $(PROFILES)/slurm -o -L $(PROFILES)/slurm || { echo "$(PROFILES)/slurm is there and no link; move it away"; exit 1; }
	ln -sfn $(CURDIR)/profiles/slurm $(PROFILES)/slurm
	@echo "snakemake --profile slurm now works in every folder"

clean:
	rm -rf $(VENV) results/demo .snakemake
