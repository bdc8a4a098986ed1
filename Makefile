.PHONY: demo example test soak bench test-matrix lint style format clean
.DEFAULT_GOAL := test

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# where it is set, each process of the tests would compile all of them again
unexport PYTHONDONTWRITEBYTECODE

bin := .venv/bin
# more than there are processors: tests wait as often as they compute
processes := $(shell expr $$(nproc) + 2)
MINUTES ?= 5
soakers := $(if $(ARGS),0,$(shell nproc))
revisions := $(wildcard migrations/versions/*.up.sql migrations/versions/*.down.sql)

demo: ## see it work, on a private PostgreSQL server; ARGS are passed on
	@.ci/install demo
	@$(bin)/pyscore demo $(ARGS)

example: ## an application that uses it (examples/fastapi), on a private server; ARGS are passed on
	@.ci/install example
	@$(bin)/python -m examples.fastapi $(ARGS)

# A file's tests share a server; every process has one of its own. The slowest files come first (tests/conftest.py).
# pyright works beside the tests, and speaks after them.
test: style ## everything CI checks
	@$(bin)/pyright >.venv/pyright.log 2>&1 & pyright=$$!; \
	$(bin)/pytest --numprocesses=$(processes) --maxprocesses=6 --dist=loadfile --no-loadscope-reorder; tests=$$?; \
	wait $$pyright; types=$$?; cat .venv/pyright.log; exit $$((tests || types))

# Not part of CI: MINUTES for each attack. Seeds are printed; ARGS plays one round again, as a failure says.
soak: ## the tests that attack (tests/attacks.py), for long; their figures go to benchmarks/results/soak.md
	@.ci/install test
	$(bin)/pytest -m attack --numprocesses=$(soakers) --dist=loadfile \
	    $(if $(ARGS),$(ARGS),--soak=$(MINUTES) --attack-report=benchmarks/results/soak.md)

# Not part of CI: most of an hour, alone on its machine. ARGS: --quick (minutes), --full, --list, names.
bench: ## what it costs, how fast and how fresh it is, beside what else could be taken; into benchmarks/results/
	@.ci/install bench
	$(bin)/python -m benchmarks $(ARGS)

# Not part of CI: minutes a version. The logs, and the Debian for PostgreSQL 17, which takes root, are in .matrix;
# VERSIONS="16 18" leaves out the others.
test-matrix: ## the tests against PostgreSQL 15, 16, 17 and 18: a line each
	@.ci/install test
	@.ci/matrix $(VERSIONS)

lint: style ## formatting, Python rules, what would lock a live table, and types
	$(bin)/pyright

style:
	@.ci/install test
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(if $(revisions),$(bin)/squawk --config .ci/squawk.toml $(revisions))

format: ## let ruff rewrite the Python files
	@.ci/install test
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

clean: ## remove what the other targets made
	rm -rf .venv .matrix .demo .hypothesis .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
