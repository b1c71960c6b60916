"""Portable Gaussian noise, written in numpy apart from the engine's own implementation.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") turned into normal
deviates by Wichura's algorithm AS 241, PPND16 (1988). Only + - * / and sqrt in f64 are used, so every
IEEE machine and every language gives the same bits; a library's `log` would not.
"""

import hashlib
import json
import math
import statistics
from pathlib import Path

import numpy as np

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
THIRTY_TWO = np.uint64(32)

# AS 241, PPND16: numerator and denominator of the three regions, lowest power first.
CENTRAL = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)
NEAR_TAIL = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)
FAR_TAIL = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)
LN2 = 0.6931471805599453


def philox(counter, key):
    """Ten rounds on a counter of four words (arrays or ints) with a key of two; four uint64 arrays < 2^32."""
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        left = c0 * np.uint64(MULTIPLIERS[0])
        right = c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (right >> THIRTY_TWO) ^ c1 ^ np.uint64(k0),
            right & LOW,
            (left >> THIRTY_TWO) ^ c3 ^ np.uint64(k1),
            left & LOW,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def horner(coefficients, x):
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def portable_ln(x):
    """ln of positive f64 values: x = m * 2^e with m in [sqrt(1/2), sqrt(2)), then the atanh series."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = np.where(small, exponent - 1, exponent).astype(np.float64)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = horner([1.0 / (2 * k + 1) for k in range(13)], s * s)
    return exponent * LN2 + 2.0 * s * series


def inverse_normal(u):
    """The standard normal quantile of u in (0, 1), f64."""
    q = u - 0.5
    central_r = 0.180625 - q * q
    tail_r = np.sqrt(-portable_ln(np.where(q < 0.0, u, 1.0 - u)))
    near, far = tail_r - 1.6, tail_r - 5.0
    central = q * horner(CENTRAL[0], central_r) / horner(CENTRAL[1], central_r)
    near = horner(NEAR_TAIL[0], near) / horner(NEAR_TAIL[1], near)
    far = horner(FAR_TAIL[0], far) / horner(FAR_TAIL[1], far)
    tail = np.where(tail_r <= 5.0, near, far)
    return np.where(np.abs(q) <= 0.425, central, np.where(q < 0.0, -tail, tail))


def normal(seed, stream, count):
    """`count` f32 deviates of one stream; block b gives elements 2b and 2b + 1."""
    block = np.arange((count + 1) // 2, dtype=np.uint64)
    counter = (block & LOW, block >> THIRTY_TWO, np.full_like(block, stream), np.zeros_like(block))
    r = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    bits = np.stack([(r[0] << THIRTY_TWO) | r[1], (r[2] << THIRTY_TWO) | r[3]], axis=1).reshape(-1)
    u = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return inverse_normal(u)[:count].astype(np.float32)


# counter, key, result: the kat_vectors file published with Random123.
KNOWN_PHILOX = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
)


def check():
    """Holds this file to values that others published; raises on the first that differs."""
    for counter, key, expected in KNOWN_PHILOX:
        assert tuple(int(word) for word in philox(counter, key)) == expected, (counter, key)
    x = np.concatenate([np.logspace(-300, 0, 20001), np.linspace(0.01, 2.0, 20001)])
    np.testing.assert_allclose(portable_ln(x), np.log(x), rtol=4e-15, atol=2e-16)
    u = np.concatenate([np.logspace(-17, -1, 2001), np.linspace(0.001, 0.999, 2001)])
    library = np.array([statistics.NormalDist().inv_cdf(float(value)) for value in u])
    np.testing.assert_allclose(inverse_normal(u), library, rtol=1e-14, atol=1e-15)
    z = normal(7, 0, 1_000_000).astype(np.float64)
    moments = [float((z**power).mean()) for power in (1, 2, 3, 4)]
    assert np.allclose(moments, [0, 1, 0, 3], atol=0.02), moments
    assert abs(np.corrcoef(z[::2], z[1::2])[0, 1]) < 0.005
    assert abs(np.corrcoef(normal(7, 0, 100_000), normal(7, 1, 100_000))[0, 1]) < 0.02
    return moments


def known_answers():
    cases = []
    for seed in (0, 42, 2**40 + 7):
        for stream in (0, 3):
            values = normal(seed, stream, 4096)
            cases.append({
                "seed": seed,
                "stream": stream,
                "first": [float(value) for value in values[:16]],
                "first_bits": [f"{int(value):08x}" for value in values[:16].view("<u4")],
                "count": len(values),
                "sha256": hashlib.sha256(values.astype("<f4").tobytes()).hexdigest(),
            })
    philox_cases = [
        {"counter": list(counter), "key": list(key), "result": list(result)} for counter, key, result in KNOWN_PHILOX
    ]
    return {
        "about": "first_bits are the f32 bit patterns of elements 0..16; sha256 is over `count` little-endian f32",
        "philox4x32_10": philox_cases,
        "normal": cases,
    }


if __name__ == "__main__":
    print("moments of a million deviates:", *(f"{moment:+.4f}" for moment in check()))
    target = Path(__file__).with_name("noise.json")
    target.write_text(json.dumps(known_answers(), indent=1) + "\n")
    print("wrote", target.name)
