"""Random generators of many seeds, as NumPy makes them one by one, in a tenth of the time."""

from collections.abc import Iterator

import numpy as np

MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # of PCG64
WORD, STATE = 2**32, 2**128


def generators(seeds: list[list[int]]) -> Iterator[np.random.Generator]:
    """For each four seeds what `np.random.default_rng(four)` is; the same object each time, in that state.

    Reference:
        `SeedSequence` and `PCG64` of NumPy, whose streams do not change between versions (NEP 19); O'Neill, "PCG: A
        Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random Number Generation", 2014.
    """
    if not seeds:
        return
    if not all(0 <= seed < WORD for four in seeds for seed in four):
        yield from map(np.random.default_rng, seeds)
        return
    generator = np.random.Generator(np.random.PCG64(0))
    for words in _seed_words(np.array(seeds, np.uint32)).tolist():
        start, increment = words[0] << 64 | words[1], (words[2] << 65 | words[3] << 1 | 1) % STATE
        state = ((start + increment) * MULTIPLIER + increment) % STATE
        generator.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {"state": state, "inc": increment},
            "has_uint32": 0,
            "uinteger": 0,
        }
        yield generator


def _seed_words(entropy: np.ndarray) -> np.ndarray:
    """[n, 4] uint64, of each row of entropy [n, 4] uint32 what `SeedSequence(row).generate_state(4, np.uint64)` is."""
    constant = 0x43B0D7E5

    def hashed(words, factor):
        nonlocal constant
        words = words ^ np.uint32(constant)
        constant = constant * factor % WORD
        words = words * np.uint32(constant)
        return words ^ words >> np.uint32(16)

    pool = [hashed(entropy[:, i], 0x931E8875) for i in range(4)]
    for source in range(4):
        for target in range(4):
            if source != target:
                other = hashed(pool[source], 0x931E8875)
                mixed = np.uint32(0xCA01F9DD) * pool[target] - np.uint32(0x4973F715) * other
                pool[target] = mixed ^ mixed >> np.uint32(16)
    constant = 0x8B51F9DD
    words = [hashed(pool[i % 4], 0x58F38DED).astype(np.uint64) for i in range(8)]
    return np.stack([words[2 * i] | words[2 * i + 1] << np.uint64(32) for i in range(4)], axis=1)
