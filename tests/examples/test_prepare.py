"""The scripts that make our layouts, on clones in miniature made back from the real data."""

import io
import zipfile

import numpy as np
import pandas as pd
import PIL.Image
import pytest

from examples import prepare_grocery, prepare_omniglot


def test_omniglot_is_what_the_published_archives_hold(data_dir, tmp_path):
    (tmp_path / "clone/python").mkdir(parents=True)
    sets = {}
    for number, name in ((1, "omniglot_small1_train.npz"), (2, "omniglot_small2_test.npz")):
        with np.load(data_dir / "omniglot" / name) as data:
            sets[number] = {key: data[key] for key in data.files}
        data = sets[number]
        shared = data["class_names"][:0] if number == 1 else sets[1]["class_names"][-2:]
        with zipfile.ZipFile(tmp_path / f"clone/python/images_background_small{number}.zip", "w") as archive:
            archive.writestr(f"images_background_small{number}/", "")
            for bits, y, drawer in zip(data["images_packed"], data["y"], data["drawer"], strict=True):
                pixels = np.unpackbits(bits, count=105 * 105).reshape(105, 105)
                file = io.BytesIO()
                PIL.Image.fromarray(pixels == 0).save(file, "PNG")
                name = f"images_background_small{number}/{data['class_names'][y]}/0001_{drawer:02d}.png"
                archive.writestr(name, file.getvalue())
            for name in shared:
                archive.writestr(f"images_background_small{number}/{name}/0001_01.png", file.getvalue())
    assert prepare_omniglot.main([str(tmp_path / "clone"), str(tmp_path / "made")]) == 0
    for number, name in ((1, "omniglot_small1_train.npz"), (2, "omniglot_small2_test.npz")):
        with np.load(tmp_path / "made" / name) as made:
            assert set(made.files) == set(sets[number])
            for key in made.files:
                np.testing.assert_array_equal(made[key], sets[number][key], err_msg=key)


def test_grocery_has_the_splits_of_the_given_table(data_dir, tmp_path):
    table = pd.read_csv(data_dir / "grocery/labels.csv").drop_duplicates(["class_name", "source_split"])
    clone = tmp_path / "clone/dataset"
    for split, rows in table.groupby("source_split"):
        published = [f"{split}/Kind/{name}/{name}_007.jpg" for name in rows.class_name]
        for path in published:
            (clone / path).parent.mkdir(parents=True)
            PIL.Image.new("RGB", (58, 48), "orange").save(clone / path)
        (clone / f"{split}.txt").write_text(
            "".join(f"{path}, 0, 0\n" for path in [*published, f"{split}/x/Plum/1.jpg"])
        )
    classes = table.drop_duplicates("class_name")
    pd.DataFrame(
        {
            "Class Name (str)": [*classes.class_name, "Plum"],
            "Class ID (int)": [*classes.class_id, 24],
            "Coarse Class Name (str)": [*classes.coarse_name, "Plum"],
            "Coarse Class ID (int)": [*classes.coarse_id, 15],
        }
    ).to_csv(clone / "classes.csv", index=False)
    assert prepare_grocery.main([str(tmp_path / "clone"), str(tmp_path / "made")]) == 0
    made = pd.read_csv(tmp_path / "made/labels.csv")
    columns = [column for column in table.columns if column != "path"]
    order = ["class_id", "source_split"]
    pd.testing.assert_frame_equal(
        made.sort_values(order)[columns].reset_index(drop=True),
        table.sort_values(order)[columns].reset_index(drop=True),
    )
    with PIL.Image.open(tmp_path / "made" / made.path[0]) as photo:
        assert photo.size == (224, 224)


@pytest.mark.parametrize("script", [prepare_grocery, prepare_omniglot])
def test_a_folder_that_is_no_clone_is_told(script, tmp_path, capsys):
    assert script.main([str(tmp_path), str(tmp_path / "made")]) == 2
    assert "expected a clone" in capsys.readouterr().err
