"""The head as modules of sentence-transformers: what the files say, and what the package itself makes of them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from xbm_keras import Head
from xbm_keras.export.sentence_transformers import export_modules
from xbm_keras.geometry import unit_length

FEATURES = np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32)


def head_of(kind="linear", **options):
    head = Head(5, kind, **options)
    head.build((None, 12))
    head.set_weights([np.random.default_rng(1).normal(size=weight.shape) for weight in head.get_weights()])
    return head


@pytest.mark.parametrize("kind", ["linear", "residual"])
def test_the_files_hold_the_head(tmp_path, kind):
    head = head_of(kind)
    folder = export_modules(head, tmp_path / "made/here")
    weights = load_file(folder / "1_Dense/model.safetensors")
    vectors = unit_length(FEATURES) @ weights["linear.weight"].T + weights["linear.bias"]
    np.testing.assert_allclose(unit_length(vectors), head(unit_length(FEATURES)), atol=1e-6)
    about = json.loads((folder / "1_Dense/config.json").read_text())
    assert (about["in_features"], about["out_features"], about["bias"]) == (12, 5, True)
    paths = [module["path"] for module in json.loads((folder / "modules.json").read_text())]
    assert paths == ["0_Normalize", "1_Dense", "2_Normalize"]
    assert all((folder / path).is_dir() for path in paths)


def test_the_package_gives_the_same(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch, by [modules]")
    package = pytest.importorskip("sentence_transformers")
    head = head_of()
    model = package.SentenceTransformer(str(export_modules(head, tmp_path / "head")), device="cpu")
    found = torch.nn.Sequential(*model)({"sentence_embedding": torch.tensor(FEATURES)})["sentence_embedding"]
    np.testing.assert_allclose(found.detach().numpy(), head(unit_length(FEATURES)), atol=1e-5)


@pytest.mark.parametrize("head", [lambda: head_of("mlp"), lambda: head_of(power=0.5), lambda: head_of(sides="two")])
def test_what_no_dense_module_computes_is_refused(tmp_path, head):
    with pytest.raises(ValueError, match="expected one FC layer"):
        export_modules(head(), tmp_path / "head")
    assert not (tmp_path / "head").exists()
