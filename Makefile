# `make demo` and `make test` each work alone on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
CONFIG ?= configs/demo.yaml
ARGS ?=
PIP_FLAGS ?=

VENV := .venv
IN_VENV := $(VENV)/bin/python
INSTALL := $(IN_VENV) -m pip install --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
NEEDS := pyproject.toml constraints.txt

.PHONY: help demo test lint types bench clean

help:
	@echo "make demo    set up .venv and raise a model on the built-in text (CONFIG=$(CONFIG))"
	@echo "make test    set up .venv and run all tests (ARGS='-m \"not slow\"' for the quick ones)"
	@echo "make lint    style, and which room may import which"
	@echo "make types   mypy on the package"
	@echo "make bench   the figures of docs/lab-book.md, measured on this machine"
	@echo "make clean   remove .venv and caches; runs/ stays"

demo: $(VENV)/installed-demo
	$(IN_VENV) -m cygnet run $(CONFIG) $(ARGS)

test: $(VENV)/installed-dev
	$(IN_VENV) -m pytest $(ARGS)

lint: $(VENV)/installed-dev
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
	$(VENV)/bin/lint-imports

types: $(VENV)/installed-dev
	$(IN_VENV) -m mypy

# Those that need a folder say so and end with 2.
bench: $(VENV)/installed-dev
	@for file in benchmarks/*.py; do \
		echo "== $$file"; PYTHONPATH=. $(IN_VENV) "$$file" $(ARGS); code=$$?; \
		test $$code = 0 -o $$code = 2 || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps keep a second call from installing again. Whoever has the tools of development has
# what the demo needs.
$(VENV)/installed-demo: $(NEEDS) | $(IN_VENV)
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/installed-dev: $(NEEDS) | $(IN_VENV)
	$(INSTALL) -e '.[dev]'
	@touch $(VENV)/installed-demo $@

$(IN_VENV):
	@command -v $(PYTHON) >/dev/null || \
		{ echo "no $(PYTHON) here: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Cygnet needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make a virtual environment: apt install python3-venv" >&2; exit 1; }
	@rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
