// 2-D convolution of one frame, zero padding (kernel - 1) / 2:
// out[O, h, w] = relu?(conv(cat(x0[C0], x1[C1])) + bias + residual[O, h, w])
//
// The second input spares the concatenation that every memory block would do with the previous
// frame; UPSAMPLE reads the inputs through a nearest 2x enlargement without storing it.
// One pixel and eight output channels a thread.

const KERNEL = {{ kernel }}u;
const STRIDE = {{ stride }}u;
const UPSAMPLE = {{ upsample }}u;

@group(0) @binding(0) var<storage, read_write> x0: array<f32>;
@group(0) @binding(1) var<storage, read_write> x1: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<f32>; // [O, C0 + C1, KERNEL, KERNEL]
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<storage, read_write> info: array<u32>; // C0, C1, in h, in w, O, out h, out w, has_bias, has_residual, relu

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let in_h = info[2];
    let in_w = info[3];
    let out_c = info[4];
    let out_h = info[5];
    let out_w = info[6];
    let pixel = group_id.x * 64u + local.x;
    if (pixel >= out_h * out_w) { return; }
    let oy = pixel / out_w;
    let ox = pixel % out_w;
    let o0 = group_id.y * 8u;
    let channels = info[0] + info[1];
    let taps = KERNEL * KERNEL;
    let pad = i32(KERNEL / 2u);

    var low = vec4<f32>(0.0);
    var high = vec4<f32>(0.0);
    let row = channels * taps;
    for (var ky = 0u; ky < KERNEL; ky++) {
        let vy = i32(oy * STRIDE + ky) - pad;
        if (vy < 0 || vy >= i32(in_h * UPSAMPLE)) { continue; }
        for (var kx = 0u; kx < KERNEL; kx++) {
            let vx = i32(ox * STRIDE + kx) - pad;
            if (vx < 0 || vx >= i32(in_w * UPSAMPLE)) { continue; }
            let at = (u32(vy) / UPSAMPLE) * in_w + u32(vx) / UPSAMPLE;
            let tap = ky * KERNEL + kx;
            for (var c = 0u; c < channels; c++) {
                var value: f32;
                if (c < info[0]) { value = x0[c * in_h * in_w + at]; }
                else { value = x1[(c - info[0]) * in_h * in_w + at]; }
                let wi = o0 * row + c * taps + tap;
                low += value * vec4<f32>(w[wi], w[wi + row], w[wi + 2u * row], w[wi + 3u * row]);
                high += value * vec4<f32>(w[wi + 4u * row], w[wi + 5u * row], w[wi + 6u * row], w[wi + 7u * row]);
            }
        }
    }
    // Output channels are padded to a multiple of eight in the weights, never in the output.
    for (var j = 0u; j < 8u; j++) {
        let o = o0 + j;
        if (o >= out_c) { break; }
        var v: f32;
        if (j < 4u) { v = low[j]; } else { v = high[j - 4u]; }
        if (info[7] == 1u) { v += bias[o]; }
        let to = o * out_h * out_w + pixel;
        if (info[8] == 1u) { v += residual[to]; }
        if (info[9] == 1u) { v = max(v, 0.0); }
        out[to] = v;
    }
}
