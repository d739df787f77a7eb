"""How wide an embedding is where nobody says it."""

import pytest

from xbm_keras.config.schema import HeadConfig


@pytest.mark.parametrize(
    ("given", "width", "expected"),
    [
        ({}, 576, 128),
        ({}, 64, 64),
        ({}, None, "auto"),
        ({"sides": "query"}, None, "auto"),
        ({"sides": "query", "embedding_dim": 32}, None, 32),
        ({"sides": "query"}, 384, 384),
        ({"widths": [16, 32]}, 64, 32),
        ({"widths": [16, 32], "embedding_dim": "auto"}, 64, 32),
        ({"embedding_dim": 8}, 64, 8),
        ({"embedding_dim": 65, "start": "random"}, 64, 65),
    ],
)
def test_a_head_for_features_of_a_width(given, width, expected):
    head = HeadConfig(**given).for_features(width)
    assert head.embedding_dim == expected
    assert head == head.for_features(width)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_dim": 128}, "embedding_dim=128 for features of width 64; expected at most 64"),
        ({"widths": [16, 65]}, r"head.widths=\[16, 65\] for features of width 64.*'head\.widths=\[16,64\]'"),
        (
            {"embedding_dim": 32, "sides": "query"},
            "'query' with embedding_dim=32 for features of width 64; expected 64.*Leave head.embedding_dim out, or use",
        ),
        (
            {"widths": [8, 32], "sides": "query"},
            r"'query' with head.widths=\[8, 32\] for.*'head.widths=\[16,64\]', or use sides: both",
        ),
    ],
)
def test_what_does_not_go_with_them_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**given).for_features(64)
