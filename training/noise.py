"""The portable noise of the project in numpy: Philox4x32-10 and Wichura's AS241 (PPND16).

`normal(seed, stream, shape)` is bit-identical to the Rust and WebGPU code: only
+ - * / and sqrt in float64, no fused multiply-add, an own logarithm. Element
order is row-major. Stream 0 is the initial noise, stream i the re-noise before
step i. `python -m training.noise` checks known Philox answers and the moments.
"""

import numpy as np

MASK = np.uint64(0xFFFFFFFF)
LN2 = 0.6931471805599453

A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)
B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)
C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)
D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)
E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)
F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)


def philox(counter, key):
    """Philox4x32-10 of counters [4, n] (uint64 holding 32-bit words) under two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & MASK,
                          (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & MASK)
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & MASK, (k1 + np.uint64(0xBB67AE85)) & MASK
    return c0, c1, c2, c3


def horner(coefficients, x):
    value = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value


def log(x):
    """Natural logarithm from the bits of x and a short series."""
    bits = x.view(np.uint64)
    exponent = (bits >> np.uint64(52)).astype(np.int64) - 1023
    mantissa = ((bits & np.uint64(0x000FFFFFFFFFFFFF)) | np.uint64(0x3FF0000000000000)).view(np.float64)
    high = mantissa >= np.sqrt(2.0)
    mantissa = np.where(high, mantissa * 0.5, mantissa)
    exponent = exponent + high
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = horner([1.0 / (2 * k + 1) for k in range(13)], s * s)
    return exponent.astype(np.float64) * LN2 + 2.0 * s * series


def normal_quantile(u):
    """AS241 PPND16: the standard normal quantile of u in (0, 1)."""
    q = u - 0.5
    central = np.abs(q) <= 0.425
    r = 0.180625 - q * q
    middle = q * horner(A, r) / horner(B, r)
    r = np.sqrt(-log(np.where(q < 0.0, u, 1.0 - u)))
    near = r <= 5.0
    a, b = r - 1.6, r - 5.0
    tail = np.where(near, horner(C, a) / horner(D, a), horner(E, b) / horner(F, b))
    return np.where(central, middle, np.where(q < 0.0, -tail, tail))


def normal(seed, stream, shape):
    """Standard normal float32 array of `shape`, a function of (seed, stream) only."""
    count = int(np.prod(shape))
    block = np.arange((count + 1) // 2, dtype=np.uint64)
    counter = (block & MASK, block >> np.uint64(32), np.full_like(block, stream), np.zeros_like(block))
    with np.errstate(over="ignore"):
        r0, r1, r2, r3 = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    words = np.stack(((r0 << np.uint64(32)) | r1, (r2 << np.uint64(32)) | r3), 1).reshape(-1)[:count]
    u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0 ** -53
    return normal_quantile(u).astype(np.float32).reshape(shape)


def check():
    zero = tuple(np.zeros(1, np.uint64) for _ in range(4))
    ones = tuple(np.full(1, 0xFFFFFFFF, np.uint64) for _ in range(4))
    # known answers of the Random123 distribution (kat_vectors, philox4x32 10)
    assert [int(r[0]) for r in philox(zero, (0, 0))] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [int(r[0]) for r in philox(ones, (0xFFFFFFFF, 0xFFFFFFFF))] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    x = normal(1, 0, (200001,))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01, (x.mean(), x.std())
    assert abs(float(normal_quantile(np.array([0.975]))[0]) - 1.959963984540054) < 1e-14
    assert abs(float(log(np.array([10.0]))[0]) - np.log(10.0)) < 1e-14
    assert np.array_equal(normal(1, 0, (10,)), x[:10])
    assert not np.array_equal(normal(1, 1, (10,)), x[:10])


if __name__ == "__main__":
    check()
    print("noise: ok;", normal(42, 0, (4,)))
