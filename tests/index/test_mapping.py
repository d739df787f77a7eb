"""Maps between the spaces of two networks: what made the pairs is found again, and the command maps the rest."""

import numpy as np
import pyarrow
import pytest

from xbm_keras.cli import index
from xbm_keras.index import mapping
from xbm_keras.index.galleries import read_index, write_index
from xbm_keras.index.gallery import Gallery
from xbm_keras.index.incoming import changes


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def rotation(width, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def around(center, num_rows, seed, spread=0.3):
    """Vectors about a direction, as those of networks are."""
    noise = np.random.default_rng(seed).normal(size=(num_rows, len(center))) * spread
    return unit(center + noise / np.sqrt(len(center)))


@pytest.mark.parametrize(("old_width", "new_width"), [(12, 12), (12, 20), (20, 12)])
def test_a_rotation_is_found_from_few_pairs(old_width, new_width):
    """The narrower side holds all 12 dimensions."""
    inside = around(np.arange(12.0), 500, seed=0)
    old = (inside @ rotation(max(12, old_width), 1)[:12, :old_width]).astype(np.float32)
    new = (inside @ rotation(max(12, new_width), 2)[:12, :new_width]).astype(np.float32)
    found = mapping.fit_map(unit(old[:40]), unit(new[:40]))
    np.testing.assert_allclose(next(iter(mapping.candidates(old[:40], new[:40])))(old), unit(new), atol=0.02)
    assert np.einsum("ne,ne->n", found(old[40:]), unit(new[40:])).min() > 0.999


def test_what_is_no_rotation_is_found_by_an_affine_map():
    old = around(np.ones(10), 3000, seed=0)
    weights = np.random.default_rng(1).normal(size=(10, 6))
    noisy = old @ weights + 0.5 + 0.005 * np.random.default_rng(2).normal(size=(3000, 6))
    new = unit(noisy)
    found = mapping.fit_map(old[:2000], new[:2000])
    assert found.name.startswith("affine of rank 6")
    by_rotation = next(iter(mapping.candidates(old[:2000], new[:2000])))
    errors = [np.square(each(old[2000:]) - new[2000:]).sum(axis=1).mean() for each in (found, by_rotation)]
    assert errors[0] < 0.1 * errors[1]


def test_where_the_answer_has_few_dimensions_a_low_rank_is_chosen():
    rng = np.random.default_rng(0)
    old = around(np.ones(32), 400, seed=0, spread=1.0)
    new = unit(old @ (rng.normal(size=(32, 8)) @ rng.normal(size=(8, 32))) + 1.5 * rng.normal(size=(400, 32)) / 5)
    assert mapping.fit_map(old[:120], new[:120]).name.startswith("affine of rank 8,")


def test_ridge_and_rank_are_those_of_the_formulas():
    """Against the normal equations, and the best approximation of low rank."""
    old, new = around(np.ones(7), 50, seed=3), around(np.arange(1.0, 6.0), 50, seed=4)
    x, y = old - old.mean(axis=0, dtype=float), new - new.mean(axis=0, dtype=float)
    found = {each.name: each for each in mapping.candidates(old, new)}
    damping = 0.1 * np.square(np.linalg.svd(x)[1]).mean() * np.eye(7)
    full = np.linalg.solve(x.T @ x + damping, x.T @ y)
    np.testing.assert_allclose(found["affine of rank 5, ridge 0.1"].weights, full, atol=1e-5)
    stacked = np.concatenate([x, np.sqrt(damping)])  # ridge regression is least squares with these rows more
    left, sizes, right = np.linalg.svd(stacked @ full, full_matrices=False)
    low = np.linalg.lstsq(stacked, (left[:, :2] * sizes[:2]) @ right[:2], rcond=None)[0]
    np.testing.assert_allclose(found["affine of rank 2, ridge 0.1"].weights, low, atol=1e-5)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory):
    """An index of 300 items, and one of the first 200 and 5 others by a rotated network."""
    folder = tmp_path_factory.mktemp("indexes")
    vectors = around(np.ones(8), 300, seed=5, spread=1.5)
    rotated = (vectors @ rotation(8, 6)).astype(np.float32)
    ids, labels = [f"item {i}" for i in range(300)], [f"class {i % 9}" for i in range(300)]
    write_index(folder / "old", Gallery.of(vectors, ids, labels, year=list(range(300))), "old model")
    others = [f"other {i}" for i in range(5)]
    both = np.concatenate([around(np.ones(8), 5, seed=7), rotated[:200]])
    write_index(folder / "new", Gallery.of(both, [*others, *ids[:200]], [*others, *labels[:200]]), "new model")
    return folder, rotated


