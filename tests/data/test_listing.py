"""What lies in a folder of pictures: read, or left out and counted."""

import json
import os

import numpy as np
import pytest

from tests.picture_files import encode, noise
from xbm_keras.data.dataset import Dataset
from xbm_keras.data.listing import describe, list_pictures
from xbm_keras.data.sources import DataError, ImageFolder
from xbm_keras.data.splits import Splits
from xbm_keras.experiment.run_folder import write_data

PICTURE = encode(noise(), "JPEG")


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)


def test_every_suffix_that_is_read_counts_and_the_others_are_counted(tmp_path):
    read = ["a/1.jpg", "a/2.JPG", "a/3.jfif", "a/4.Tif", "a/5.tiff", "a/6.webp", "a/7.jpe", "b/deep/er/8.png"]
    put(tmp_path, *read, "a/x.xyz", "a/y.XYZ", "b/notes.txt", "b/README", "beside.jpg", "beside.csv")
    found = list_pictures(tmp_path, only_in_folders=True)
    assert found.pictures == sorted(read)
    assert found.ignored == {".xyz": 2, ".txt": 1, ".csv": 1, "no suffix": 1, "in no class folder": 1}
    assert list_pictures(tmp_path).pictures == sorted([*read, "beside.jpg"])


def test_hidden_files_and_those_of_systems_are_left_out(tmp_path):
    left_out = [
        ".ipynb_checkpoints/1.jpg", ".git/2.jpg", "a/.ipynb_checkpoints/1-checkpoint.jpg", "a/._1.jpg", "a/.hidden.png",
        "a/@eaDir/1.jpg", "@eaDir/a/1.jpg", "__MACOSX/a/1.jpg", "__MACOSX/a/._1.jpg", "a/Thumbs.db", "a/desktop.ini",
        "$RECYCLE.BIN/1.jpg", "System Volume Information/1.jpg", "lost+found/1.jpg",
    ]  # fmt: skip
    put(tmp_path, "a/1.jpg", *left_out)
    found = list_pictures(tmp_path)
    assert found.pictures == ["a/1.jpg"]
    assert found.ignored == {"hidden": 13}  # a folder counts once
    assert found.without_pictures == []


def test_a_hidden_root_is_no_reason(tmp_path):
    put(tmp_path, ".cache/photos/a/1.jpg")
    assert list_pictures(tmp_path / ".cache/photos").pictures == ["a/1.jpg"]


def test_links_are_followed_once(tmp_path):
    top, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    put(top, "b/1.jpg", "z real/2.jpg")
    put(elsewhere, "pears/3.jpg", "pears/deep/4.jpg")
    (top / "pear").symlink_to(elsewhere / "pears")
    (top / "b/linked.jpg").symlink_to(elsewhere / "pears/3.jpg")
    assert list_pictures(top).pictures == ["b/1.jpg", "b/linked.jpg", "pear/3.jpg", "pear/deep/4.jpg", "z real/2.jpg"]
    (top / "a link").symlink_to(top / "z real")  # before it in the alphabet, and yet it stays where it is
    (top / "pear2").symlink_to(elsewhere / "pears/deep")
    (top / "b/up").symlink_to(top)
    (top / "b/itself").symlink_to(top / "b/itself")
    (elsewhere / "pears/circle").symlink_to(elsewhere)
    (elsewhere / "gone.jpg").symlink_to(elsewhere / "nowhere")
    found = list_pictures(top)
    assert found.pictures == ["b/1.jpg", "b/linked.jpg", "pear/3.jpg", "pear/deep/4.jpg", "z real/2.jpg"]
    assert found.ignored == {"linked again": 4, "broken link": 2}
    assert found.without_pictures == ["a link", "pear2"]


def test_a_link_to_the_folder_above_ends(tmp_path):
    top = tmp_path / "all/photos"
    put(top, "a/1.jpg")
    put(tmp_path / "all", "other/2.jpg")
    (top / "up").symlink_to(tmp_path / "all")
    assert list_pictures(top).pictures == ["a/1.jpg", "up/other/2.jpg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads all folders")
def test_a_folder_without_permission_is_counted(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "b").chmod(0)
    try:
        assert list_pictures(tmp_path).ignored == {"unreadable folder": 1}
    finally:
        (tmp_path / "b").chmod(0o700)


def test_an_unreadable_folder_is_counted(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("/b"):
            raise PermissionError
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    found = list_pictures(tmp_path)
    assert (found.pictures, found.ignored) == (["a/1.jpg"], {"unreadable folder": 1})
    assert describe(found.ignored, found.without_pictures) == "1 unreadable folder; no picture in b"


def test_a_source_tells_what_it_left_out(tmp_path):
    put(tmp_path, "a/1.jpg", "a/2.xyz", "b/3.xyz", "b/.x.jpg")
    source = ImageFolder(str(tmp_path))
    assert source.items.keys.tolist() == ["a/1.jpg"]
    assert source.ignored == {".xyz": 2, "hidden": 1}
    assert source.without_pictures == ["b"]
    put(tmp_path / "none", "a/1.xyz", "a/2.xyz")
    with pytest.raises(DataError, match=r"holds no pictures in folders.*it has 2 \.xyz; no picture in a"):
        ImageFolder(str(tmp_path / "none"))


def test_data_json_and_the_terminal_tell_what_was_left_out(tmp_path, caplog):
    put(tmp_path, "a/1.jpg", "a/2.jpg", "a/x.xyz", "a/y.xyz", "b/z.zip", "a/.hidden.jpg")
    source = ImageFolder(str(tmp_path))
    nobody, both = np.empty(0, np.int64), np.arange(2)
    dataset = Dataset(
        features=np.eye(2, dtype=np.float32),
        labels=np.zeros(2, np.int64),
        label_names=["a"],
        sample_ids=both,
        keys=source.items.keys,
        splits=Splits(both, nobody, nobody),
        skipped={},
        num_computed=2,
        source=source,
        source_positions=both,
    )
    with caplog.at_level("WARNING", "xbm_keras"):
        write_data(tmp_path, dataset)
    about = json.loads((tmp_path / "data.json").read_text())
    assert about["ignored"] == {".xyz": 2, ".zip": 1, "hidden": 1}
    assert about["folders_without_pictures"] == ["b"]
    assert "2 .xyz, 1 .zip, 1 hidden; no picture in b" in caplog.text
