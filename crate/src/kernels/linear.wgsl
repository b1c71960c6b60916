// out[M, N] = activation(x[M, K] * w[N, K]^T + bias[N] + addend[M, N])
//
// 64x64 output tile per workgroup of 16x16 threads, 4x4 outputs a thread, K walked 16 at a time.
// 8 KiB of workgroup memory: fits the 16 KiB every WebGPU device guarantees. Weights stay packed in
// memory and are widened to f32 while the tile is loaded.

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> addend: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read_write> info: array<u32>; // M, N, K, group, word offset of the scales, has_bias, activation, has_addend

var<workgroup> tile_x: array<vec4<f32>, 256>; // [k/4][row]
var<workgroup> tile_w: array<vec4<f32>, 256>; // [k/4][column]
var<workgroup> shared_depth: u32;

{{ unpack }}

fn activate(v: f32, kind: u32) -> f32 {
    if (kind == 1u) {
        // GELU, tanh form; the argument is clamped because tanh overflows to NaN on some drivers.
        let t = clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), -15.0, 15.0);
        return 0.5 * v * (1.0 + tanh(t));
    }
    if (kind == 2u) {
        return v / (1.0 + exp(-clamp(v, -80.0, 80.0)));
    }
    return v;
}

@compute @workgroup_size(16, 16, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let rows = info[0];
    let cols = info[1];
    let row0 = group_id.y * 64u;
    let col0 = group_id.x * 64u;
    let lane = local.y * 16u + local.x;
    let load_row = lane >> 2u;
    let load_k4 = lane & 3u;

    // The barriers below need the loop's end to be provably the same for all threads; a value from a writable buffer
    // is not, one that went through workgroup memory is.
    if (lane == 0u) { shared_depth = info[2]; }
    let depth = workgroupUniformLoad(&shared_depth);

    var acc: array<vec4<f32>, 4>; // [row][column]
    for (var i = 0u; i < 4u; i++) { acc[i] = vec4<f32>(0.0); }

    for (var k0 = 0u; k0 < depth; k0 += 16u) {
        let k = k0 + load_k4 * 4u;
        var xv = vec4<f32>(0.0);
        var wv = vec4<f32>(0.0);
        if (k < depth) {
            if (row0 + load_row < rows) {
                let at = (row0 + load_row) * depth + k;
                xv = vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
            }
            if (col0 + load_row < cols) { wv = weight4(col0 + load_row, k, depth); }
        }
        tile_x[load_k4 * 64u + load_row] = xv;
        tile_w[load_k4 * 64u + load_row] = wv;
        workgroupBarrier();
        for (var k4 = 0u; k4 < 4u; k4++) {
            let w0 = tile_w[k4 * 64u + local.x];
            let w1 = tile_w[k4 * 64u + local.x + 16u];
            let w2 = tile_w[k4 * 64u + local.x + 32u];
            let w3 = tile_w[k4 * 64u + local.x + 48u];
            for (var i = 0u; i < 4u; i++) {
                let a = tile_x[k4 * 64u + local.y + 16u * i];
                acc[i] += vec4<f32>(dot(a, w0), dot(a, w1), dot(a, w2), dot(a, w3));
            }
        }
        workgroupBarrier();
    }

    for (var i = 0u; i < 4u; i++) {
        let row = row0 + local.y + 16u * i;
        if (row >= rows) { continue; }
        for (var j = 0u; j < 4u; j++) {
            let col = col0 + local.x + 16u * j;
            if (col >= cols) { continue; }
            var v = acc[i][j];
            if (info[5] == 1u) { v += bias[col]; }
            if (info[7] == 1u) { v += addend[row * cols + col]; }
            out[row * cols + col] = activate(v, info[6]);
        }
    }
}
