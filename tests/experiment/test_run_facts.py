"""What a report says of its run."""

import pytest

from xbm_keras.config.yaml_files import check_config
from xbm_keras.experiment import run_facts

RUN = {"data": {"source": "features", "path": "x.npz"}, "backbone": {"kind": "none"}}
METRICS = {"validation": {"epoch": 1, "start": "lda"}, "phase": "refit"}


@pytest.mark.parametrize(
    ("head", "width", "widths"),
    [({}, 64, "64"), ({}, 576, "128"), ({"embedding_dim": 8}, 64, "8"), ({"widths": [4, 8]}, 64, "4, 8")],
)
def test_the_head_is_as_wide_as_it_was(head, width, widths):
    facts = run_facts._recipe(check_config({**RUN, "head": head}, "x"), width, 100, METRICS)
    assert facts["Head"].endswith(f", {width} → {widths} dimensions, start lda")
