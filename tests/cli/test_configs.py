"""Each config says its command, what to expect and in how long; those that name a score give it."""

import re

import pytest

from tests.cli.runs import run
from tests.conftest import ROOT

HEADERS = {
    path.stem: re.match(r"(?:#.*\n)*", path.read_text("utf-8"))[0] for path in sorted(ROOT.glob("configs/*.yaml"))
}
SCORE = re.compile(r"^# Expected: (\w+) of (\w+) (0\.\d+)", re.MULTILINE)
SCORES = {name: SCORE.search(header) for name, header in HEADERS.items()}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_says_command_and_what_to_expect_of_it_on_which_machine(name):
    _, command, expected, *_ = (
        " ".join(line[2:] for line in part.splitlines()) for part in HEADERS[name].split("\n#\n")
    )
    install = r'(pip install "\.\[hub\]" && )?'
    assert re.fullmatch(rf"{install}python train\.py --config configs/{name}\.yaml( --set \S+)*", command.strip())
    assert re.match("Expected: (what your|not measured)", expected) or SCORES[name]
    assert re.search("(minutes?|seconds) .*on two CPU cores|, neither score nor minutes,", expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, said in SCORES.items() if said])
def test_a_config_gives_what_it_says(data_dir, tmp_path, name):
    metric, protocol, score = SCORES[name].groups()
    metrics = run(ROOT / f"configs/{name}.yaml", tmp_path / "run")
    assert metrics[protocol]["trained"][metric] == pytest.approx(float(score), abs=0.005)
