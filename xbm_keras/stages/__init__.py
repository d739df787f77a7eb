"""One file per box of the pipeline; alphabetical order is data-flow order."""
