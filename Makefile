# Two commands for a fresh checkout: `make demo` and `make test`. Each does its own set-up in .venv; `make` alone lists the rest.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VENV   := .venv
BIN    := $(VENV)/bin
PY_MIN := $(shell sed -n 's/^min_python *= *//p' settings.ini)
# The Python that makes the environment: `make demo PYTHON=/path/to/python`, else the first of these that can do it
PYTHONS = $(or $(PYTHON),python$(PY_MIN) python3)
NEW_ENOUGH = import sys; sys.exit(sys.version_info < tuple(map(int, "$(PY_MIN)".split("."))))
FIND_PYTHON = p=$$(for p in $(PYTHONS); do "$$p" -c 'import ensurepip, venv; $(NEW_ENOUGH)' >/dev/null 2>&1 && { echo "$$p"; break; }; done); \
	if [ -z "$$p" ]; then echo "imgcls needs Python $(PY_MIN) or newer that can make virtual environments. On Debian and Ubuntu:" >&2; \
		echo "sudo apt-get install python$(PY_MIN)-venv" >&2; exit 1; fi
# Whole: its Python and pip run, they are those of this folder, and no package was left half written or half replaced
WHOLE = $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && $(BIN)/pip --version 2>/dev/null | grep -qF "$(CURDIR)/$(VENV)/" \
	&& ! ls -d $(VENV)/lib/python*/site-packages/~* >/dev/null 2>&1 \
	&& [ -z "$$(for d in $(VENV)/lib/python*/site-packages/*.dist-info; do [ -s "$$d/RECORD" ] || echo "$$d"; done)" ]

# The tests change folders, and a relative name would lead nowhere from there
ifneq ($(IMGCLS_DATA),)
export IMGCLS_DATA := $(abspath $(IMGCLS_DATA))
endif

##@ Use
.PHONY: help demo
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.has-demo ## Install, then train on real images: from a first look to a saved classifier (ARGS="FOLDER --out DIR")
	$(BIN)/imgcls demo $(ARGS)

##@ Check
.PHONY: test test-full bench
test: $(VENV)/.has-dev ## Install, then everything that CI runs: linter and all tests (ARGS="-k name" for some)
	$(BIN)/ruff check --output-format concise .
	$(BIN)/python -m pytest -q -rs -n auto --dist worksteal $(ARGS)

test-full: $(VENV)/.has-dev ## The same at full counts, and all notebooks as written in a Jupyter kernel; keeps its result
	$(BIN)/ruff check --output-format concise .
	$(BIN)/python tests/full_run.py

bench: $(VENV)/.has-dev ## Run the benchmarks (benchmarks/README.md)
	@for f in $(or $(filter-out benchmarks/cifar10_full.py,$(wildcard benchmarks/*.py)),none); do [ $$f != none ] || { echo "benchmarks/ has no benchmark yet"; break; }; \
		echo "== $$f"; $(BIN)/python $$f || exit 1; done

##@ Write
.PHONY: export readme docs hooks clean
export: $(VENV)/.has-dev ## Notebooks to package: export, clean, README
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

readme: $(VENV)/.has-dev ## Write README.md from nbs/index.ipynb
	$(BIN)/python tools/readme.py

docs: $(VENV)/.has-dev ## Build the site into _docs, every warning an error, and check the README
	$(BIN)/sphinx-build -W --keep-going -q -c docs nbs _docs
	$(BIN)/python tools/readme.py --check
	@echo "The site is in _docs/index.html"

hooks: $(VENV)/.has-dev ## Let git merge notebooks, and check each commit (export, clean, linter, sizes)
	$(BIN)/nbdev_install_hooks
	$(BIN)/pre-commit install

clean: ## Remove what the tools made (site, builds, caches); the environment is removed by `rm -rf .venv`
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .ruff_cache .coverage htmlcov
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# One environment for both. `demo` takes the newest fastai; `dev` may hold it back, and `demo` runs on that as well.
# A stamp is written when pip has ended well and taken away before pip begins. An environment without one is looked at, kept if
# it is whole, and else made anew.
INSTALL = @echo "Installing imgcls[$(1)] with all that it needs into $(VENV): this takes a few minutes"; \
	rm -f $(VENV)/.has-dev; mv -f $(VENV)/.has-demo $(VENV)/.had-demo 2>/dev/null; \
	if $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input -e ".[$(1)]"; then rm -f $(VENV)/.had-demo; touch $(2); \
	else $(WHOLE) && $(BIN)/pip check >/dev/null 2>&1 && mv -f $(VENV)/.had-demo $(VENV)/.has-demo 2>/dev/null; \
		echo "imgcls[$(1)] could not be installed; the lines above say why" >&2; exit 1; fi

$(VENV)/.has-demo: settings.ini setup.py $(VENV)/.made
	$(call INSTALL,demo,$(VENV)/.has-demo)

$(VENV)/.has-dev: settings.ini setup.py $(VENV)/.made
	$(call INSTALL,demo$(comma)dev,$(VENV)/.has-demo $(VENV)/.has-dev)

comma := ,

# Asked for again when .venv was moved, its Python is gone, or nothing is wholly installed in it
ifneq ($(shell [ "$$(cat $(VENV)/.made 2>/dev/null)" = "$(CURDIR)" ] && [ -e $(VENV)/.has-demo ] && $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && echo yes),yes)
.PHONY: $(VENV)/.made
endif
$(VENV)/.made:
	@if ! { $(WHOLE); }; then \
		$(FIND_PYTHON); echo "Making the environment $(VENV) with $$($$p --version)"; rm -rf $(VENV); "$$p" -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; fi
	@rm -f $(VENV)/.has-demo $(VENV)/.has-dev; echo "$(CURDIR)" > $@

.PHONY: python
python: # Which Python makes the environment
	@$(FIND_PYTHON); echo "$$p"
