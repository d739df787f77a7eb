"""What all benchmarks print."""

import argparse

from benchmarks import common


def test_a_table_in_a_file_is_not_cut(capsys):
    row = {"name": "x" * 30} | {f"column {i}": "+0.0046 (+0.0011 to +0.0082)" for i in range(6)}
    common.report([row], argparse.Namespace(json=None))
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 30 in line and line.count("+0.0046 (+0.0011 to +0.0082)") == 6 for line in lines)
