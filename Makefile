# Everything works in a fresh clone with Python 3.11 or later and nothing else: `.venv` is made when missing or stale.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TESTS ?=
# What the benchmarks share; each of the others is one.
SHARED := benchmarks/record.py benchmarks/servers.py benchmarks/yardstick.py benchmarks/open_loop.py

.PHONY: demo test slow check docs bench clean help

help:
	@echo "make demo    from sample data to a model that answers over HTTP, in a few minutes"
	@echo "make test    the tests (make slow: the proofs that take longer)"
	@echo "make check   lint, types, import direction, docs"
	@echo "make docs    writes the generated pages of docs/ anew"
	@echo "make bench   the benchmarks"

demo: $(READY)
	@$(BIN)/python examples/demo.py

# A file's tests share what is costly to make, so they stay in one process. Much of a test is waiting for others to start.
test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(TESTS)

slow: $(READY)
	@$(BIN)/python -m pytest -m slow $(TESTS)

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/test_house.py tests/test_docs.py

docs: $(READY)
	@$(BIN)/python docs/generate.py

bench: $(READY)
	@for script in $(filter-out $(SHARED),$(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf .venv build dist

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "headrace needs Python 3.11 or later; name one with PYTHON=..., as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up .venv (once; a few minutes, mostly torch)"
	@$(PYTHON) -m venv .venv \
		|| { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,explain,onnx,openvino,postgres,schema,traces]'
	@touch $@
