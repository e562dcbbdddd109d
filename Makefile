# `make demo` and `make test` do all the set-up on a machine with Python >= 3.11, make and a compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo demo-quality test lint format bench drills tiny speech clean

demo: $(STAMP)
	$(BIN)/mvc run configs/digits.yaml

# Two processes of one thread each: on toy models a second thread gains nothing. A file stays with one process, which
# then makes its fixtures once.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mvc train generate classify

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Ratios against references, growth, memory; writes docs/benchmarks.md and fails where one is below its gate.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

# How good the demo's synthetic digits are, by a classifier that the run itself never sees.
demo-quality: demo
	$(BIN)/python benchmarks/demo_quality.py runs/digits

# The long tests: kills at random moments, the whole job on real images.
drills: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# The offline voice of back-speech, and WordNet, which the table of synonyms is compared with (Debian, Ubuntu). Tests that
# need them are skipped where they are missing.
speech:
	command -v flite > /dev/null && test -d /usr/share/wordnet || { \
	  sudo=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends flite wordnet-base; }

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
