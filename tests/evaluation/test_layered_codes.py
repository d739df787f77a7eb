"""Codes of layers, at fixed levels and by a trellis."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.conftest import in_mode
from xbm_keras.evaluation.layered_codes import LLOYD_MAX, OF_TRELLIS, TRELLIS, LayeredCode, layers_of
from xbm_keras.evaluation.quantization import CODES
from xbm_keras.evaluation.trellis import chosen_levels

RNG = np.random.default_rng(0)


def both_signs(above):
    return np.array([*(-x for x in above[::-1]), *above])


def subset(bits):
    """Of the newest of some bits, by Ungerboeck's polynomials D^4 + D + 1 and D^2."""
    past = [*([0] * 4), *bits]
    return 2 * ((past[-1] + past[-2] + past[-5]) % 2) + past[-3]


@pytest.mark.parametrize("width", [50, 23, 3])
def test_layers_have_five_bits_to_one_at_the_best_levels_of_normal_numbers(width, mode):
    z, code = 3 * RNG.normal(size=(5, width)).astype("float32"), CODES["layers"]
    z[0, :2] = 0
    codes = in_mode(code.encode, mode)(tf.constant(z)).numpy()
    assert codes.dtype == np.uint8
    assert codes.nbytes == len(z) * code.bytes_per_item(width)
    decoded = code.decode(codes, width).numpy()
    for row, found in zip(z.astype(float), decoded, strict=True):
        row /= np.linalg.norm(row)
        for dimensions, above in zip(np.array_split(np.arange(width), 5), LLOYD_MAX, strict=True):
            if len(dimensions):
                root = max(np.sqrt((row[dimensions] ** 2).mean()), 2**-31.875)
                stood = 2 ** (round(8 * np.log2(root)) / 8)
                levels = both_signs(above) * stood
                expected = [levels[np.abs(levels - x).argmin()] for x in row[dimensions]]
                np.testing.assert_allclose(np.abs(found[dimensions]), np.abs(expected), rtol=1e-5)
                is_clear = np.abs(row[dimensions]) > 1e-9  # else either sign is as near
                np.testing.assert_allclose(found[dimensions][is_clear], np.array(expected)[is_clear], rtol=1e-5)


def test_levels_are_the_means_of_their_parts_of_a_normal_distribution():
    for above in LLOYD_MAX:
        levels = both_signs(above)
        ends = np.array([-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf])
        means = -np.diff(scipy.stats.norm.pdf(ends)) / np.diff(scipy.stats.norm.cdf(ends))
        np.testing.assert_allclose(levels, means, atol=1.5e-3)


@pytest.mark.parametrize("bits", [1, 3])
def test_a_trellis_finds_the_nearest_of_all_its_sequences(bits, mode):
    levels = np.sort(RNG.normal(size=2 ** (bits + 1))).astype("float32")
    numbers = RNG.normal(size=(4, 11)).astype("float32")
    first, places = in_mode(lambda x: chosen_levels(x, levels), mode)(tf.constant(numbers))
    for row, path, place in zip(numbers, first.numpy(), places.numpy(), strict=True):
        errors = np.array([((row[:, None] - levels[i::4]) ** 2).min(axis=1) for i in range(4)])  # [4, 11]
        all_paths = ([int(x) for x in f"{number:011b}"] for number in range(2**11))
        sums = [sum(errors[subset(p[: i + 1]), i] for i in range(11)) for p in all_paths]
        subsets = [subset(path[: i + 1].astype(int).tolist()) for i in range(11)]
        chosen = levels[4 * place.astype(int) + subsets]
        assert ((row - chosen) ** 2).sum() == pytest.approx(min(sums), rel=1e-5)


