.PHONY: check test lint format

check: # all that a commit passes, in a fresh virtual environment
	.ci/run

test: # the fast suite, on what is installed
	python -m pytest -m "not slow"

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .
