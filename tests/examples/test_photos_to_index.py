"""From photos to a searched index, in miniature: the steps, not the quality."""

import numpy as np
import PIL.Image
import pytest

from examples import photos_to_index


def test_photos_are_found_by_what_was_exported(tmp_path, capsys, monkeypatch):
    rng = np.random.default_rng(0)
    for kind in range(10):
        (tmp_path / f"photos/kind {kind}").mkdir(parents=True)
        for number in range(4):
            pixels = np.uint8(25 * kind) + rng.integers(0, 9, (40, 40, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / f"photos/kind {kind}/{number}.png")
    monkeypatch.setenv("HOME", str(tmp_path))  # of the feature cache
    arguments = ["--output", str(tmp_path / "out"), "--weights", "none", "--size", "32"]
    scores = photos_to_index.main([str(tmp_path / "photos"), *arguments])
    assert set(scores) == {"frozen", "trained"}
    said = capsys.readouterr().out
    assert "40 photos of 10 classes, 20 of which train." in said
    nearest = said.split("Nearest to ")[1].splitlines()
    assert nearest[1].split(None, 1)[1] == "kind 0/0.png"
    assert float(nearest[1].split()[0]) == pytest.approx(1.0, abs=1e-3)
    assert len(nearest) == 6
