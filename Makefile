# make quickstart   install, train a small model on real dialogue, then the demo (a few minutes)
# make data         put the data that the documents' commands name into data/ (needs a network)
# make test         install everything, lint, and run the tests
# make site         the documents and the API as a web site, in .venv-site (no network but pip's)
# make ecosystem    the tests against PEFT, TRL and lm-evaluation-harness, in .venv-ecosystem
.POSIX:
PYTHON = python3
BIN = .venv/bin

quickstart: .venv/quickstart
	$(BIN)/python train.py --config configs/quickstart.yaml --out runs/quickstart \
	  $$(test -e runs/quickstart/config.yaml && echo --resume)
	$(BIN)/python demo.py --checkpoint runs/quickstart --save-figure runs/quickstart/tour.png

test: .venv/all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

data: .venv/all
	$(BIN)/python -m benchmarks.making.data

ecosystem: .venv-ecosystem/done
	OMP_NUM_THREADS=1 .venv-ecosystem/bin/python -m pytest -m ecosystem tests/ecosystem

site: .venv-site/done
	.venv-site/bin/sphinx-build -q -W --keep-going -c docs/site -d build/doctrees . build/site
	.venv-site/bin/python -m pytest -m site --noconftest tests/site
	@echo "the site: build/site/index.html"

.venv-site/done: requirements-site.txt
	$(PYTHON) -m venv .venv-site
	.venv-site/bin/pip install -q -r requirements-site.txt
	touch $@

.venv-ecosystem/done: setup.py requirements.txt requirements-ecosystem.txt
	$(PYTHON) -m venv .venv-ecosystem
	.venv-ecosystem/bin/pip install -q -c requirements.txt -r requirements-ecosystem.txt -e .
	touch $@

.venv/quickstart: setup.py requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c requirements.txt -e ".[fast,sample,plots]"
	touch $@

.venv/all: setup.py requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c requirements.txt -e ".[all]"
	touch $@ .venv/quickstart

.PHONY: quickstart data test ecosystem site
