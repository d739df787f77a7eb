"""The commands and the code of the README, in its order, on a few photos."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
TESTED_ELSEWHERE = {
    "python train.py": "cli/test_train_glyphs.py",
    "python train.py --config configs/cars196.yaml": "data/test_tfds.py, on a data set that can be had offline",
    "python train.py --config configs/text.yaml --set data.path=my_texts.jsonl": "cli/test_train_hub.py: needs [hub]",
    "python train.py --config configs/pairs.yaml --set data.path=my_pairs": "cli/test_train_hub.py: needs [hub]",
    "python tune.py --config configs/clinc150.yaml --workdir runs/search --max_trials 60 --parallel 2": "tuning/",
    "xbm-keras export --model runs/my_photos --output my_photos.onnx": "export/test_other_runtimes.py: needs [onnx]",
    "xbm-keras serve --model runs/my_photos --index runs/my_photos/index --pictures my_photos": "serve/test_server.py",
}


def steps():
    """Commands and blocks of Python, as they come in the README, and those of the page for users of the library."""
    text = README + (ROOT / "docs/library.md").read_text("utf-8")
    found = re.findall(r"```(bash|python)\n(.*?)```|\| `((?:python|xbm-keras) [^`]*)` \|", text, re.DOTALL)
    for language, block, command in found:
        if language == "python":
            yield [sys.executable, "-c", block]
        else:
            for line in (command or block).splitlines():
                line = line.split(" && ")[-1].strip()
                program, *arguments = line.split()
                programs = {"python": [], "xbm-keras": ["-m", "xbm_keras.cli"]}
                if program in programs and line not in TESTED_ELSEWHERE:
                    yield [sys.executable, *programs[program], *arguments]


def test_what_is_tested_elsewhere_is_in_the_readme():
    for command in TESTED_ELSEWHERE:
        assert command in README


def links_of(page):
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    return set(re.findall(r"(?:\]\(|(?:src|srcset)=\")([^)#:\"]+)", prose))


def test_the_index_of_docs_names_each_page():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - {"README.md"} <= links_of("docs/README.md")


def test_the_readme_is_read_in_one_go():
    assert len(README.splitlines()) <= 140


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert not [link for link in links_of(page) if not (ROOT / page).parent.joinpath(link).exists()]


def test_the_picture_and_its_dark_twin_differ_in_colours_alone():
    """Written out: not all viewers know variables of CSS."""
    light, dark = ((ROOT / f"docs/{name}.svg").read_text("utf-8") for name in ("pipeline", "pipeline-dark"))
    assert re.sub("#[0-9a-f]{6}", "", light) == re.sub("#[0-9a-f]{6}", "", dark)
    assert light != dark
    assert "var(" not in light


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
    named = re.findall(r"\b(?:tests|xbm_keras|benchmarks|examples)/[\w/]+\.\w+", (ROOT / page).read_text("utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.slow
def test_the_readme_runs(data_dir, tmp_path):
    for name in ("train.py", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    rows = []
    for folder in sorted((data_dir / "grocery/test").iterdir())[:8]:
        for photo in sorted(folder.glob("*.jpg"))[:6]:
            path = tmp_path / "my_photos" / folder.name / photo.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo, path)
            rows.append({"path": f"{folder.name}/{photo.name}", "label": folder.name})
    shutil.copy(path, tmp_path / "photo.jpg")
    (tmp_path / "more_photos").mkdir()
    shutil.copy(path, tmp_path / "more_photos/1.jpg")
    pd.DataFrame(rows).to_csv(tmp_path / "my_photos/items.csv", index=False)
    vectors = np.random.default_rng(0).normal(size=(240, 320)).astype(np.float32)
    np.savez(tmp_path / "my_vectors.npz", features=vectors, label=np.arange(240) % 12)
    np.save(tmp_path / "my_vectors.npy", vectors)
    pd.DataFrame({"kind": [f"kind {i % 12}" for i in range(240)]}).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "my_vectors").mkdir()
    np.save(tmp_path / "my_vectors/queries.npy", vectors[:120])
    np.save(tmp_path / "my_vectors/documents.npy", vectors[::-1] + 0.1)
    np.save(tmp_path / "my_vectors/pairs.npy", np.stack([np.arange(120), 239 - np.arange(120)], axis=1))
    weights = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"
    (tmp_path / "keras/models").mkdir(parents=True)
    (tmp_path / "keras/models" / weights).symlink_to(data_dir / "weights" / weights)
    environment = {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "KERAS_HOME": str(tmp_path / "keras"),
        "PYTHONPATH": str(ROOT),
    }
    for step in steps():
        done = subprocess.run(
            step, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, f"{' '.join(step)[:300]}\n{done.stderr[-3000:]}"
    assert "trained" in json.loads((tmp_path / "runs/my_photos/metrics.json").read_text())["leave_one_out"]
    assert np.load(tmp_path / "vectors.npy").shape[1] == 128
