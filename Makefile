# Every target makes what it needs, the virtual environment first.
PYTHON ?= python3
BIN := .venv/bin
TOOLS_FIRST := PATH="$(CURDIR)/tools:$(CURDIR)/$(BIN):$$PATH"
export OMP_NUM_THREADS ?= 1

.PHONY: report test test-slow soak test-oldest test-newest export refresh docs bench dist clean help

report: .venv/.user  ## a report for the bundled example study (IMAGES="frontal.png lateral.png" for your own)
	@$(BIN)/xraycap report $(IMAGES)
	@echo
	@echo "Where to go next:"
	@echo "  $(BIN)/xraycap report frontal.png lateral.png   your own files, PNG, JPEG or DICOM"
	@echo "  $(BIN)/xraycap --help                           the other commands"
	@echo "  nbs/00_reports.ipynb                       the course, from its first chapter"

test: .venv/.dev  ## the linter, modules in step with the notebooks, then every notebook, then tests/
	$(BIN)/python tools/run_tests.py

test-slow: .venv/.dev  ## the slow cells and the slow tests too
	$(BIN)/nbdev_test --n_workers 1 --do_print --flags slow
	$(BIN)/pytest -q --slow tests

# What both ends of the version ranges are proven with: shapes, training, the command line, a notebook's module
ENDS := tests/test_lstm.py tests/test_batches.py tests/test_training.py tests/test_cli.py tests/test_captioner.py tests/test_tables.py
USER_TESTS := pytest nbformat psutil

test-oldest:  ## tests/ of what depends on others, with the oldest versions that settings.ini takes (.venv-oldest)
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q -e '.[app,dicom]' $(USER_TESTS) -c tests/oldest.txt
	.venv-oldest/bin/python -m pytest -q $(ENDS)

test-newest:  ## the same with the newest there are (.venv-newest)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install -q -U -e '.[app,dicom]' $(USER_TESTS)
	.venv-newest/bin/python -m pytest -q $(ENDS)

KILLS ?= 10
soak: .venv/.dev  ## kill what writes at random moments and see that the next run ends right (KILLS=20, JOBS="train report")
	$(BIN)/python tools/soak.py --kills $(KILLS) $(JOBS)

export: .venv/.dev  ## notebooks -> xraycap/ and README.md, and clean notebooks
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	tools/readme.sh .

refresh: .venv/.dev  ## run NB="nbs/04_text.ipynb ..." as the tests do and keep the outputs (FLAGS=slow: the slow cells too)
	FLAGS="$(FLAGS)" $(BIN)/python tools/refresh_outputs.py $(NB)

docs: .venv/.dev  ## the site, in _docs/
	rm -rf _proc
	$(TOOLS_FIRST) nbdev_docs

bench: .venv/.dev  ## speed beside others' and the machine's limit: a table, and bench/results.json (PARTS="search start" for some)
	$(BIN)/python -m bench $(PARTS)

dist: .venv/.dev  ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --quiet

clean:  ## remove what was built, not the virtual environment
	rm -rf build dist _docs _proc

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */: /'

.venv/.user: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e .
	touch $@

.venv/.dev: settings.ini setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'
	@[ ! -e .git ] || git config --local include.path ../.gitconfig
	touch .venv/.user $@
