"""The configs that say what to expect give it. Each is a real run, of minutes."""

import re

import pytest

from tests.cli.runs import run
from tests.conftest import ROOT

EXPECTED = re.compile(r"^# Expected: (\w+) of (\w+) (0\.\d+)", re.MULTILINE)
CONFIGS = {path.stem: EXPECTED.search(path.read_text("utf-8")) for path in sorted(ROOT.glob("configs/*.yaml"))}


def test_several_configs_say_what_to_expect():
    assert {"default", "clinc150", "grocery", "medquad", "scifact"} <= {name for name, said in CONFIGS.items() if said}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, said in CONFIGS.items() if said])
def test_a_config_gives_what_it_says(data_dir, tmp_path, name):
    metric, protocol, score = CONFIGS[name].groups()
    metrics = run(ROOT / f"configs/{name}.yaml", tmp_path / "run")
    assert metrics[protocol]["trained"][metric] == pytest.approx(float(score), abs=0.005)