@pytest.mark.parametrize("width", [90, 23, 3])
def test_a_trellis_is_decoded_by_its_register(width, mode):
    code = CODES["trellis"]
    codes = RNG.integers(0, 256, (3, code.columns(width))).astype("uint8")
    decoded = in_mode(lambda each: code.decode(each, width), mode)(tf.constant(codes)).numpy()
    for row, found in zip(codes, decoded, strict=True):
        start, expected = 0, []
        for layer, bits in zip(layers_of(width, 5), (5, 4, 3, 2, 2), strict=False):
            size = layer.stop - layer.start
            num_bytes, root = -(-size // 8), 1
            if layer.start:
                root, start = 2 ** ((int(row[start]) - 128) / 8), start + 1
            planes = np.unpackbits(row[start : start + bits * num_bytes]).reshape(bits, -1)
            for i in range(size):
                place = int("".join(map(str, planes[1:, i])), 2)
                level = both_signs(OF_TRELLIS[bits])[4 * place + subset(planes[0, : i + 1].tolist())]
                expected.append(level * root)
            start += bits * num_bytes
        assert start == len(row)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_a_trellis_encodes_is_what_it_chose_of_each_layer(mode):
    z = RNG.normal(size=(3, 83)).astype("float32")
    code = CODES["trellis"]
    decoded = code.decode(in_mode(code.encode, mode)(tf.constant(z)), 83).numpy()
    of_first = np.sqrt((z[:, :24] ** 2).mean(axis=1, keepdims=True))
    for layer, above in zip(layers_of(83, 5), TRELLIS.positive, strict=True):
        part = z[:, layer] / of_first
        root = 2 ** (np.round(8 * np.log2(np.sqrt((part**2).mean(axis=1, keepdims=True)))) / 8)
        levels = both_signs(above).astype("float32")
        first, places = (each.numpy().astype(int) for each in chosen_levels(tf.constant(part / root), levels))
        subsets = [[subset(row[: i + 1].tolist()) for i in range(len(row))] for row in first]
        np.testing.assert_allclose(decoded[:, layer], levels[4 * places + subsets] * root, rtol=1e-5)


def test_by_a_trellis_a_layer_of_next_to_nothing_costs_the_others_nothing(mode):
    code, z = CODES["trellis"], RNG.normal(size=(5, 3, 20, 80)).astype("float32")  # as of sparse features
    for some, layer in zip(z, layers_of(80, 5), strict=True):
        some[..., layer] *= np.reshape([0, 1e-8, 1e-5], (3, 1, 1))
    decoded = code.decode(in_mode(code.encode, mode)(tf.constant(z.reshape(-1, 80))), 80).numpy().reshape(z.shape)
    lengths = np.linalg.norm(decoded, axis=-1) * np.linalg.norm(z, axis=-1)
    cosines = ((decoded * z).sum(axis=-1) / lengths).mean(axis=2)
    assert (cosines > 0.96).all(), cosines


@pytest.mark.parametrize(("bits", "decibels"), [(5, 27.6), (4, 21.8), (3, 16.1), (2, 10.6)])
def test_a_trellis_of_normal_numbers_errs_by_a_quarter_less_than_the_best_levels(bits, decibels):
    numbers = RNG.normal(size=(64, 800)).astype("float32")
    decoded = {}
    for is_trellis, positive in ((True, OF_TRELLIS[bits]), (False, LLOYD_MAX[5 - bits])):
        code = LayeredCode((positive,), is_trellis)
        decoded[is_trellis] = code.unpack(code.encode(tf.constant(numbers)), 800).numpy()
        decoded[is_trellis] *= np.linalg.norm(numbers, axis=1, keepdims=True) / (800**0.5 if is_trellis else 1)
    errors = {name: ((each - numbers) ** 2).mean() for name, each in decoded.items()}
    assert -10 * np.log10(errors[True]) > decibels  # the most that can be are 6.02 a bit
    assert errors[True] < 0.75 * errors[False]


def test_layers_are_whole_bytes_as_equal_as_can_be():
    assert [each.stop - each.start for each in layers_of(288, 5)] == [64, 56, 56, 56, 56]
    assert layers_of(19, 5) == [slice(0, 8), slice(8, 16), slice(16, 19)]
    assert layers_of(19, 5, step=1)[-1] == slice(16, 19)
    assert CODES["trellis"].bytes_per_item(304) == 128
