"""Known answers of the portable noise (`training/noise.py`), after holding it to values that others published.

    python tests/goldens/noise.py     # needs numpy; writes noise.json
"""

import hashlib
import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))
from training import noise  # noqa: E402

# counter, key, result: the kat_vectors file published with Random123.
KNOWN_PHILOX = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)


def check():
    """Raises on the first value that differs from a published one; returns the first four moments."""
    for counter, key, expected in KNOWN_PHILOX:
        words = noise.philox(tuple(np.array([word], dtype=np.uint64) for word in counter), key)
        assert tuple(int(word[0]) for word in words) == expected, (counter, key)
    x = np.concatenate([np.logspace(-300, 0, 20001), np.linspace(0.01, 2.0, 20001)])
    np.testing.assert_allclose(noise.log(x), np.log(x), rtol=4e-15, atol=2e-16)
    # CPython's inv_cdf is AS 241 as well, with the C library's logarithm.
    u = np.concatenate([np.logspace(-17, -1, 2001), np.linspace(0.001, 0.999, 2001)])
    library = np.array([statistics.NormalDist().inv_cdf(float(value)) for value in u])
    np.testing.assert_allclose(noise.normal_quantile(u), library, rtol=1e-14, atol=1e-15)
    z = noise.normal(7, 0, (1_000_000,)).astype(np.float64)
    moments = [float((z**power).mean()) for power in (1, 2, 3, 4)]
    assert np.allclose(moments, [0, 1, 0, 3], atol=0.02), moments
    assert abs(np.corrcoef(z[::2], z[1::2])[0, 1]) < 0.005
    assert abs(np.corrcoef(noise.normal(7, 0, (100_000,)), noise.normal(7, 1, (100_000,)))[0, 1]) < 0.02
    return moments


def known_answers():
    cases = []
    for seed in (0, 42, 2**40 + 7):
        for stream in (0, 3):
            values = noise.normal(seed, stream, (4096,))
            cases.append({
                "seed": seed,
                "stream": stream,
                "first": [float(value) for value in values[:16]],
                "first_bits": [f"{int(value):08x}" for value in values[:16].view("<u4")],
                "count": len(values),
                "sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
            })
    philox = [dict(zip(("counter", "key", "result"), case)) for case in KNOWN_PHILOX]
    return {
        "about": "first_bits are the f32 bit patterns of elements 0..16; sha256 is over `count` little-endian f32",
        "philox4x32_10": philox,
        "normal": cases,
    }


if __name__ == "__main__":
    print("moments of a million deviates:", *(f"{moment:+.4f}" for moment in check()))
    target = Path(__file__).with_name("noise.json")
    target.write_text(json.dumps(known_answers(), indent=1) + "\n")
    print("wrote", target.name)
