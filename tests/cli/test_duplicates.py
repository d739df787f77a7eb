"""`xbm-keras duplicates` and `index label` on an index: tables, and a page that a browser shows."""

import shutil

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_label_noise import clusters
from tests.export.test_saved_model import encoded
from tests.serve.test_server import Browser
from xbm_keras.cli import duplicates, index
from xbm_keras.geometry import unit_rows
from xbm_keras.index.galleries import write_index
from xbm_keras.index.gallery import Gallery


@pytest.fixture
def built(tmp_path):
    """An index of 60 items of four classes: a copy under another label, two out of place, six without labels."""
    vectors, labels = clusters(4, 15, 0.1)
    truth = labels.copy()
    vectors[16] = vectors[1]
    vectors[34] = vectors[33] * [1, 1, 1, 1, 1, 1, 1, 1.001]
    labels[16], labels[33], labels[34] = "class 1", "class 3", "class 3"
    labels[50:56] = ""
    ids = [f"pictures <b>/{i}.png" for i in range(60)]
    (tmp_path / "pictures <b>").mkdir()
    for i in (1, 16, 33):
        (tmp_path / ids[i]).write_bytes(encoded(20, 30, seed=i))
    texts = [None if i in (1, 16, 33) else f"text of {i} & <more>" for i in range(60)]
    write_index(tmp_path / "index", Gallery.of(unit_rows(vectors).astype(np.float32), ids, labels, text=texts), "model")
    return tmp_path, ids, truth


def test_the_table_and_the_page_of_an_index(built):
    top, ids, _ = built
    arguments = [f"--index={top}/index", "--min_score=0.99999", f"--output={top}/found", f"--pictures={top}"]
    assert duplicates.main(arguments) == 0
    table = pd.read_csv(top / "found.csv", keep_default_na=False)
    (pair,) = table.query("kind == 'other_label'").to_dict("records")
    assert pair.pop("similarity") == pytest.approx(1, abs=1e-6)
    assert pair == {
        "kind": "other_label", "id": ids[1], "label": "class 0", "other_id": ids[16], "other_label": "class 1",
        "identical": True,
    }  # fmt: skip
    out = table.query("kind == 'out_of_place'").set_index("id")
    assert dict(out["other_label"]) == {ids[16]: "class 0", ids[33]: "class 2", ids[34]: "class 2"}
    assert out.loc[ids[33], "other_id"] == ids[34]

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium")
    browser = Browser(program, top / "profile")
    try:
        browser.call("Page.navigate", url=(top / "found.html").as_uri())
        browser.wait_for("document.readyState === 'complete' && document.querySelectorAll('section').length === 3")
        assert browser.run("document.querySelectorAll('#Other-labels article, #other-labels article').length") == 1
        assert browser.run("document.querySelectorAll('#Other-labels img, #other-labels img').length") == 2
        shown = browser.run("[...document.querySelectorAll('img')].filter((i) => i.complete && i.naturalWidth).length")
        assert shown == browser.run("document.querySelectorAll('img').length") >= 4
        text = browser.run("document.body.innerText")
        assert "90% of its neighbours are class 2" in text
        assert "pictures <b>/33.png" in text
        assert "& <more>" in text
    finally:
        browser.process.kill()
        browser.process.wait()


def test_items_without_pictures_are_named_once_and_told_how_to_be_seen(tmp_path, capsys):
    vectors, labels = clusters(4, 15, 0.1)
    vectors[16] = vectors[1]
    ids = [f"item number {i}" for i in range(60)]
    write_index(tmp_path / "index", Gallery.of(unit_rows(vectors).astype(np.float32), ids, labels), "model")
    assert duplicates.main([f"--index={tmp_path}/index", "--min_score=0.99999", f"--output={tmp_path}/found"]) == 0
    assert "--pictures [ROOT=]FOLDER" in capsys.readouterr().out.replace("\n", " ")
    assert (tmp_path / "found.html").read_text("utf-8").count("item number 16<") == 1


def test_labels_for_the_items_of_an_index_that_have_none(built, capsys):
    top, ids, truth = built
    command = ["label", f"--index={top}/index", f"--output={top}/labels.csv"]
    assert index.main(command) == 0
    table = pd.read_csv(top / "labels.csv", keep_default_na=False)
    assert table["id"].tolist() == ids[50:56]
    assert table["suggestion"].tolist() == truth[50:56].tolist()
    assert (table["confidence"] >= 0.9).all()
    assert set(table["nearest"]) <= set(ids) - set(ids[50:56])
    with pytest.raises(SystemExit):
        index.main([*command, "photo.jpg"])
    assert "without --model; expected the model that embedded the index" in capsys.readouterr().err
