"""`xbm-keras cache` looks after blocks as it does after features. What a killed run leaves: test_known_neighbors."""

import numpy as np

from xbm_keras.cli import cache
from xbm_keras.feature_cache.kept_blocks import kept_blocks, path_of

ABOUT = {"what": "neighbours", "items": 2500, "k": 3}


def test_the_tool_lists_checks_and_deletes_blocks(tmp_path, capsys):
    folder, tool = tmp_path / "0123456789abcdef", ["--dir", str(tmp_path)]
    blocks = list(kept_blocks(folder, ABOUT, [0, 2], lambda start: np.full((2, 3), start, np.int32)))
    assert [block[0, 0] for block in blocks] == [0, 2]
    assert cache.main([*tool, "list"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if folder.name in line)
    assert "neighbours" in line
    assert "2,500" in line
    assert cache.main([*tool, "check"]) == 0
    path_of(folder, 2).write_bytes(path_of(folder, 2).read_bytes()[:-4])
    assert cache.main([*tool, "check"]) == 1
    assert f"{path_of(folder, 2)}: cannot be read; the next run that needs it" in capsys.readouterr().out
    assert cache.main([*tool, "delete", folder.name]) == 0
    assert not list(folder.glob("*.npy"))
