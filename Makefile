# make demo: a model from the bundled genome in minutes.  make test: every fast test.  make lint: style and types.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow lint clean

demo: .venv/.installed
	$(BIN)/hyena pretrain --out demo/run
	$(BIN)/hyena evaluate -m demo/run/model -o demo/evaluation --overwrite
	@echo
	@echo "model       demo/run/model"
	@echo "curves      demo/run/curves.png"
	@echo "evaluation  demo/evaluation"

test: .venv/.installed-test
	$(BIN)/pytest -n 2 -m "not slow" --ignore=tests/triton
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2 -m "not slow" tests/triton

slow: .venv/.installed-test
	$(BIN)/pytest -n 2 -m "slow" --timeout=1800 --ignore=tests/triton

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,lint]'
	@touch $@

clean:
	rm -rf .venv build dist demo *.egg-info
