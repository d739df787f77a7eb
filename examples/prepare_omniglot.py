"""Makes the data of configs/omniglot.yaml from a clone of the published Omniglot repository.

    git clone https://github.com/brendenlake/omniglot
    python examples/prepare_omniglot.py omniglot data/omniglot
    XBM_KERAS_DATA=data python train.py --config configs/omniglot.yaml

The first small background set trains and the second one tests, without the alphabets that it shares with the first.
Pictures of one bit are kept packed, 1 for ink.
"""

import argparse
import io
import pathlib
import re
import sys
import zipfile

import numpy as np
import PIL.Image

NAME = re.compile(r"[^/]+/(?P<alphabet>[^/]+)/(?P<character>character\d+)/\d+_(?P<drawer>\d+)\.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=pathlib.Path, help="of the published repository")
    parser.add_argument("target", type=pathlib.Path, help="new folder for the two files")
    options = parser.parse_args(arguments)
    archives = [options.clone / f"python/images_background_small{number}.zip" for number in (1, 2)]
    for archive in archives:
        if not archive.is_file():
            print(f"Received {options.clone}, which holds no {archive.name}; expected a clone.", file=sys.stderr)
            return 2
    options.target.mkdir(parents=True, exist_ok=True)
    train = pack(archives[0], leave_out=())
    test = pack(archives[1], leave_out=train["alphabet_names"])
    np.savez_compressed(options.target / "omniglot_small1_train.npz", **train)
    np.savez_compressed(options.target / "omniglot_small2_test.npz", **test)
    print(f"{len(train['y'])} pictures to train, {len(test['y'])} to test in {options.target}")
    return 0


def pack(archive: pathlib.Path, leave_out) -> dict[str, np.ndarray]:
    """Pictures and labels of an archive, by alphabet, character and drawer."""
    pictures, classes, alphabets, drawers = [], [], [], []
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            parts = NAME.fullmatch(name)
            if parts and parts["alphabet"] not in leave_out:
                with PIL.Image.open(io.BytesIO(files.read(name))) as picture:
                    pictures.append(~np.asarray(picture.convert("1")))
                classes.append(f"{parts['alphabet']}/{parts['character']}")
                alphabets.append(parts["alphabet"])
                drawers.append(int(parts["drawer"]))
    class_names, y = np.unique(classes, return_inverse=True)
    alphabet_names, alphabet = np.unique(alphabets, return_inverse=True)
    return {
        "images_packed": np.packbits(np.stack(pictures).reshape(len(pictures), -1), axis=1),
        "image_shape": np.array(pictures[0].shape, np.int32),
        "y": y.astype(np.int32),
        "class_names": class_names,
        "alphabet": alphabet.astype(np.int32),
        "alphabet_names": alphabet_names,
        "drawer": np.array(drawers, np.uint8),
    }


if __name__ == "__main__":
    sys.exit(main())
