"""`xbm-keras COMMAND`: which commands there are."""

import pytest

from xbm_keras.cli.__main__ import COMMANDS, main


@pytest.mark.parametrize(("given", "meant"), [("trian", "train"), ("evalute", "evaluate"), ("serv", "serve")])
def test_a_command_that_is_none_is_told_with_the_nearest(capsys, given, meant):
    assert main([given]) == 2
    told = capsys.readouterr()
    assert f"Received '{given}'; expected one of these commands. Did you mean {meant}?" in told.err
    assert all(f"  {command} " in told.err for command in COMMANDS)
    assert not told.out


def test_a_command_unlike_any_gets_the_list_alone(capsys):
    assert main(["xyzzy"]) == 2
    assert "expected one of these commands.\n" in capsys.readouterr().err
