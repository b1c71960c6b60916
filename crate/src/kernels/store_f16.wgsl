// Rounds to the nearest half, ties to even, as the CPU does; pack2x16float leaves rounding and overflow open.
fn half(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let a = bits & 0x7fffffffu;
    if (a > 0x7f800000u) { return sign | 0x7e00u; }
    if (a >= 0x477ff000u) { return sign | 0x7c00u; }
    if (a >= 0x38800000u) { return sign | ((a - 0x38000000u + 0xfffu + ((a >> 13u) & 1u)) >> 13u); }
    if (a < 0x33000000u) { return sign; }
    // Below 2^-14 halves lie 2^-24 apart.
    let shift = 126u - (a >> 23u);
    let mantissa = (a & 0x7fffffu) | 0x800000u;
    return sign | ((mantissa + (1u << (shift - 1u)) - 1u + ((mantissa >> shift) & 1u)) >> shift);
}

fn store(at: u32, to: u32, count: u32) {
    out[to] = half(x[at]) | (half(x[at + 1u]) << 16u);
}
