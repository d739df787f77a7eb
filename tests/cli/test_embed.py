"""`xbm-keras embed` on an exported model of features, and what it refuses."""

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from tests.export.test_saved_model import encoded, image_model
from tests.small_models import make_model
from xbm_keras.cli import embed
from xbm_keras.export.saved_model import export_encoder
from xbm_keras.index.exported_model import ExportedModel


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of features and of pictures."""
    folder = tmp_path_factory.mktemp("exports")
    model = make_model()
    model.build({"features": (None, 6)})
    return export_encoder(model, folder / "features"), export_encoder(image_model(), folder / "pictures")


def test_features_become_vectors_in_both_forms(exported, tmp_path):
    features = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    np.save(tmp_path / "x.npy", features)
    command = [f"--model={exported[0]}", f"--input={tmp_path}/x.npy"]
    expected = ExportedModel(exported[0], "serve_features").embed_features(features)
    assert embed.main([*command, f"--output={tmp_path}/out.npy"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)
    assert pd.read_csv(tmp_path / "out.csv").id.tolist() == [0, 1, 2, 3, 4]
    assert embed.main([*command, f"--output={tmp_path}/out.parquet"]) == 0
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ["0", "1", "2", "3", "4"]
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), expected)


def test_pictures_that_can_be_read_become_vectors(exported, tmp_path):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    for i in range(3):
        (folder / f"a/{i}.png").write_bytes(encoded(20 + i, 30, seed=i))
    (folder / "a/broken.png").write_bytes(b"no picture")
    assert embed.main([f"--model={exported[1]}", f"--input={folder}", f"--output={tmp_path}/out.npy"]) == 0
    expected, _ = ExportedModel(exported[1]).embed([(folder / f"a/{i}.png").read_bytes() for i in range(3)])
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)
    assert pd.read_csv(tmp_path / "out.csv").id.tolist() == ["a/0.png", "a/1.png", "a/2.png"]


def test_texts_are_read_with_their_ids(tmp_path, monkeypatch):
    class Lengths:
        """The vector of a text is its length."""

        def __init__(self, *_):
            pass

        def embed(self, source, positions):
            return np.array([[len(source.load(i))] for i in positions], "float32"), positions, {}

    monkeypatch.setattr(embed, "ExportEmbedder", Lengths)
    (tmp_path / "x.txt").write_text("one\nthree\n")
    pd.DataFrame({"id": ["u", "v"], "text": ["one", "three"]}).to_parquet(tmp_path / "x.parquet")
    for name, expected in (("x.txt", ["0", "1"]), ("x.parquet", ["u", "v"])):
        ids, vectors = embed.embed(tmp_path, tmp_path / name)
        assert (ids, vectors.ravel().tolist()) == (expected, [3, 5])


@pytest.mark.parametrize(
    ("input", "output", "told"),
    [
        ("x.txt", "out.csv", "ends in .npy or .parquet"),
        ("none.txt", "out.npy", "which is no file"),
        ("none.csv", "out.npy", "which is no file"),
        ("x.csv", "out.npy", "'text'"),
    ],
)
def test_what_cannot_be_done_is_told(exported, tmp_path, input, output, told, capsys):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as exit:
        embed.main([f"--model={exported[0]}", f"--input={tmp_path / input}", f"--output={tmp_path / output}"])
    assert exit.value.code == 2
    assert told in capsys.readouterr().err
