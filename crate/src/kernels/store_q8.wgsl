fn store(at: u32, to: u32, count: u32) {
    // Magnitudes have the order of their bits, with those that are not finite at the top.
    var largest = 0u;
    for (var i = 0u; i < count; i++) { largest = max(largest, x[at + i] & 0x7fffffffu); }
    let finite = largest < 0x7f800000u;
    let scale = bitcast<f32>(largest) / 127.0;
    // A scale that is no number keeps what is not finite from turning into zeros.
    out[to] = select(0x7fc00000u, bitcast<u32>(scale), finite);
    let empty = !finite || scale == 0.0;
    for (var i = 0u; i < count; i += 4u) {
        var word = 0u;
        if (!empty) {
            for (var j = 0u; j < 4u; j++) {
                let step = i32(clamp(round(bitcast<f32>(x[at + i + j]) / scale), -127.0, 127.0));
                word |= (bitcast<u32>(step) & 255u) << (8u * j);
            }
        }
        out[to + 1u + i / 4u] = word;
    }
}