def test_the_command_maps_what_the_new_index_lacks(indexes, capsys):
    folder, rotated = indexes
    for _ in range(2):  # what was mapped is no pair, and is mapped anew
        assert index.main(["map", f"--index={folder / 'old'}", f"--to={folder / 'new'}"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "of 160 pairs. Of 40 others, the mapped find 1.000 of the 10 nearest, and a MAP@R of 0." in said
        assert "100 items mapped" in said
        gallery, about, _ = read_index(folder / "new")
        assert about["model"] == "new model"
        assert about["items"] == 305
        rows = {row["id"]: row for row in gallery.items.to_pylist()}
        assert rows["item 250"] == {"id": "item 250", "label": "class 7", "year": 250, "mapped": True}
        assert {row["mapped"] for row in rows.values()} == {None, True}
        assert sum(row["mapped"] is True for row in rows.values()) == 100
        place = gallery.items["id"].to_pylist().index("item 250")
        np.testing.assert_allclose(gallery.vectors[place], rotated[250], atol=1e-4)


def test_what_the_held_out_pairs_say(indexes):
    """Of a map that is no good: counted by hand."""
    _, rotated = indexes
    labels = np.array(["a", "b", "", "a", "b", "c", "", "a"], object)
    queries, gallery = rotated[:8], rotated[8:16]
    precisions = []
    for i in range(8):
        others = [j for j in range(8) if j != i]
        ranked = sorted(others, key=lambda j: -float(queries[i] @ gallery[j]))
        relevant = [labels[j] == labels[i] != "" for j in ranked]
        if r := sum(relevant):
            precisions.append(sum(sum(relevant[: n + 1]) / (n + 1) for n in range(r) if relevant[n]) / r)
    assert len(precisions) == 5
    assert mapping.class_score(queries, gallery, labels) == pytest.approx(np.mean(precisions))
    assert mapping.class_score(queries, gallery, np.array(list("abcdefgh"), object)) is None
    nearest = [sorted(set(range(8)) - {i}, key=lambda j: -float(queries[i] @ queries[j]))[:2] for i in range(8)]
    found = np.array([[each[0], i] for i, each in enumerate(nearest)])
    assert mapping.overlap(found, queries) == 0.5


def test_what_is_mapped_counts_as_changed_to_who_looks_at_its_content(indexes):
    old, new = (read_index(indexes[0] / name)[0] for name in ("old", "new"))
    digests = pyarrow.array([f"hash of {each}" for each in old.ids])
    more, _ = mapping.map_gallery(Gallery(old.vectors, old.items.append_column("sha256", digests)), new)
    found = changes(more.items, {each: f"hash of {each}" for each in more.ids}, "")
    assert len(found.wanted) == len(more.items) > 0


def test_what_cannot_be_mapped_is_refused(indexes):
    old, new = (read_index(indexes[0] / name)[0] for name in ("old", "new"))
    few = new.take(np.arange(len(new.items)) < 24)
    with pytest.raises(ValueError, match="Received 19 items that both indexes hold; expected at least 20"):
        mapping.map_gallery(old, few)
    with pytest.raises(ValueError, match="holds all"):
        mapping.map_gallery(old.take(np.arange(300) < 200), new)
