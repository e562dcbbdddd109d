# `make demo` and `make test` do all the set-up on a machine with Python >= 3.11, make and a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo test lint format bench drills tiny clean

demo: $(STAMP)
	$(BIN)/mvc run configs/digits.yaml

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mvc train generate classify

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Ratios against references, interleaved in one process; each fails below its gate.
bench: $(STAMP)
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; OMP_NUM_THREADS=1 $(BIN)/python $$file || exit 1; done

# The long tests: kills at random moments, the whole job on real images.
drills: $(STAMP)
	$(BIN)/python -m pytest -m slow

# Trains the embedded models again (about an hour on two cores); the shipped ones lie in mvc/tiny/weights.
tiny: $(STAMP)
	$(BIN)/python -m mvc.tiny.build --out build/tiny

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), 'Python 3.11 or newer is needed, this is ' + sys.version"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
