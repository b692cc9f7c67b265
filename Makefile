# Two commands for newcomers, `make movie` and `make test`; `make help` lists all of them.
# Everything is installed into .venv, as an ordinary user; a second run re-uses it.

VENV := .venv
BIN := $(VENV)/bin
MINIMUM := 3.11
PYTHON ?= $(firstword $(foreach name,python3 python3.13 python3.12 python3.11 python,$(shell \
	command -v $(name) >/dev/null 2>&1 && $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	2>/dev/null && echo $(name))))
OUTPUT ?= movie/
PROMPT ?= a brown horse gallops out of a red barn at sunset

# Taken literally, so that quotes, apostrophes and dollar signs reach the program and never make or the shell.
override PROMPT := $(value PROMPT)
override OUTPUT := $(value OUTPUT)
export PROMPT OUTPUT

PACKAGE := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: help movie test space clean
.DELETE_ON_ERROR:

help:
	@echo 'make movie   a light-field movie for PROMPT="a white cow grazes at dawn", written to OUTPUT=movie/'
	@echo 'make test    ruff and the whole test suite, as continuous integration runs them'
	@echo 'make space   the demonstration in a browser'
	@echo 'make clean   remove the environment, the movie and everything else that these commands made'
	@echo 'PYTHON=...   the interpreter to make the environment with (now: $(or $(PYTHON),none found))'

movie: $(VENV)/.installed
	@$(BIN)/stale-diffusion generate --output "$$OUTPUT" -- "$$PROMPT"

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

space: $(VENV)/.installed-space
	@test -f space/app.py || { echo 'error: space/app.py is missing from this checkout.' >&2; exit 1; }
	$(BIN)/python space/app.py

clean:
	rm -rf $(VENV) movie dist build .pytest_cache .ruff_cache
	find diffusers_stale scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo 'error: no Python $(MINIMUM) or newer was found; install one, or name it:' \
		'make PYTHON=/path/to/python3.' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: Python $(MINIMUM) or newer' \
		'is needed, $(PYTHON) is another; name one: make PYTHON=/path/to/python3.' >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo 'error: $(PYTHON) cannot make virtual' \
		'environments; on Debian and Ubuntu: sudo apt install python3-venv.' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.made $(PACKAGE)
	@echo 'Installing diffusers-stale into $(VENV): a few minutes the first time, PyTorch is large.'
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo 'Installing what "$*" needs besides.'
	@$(INSTALL) --editable '.[$*]'
	@touch $@
