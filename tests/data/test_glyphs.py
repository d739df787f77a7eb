import concurrent.futures
import hashlib
import pickle
import unicodedata

import numpy as np
import pytest

from tests.fresh_processes import run_fresh
from xbm_keras.data import glyphs
from xbm_keras.data.glyphs import FONTS, Glyphs, find_characters
from xbm_keras.data.splits import split_items

MIN_FONTS = 8


@pytest.fixture(scope="module")
def characters():
    return find_characters(MIN_FONTS, None)  # as `Glyphs()` calls it, and so drawn once


def codes(characters):
    return [code for character in characters for code in character.codes]


def class_of(characters, code):
    (found,) = [character for character in characters if ord(code) in character.codes]
    return found


def ink(font, code):
    return np.asarray(glyphs.draw(font, code, 96), np.float32)


@pytest.mark.parametrize("alike", ["AΑА", "oοоօ", "ΩΩ", "-‐‑", "PΡР", "JЈ"])  # noqa: RUF001
def test_look_alikes_are_one_class(characters, alike):
    assert {class_of(characters, code).codes for code in alike} == {class_of(characters, alike[0]).codes}


@pytest.mark.parametrize("pair", ["oO", "αβ", "←→", "ὖὗ", "·•", "⠁⠂", "≤≦"])
def test_what_an_eye_tells_apart_stays_apart(characters, pair):
    assert class_of(characters, pair[0]) != class_of(characters, pair[1])


def test_a_class_with_a_pretraining_character_is_for_pretraining_alone(characters):
    assert class_of(characters, "Α").is_for_pretraining  # noqa: RUF001 (Greek)
    assert not class_of(characters, "β").is_for_pretraining
    for character in characters:
        scripts = " ".join(unicodedata.name(chr(code)) for code in character.codes)
        assert character.is_for_pretraining == ("LATIN" in scripts or "CYRILLIC" in scripts), scripts


def test_no_class_is_in_two_of_pretraining_training_and_test(characters):
    pretraining, others = Glyphs(pretraining=True), Glyphs()
    splits = split_items(others.items)
    parts = [others.items.labels[p] for p in (splits.train, splits.validation, splits.test)]
    parts.append(pretraining.items.labels)
    for i, part in enumerate(parts):
        for other in parts[i + 1 :]:
            assert not set(part) & set(other)
    assert set().union(*parts) == {character.name for character in characters}
    assert len(codes(characters)) == len(set(codes(characters)))
    assert len(set(others.items.labels)) > 1500


def test_no_drawing_of_one_class_is_a_drawing_of_another(characters):
    seen: dict[tuple[str, bytes], str] = {}
    for character in characters[::3]:
        for code in character.codes:
            for font in character.fonts:
                if code in glyphs._codes(font):
                    assert seen.setdefault((font, ink(font, code).tobytes()), character.name) == character.name


def test_blank_combining_and_missing_glyphs_stay_out(characters):
    known = set(codes(characters))
    for code in (0x20, 0xA0, 0x2003, 0x2800, 0xFFFC, 0x301, 0x489, 0xE000, 0xAD, 0x200D):
        assert code not in known
    missing = {font: ink(font, 0x10FFFD).tobytes() for font in FONTS}  # a code that no font has
    for character in characters[::7]:
        assert MIN_FONTS <= len(character.fonts) <= len(FONTS)
        for font, code in character.fonts.items():
            drawn = ink(font, code)
            assert drawn.max() > 128, (character.name, font)
            assert drawn.tobytes() != missing[font], (character.name, font)


def test_pictures_are_black_on_white_and_differ_within_a_class():
    source = Glyphs(max_classes=30)
    assert len(set(source.items.labels)) == 30
    assert len(set(source.items.keys)) == len(source.items.keys)
    pictures = [source.load(i) for i in range(len(source.items.keys))]
    assert {p.shape for p in pictures} == {(48, 48, 3)}
    assert {p.dtype for p in pictures} == {np.dtype(np.uint8)}
    assert all(np.median(p) > 200 for p in pictures)
    assert len({p.tobytes() for p in pictures}) == len(pictures)
    assert len({source.digest(i) for i in range(len(pictures))}) == len(pictures)


def test_more_drawings_keep_the_first_ones():
    one, two = Glyphs(max_classes=5), Glyphs(max_classes=5, drawings=2)
    assert len(two.items.keys) == 2 * len(one.items.keys)
    position = list(two.items.keys).index(one.items.keys[7])
    assert np.array_equal(two.load(position), one.load(7))
    assert two.digest(position) == one.digest(7)


def test_rotation_and_noise_do_what_they_say():
    plain, turned, noisy = (Glyphs(max_classes=20, rotation=r, noise=n) for r, n in ((0, 0), (90, 0), (0, 0.2)))
    i = 11
    paper = plain.load(i) == 255
    assert paper.mean() > 0.5
    # Half of the noise on white paper is cut off; of a normal variable the mean of what is left is std / sqrt(2 pi).
    assert np.mean(255.0 - noisy.load(i)[paper]) == pytest.approx(0.2 * 255 / np.sqrt(2 * np.pi), abs=2.5)
    assert not np.array_equal(plain.load(i), turned.load(i))
    assert np.mean(255.0 - turned.load(i)) == pytest.approx(np.mean(255.0 - plain.load(i)), rel=0.1)  # no ink is lost
    assert len({source.digest(i) for source in (plain, turned, noisy)}) == 3


def test_the_same_bytes_in_threads_and_in_another_process():
    source = Glyphs(max_classes=12)
    pictures = [source.load(i) for i in range(len(source.items.keys))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert all(map(np.array_equal, pool.map(source.load, range(len(pictures))), pictures))
    assert np.array_equal(pickle.loads(pickle.dumps(source)).load(5), pictures[5])
    program = """
import hashlib
from xbm_keras.data.glyphs import Glyphs
source = Glyphs(max_classes=12)
pictures = b"".join(source.load(i).tobytes() for i in range(len(source.items.keys)))
print(hashlib.sha256(pictures).hexdigest(), source.digest(3))
"""
    expected = [hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest(), source.digest(3)]
    assert run_fresh(program).split() == expected


def test_roles_part_serif_from_sans_serif():
    items = Glyphs(max_classes=40).items
    assert set(items.columns["role"][np.char.startswith(items.columns["font"], "DejaVuSans")]) == {"gallery"}
    assert set(items.columns["role"][np.char.startswith(items.columns["font"], "STIX")]) == {"query"}
    assert set(items.columns["role"][np.char.startswith(items.columns["font"], "DejaVuSerif")]) == {"query"}


def test_too_many_fonts():
    with pytest.raises(ValueError, match=r"min_fonts=17; expected a whole number in 2\.\.16"):
        Glyphs(min_fonts=17)


def test_what_was_found_is_kept(tmp_path, monkeypatch):
    found = find_characters(16, f"{tmp_path}")
    monkeypatch.setattr(glyphs, "_compare", None)
    assert find_characters(16, f"{tmp_path}/") == found  # another name, which this process does not remember
    assert [path.suffix for path in (tmp_path / "glyphs").iterdir()] == [".json"]
    with pytest.raises(TypeError):
        find_characters(15, str(tmp_path))  # other characters, another file
