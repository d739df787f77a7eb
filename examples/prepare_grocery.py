"""Makes the data of configs/grocery.yaml from a clone of the published Grocery Store Dataset.

    git clone https://github.com/marcusklasson/GroceryStoreDataset
    python examples/prepare_grocery.py GroceryStoreDataset data/grocery
    XBM_KERAS_DATA=data python train.py --config configs/grocery.yaml

Photos are cropped to their central square and resized to 224x224. `labels.csv` lists them with their class and splits:
`source_split` is the published one; `openset_split` and `openset_split_interleaved` divide the classes, in the order of
their ids, into halves and into even and odd places. Without `--all-classes` these are 65 of the 81 classes, those that
the scores in the README were measured on.
"""

import argparse
import csv
import pathlib
import sys

import PIL.Image
import PIL.ImageOps

SIZE = 224
QUALITY = 88
COLUMNS = ("path", "class_id", "class_name", "coarse_id", "coarse_name", "source_split")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=pathlib.Path, help="of the published repository")
    parser.add_argument("target", type=pathlib.Path, help="new folder for photos and labels.csv")
    parser.add_argument("--all-classes", action="store_true", help="all 81 classes")
    options = parser.parse_args(arguments)
    source = options.clone / "dataset"
    if not (source / "classes.csv").is_file():
        print(f"Received {options.clone}, which holds no dataset/classes.csv; expected a clone.", file=sys.stderr)
        return 2
    classes = read_classes(source / "classes.csv")
    if not options.all_classes:
        classes = {name: about for name, about in classes.items() if about["class_id"] % 5 != 4}
    rows = []
    for split in ("train", "val", "test"):
        for line in (source / f"{split}.txt").read_text("utf-8").splitlines():
            photo = pathlib.PurePosixPath(line.split(",")[0].strip())
            name = photo.parent.name
            if name in classes:
                path = f"{split}/{name}/{photo.name}"
                square(source / photo, options.target / path)
                rows.append({"path": path, "class_name": name, "source_split": split, **classes[name]})
    write_labels(options.target / "labels.csv", rows)
    print(f"{len(rows)} photos of {len(classes)} classes in {options.target}")
    return 0


def read_classes(path: pathlib.Path) -> dict[str, dict]:
    """Ids and the coarse class of each fine class."""
    with path.open(encoding="utf-8", newline="") as file:
        return {
            row["Class Name (str)"]: {
                "class_id": int(row["Class ID (int)"]),
                "coarse_id": int(row["Coarse Class ID (int)"]),
                "coarse_name": row["Coarse Class Name (str)"],
            }
            for row in csv.DictReader(file)
        }


def square(source: pathlib.Path, target: pathlib.Path) -> None:
    """Write the central square of a photo."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with PIL.Image.open(source) as photo:
        fitted = PIL.ImageOps.fit(photo.convert("RGB"), (SIZE, SIZE), PIL.Image.Resampling.LANCZOS)
    fitted.save(target, quality=QUALITY)


def write_labels(path: pathlib.Path, rows: list[dict]) -> None:
    """Write the table, with the two splits by class."""
    ids = sorted({row["class_id"] for row in rows})
    first_half = set(ids[: (len(ids) + 1) // 2])
    even = set(ids[::2])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, "openset_split", "openset_split_interleaved"])
        for row in sorted(rows, key=lambda row: (row["class_id"], ("train", "val", "test").index(row["source_split"]))):
            sides = ["train" if row["class_id"] in chosen else "test" for chosen in (first_half, even)]
            writer.writerow([*(row[column] for column in COLUMNS), *sides])


if __name__ == "__main__":
    sys.exit(main())
