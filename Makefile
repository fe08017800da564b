# Every target makes what it needs, the virtual environment first.
PYTHON ?= python3
BIN := .venv/bin
TOOLS_FIRST := PATH="$(CURDIR)/tools:$(CURDIR)/$(BIN):$$PATH"
export OMP_NUM_THREADS ?= 1

.PHONY: report test test-slow soak export refresh docs bench dist clean help

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
