"""Small networks of keras_hub."""

import pytest

from tests import hub_presets


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return hub_presets.tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return hub_presets.tiny_pictures(tmp_path_factory.mktemp("dinov2"))
