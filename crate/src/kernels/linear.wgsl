// out[M, N] = activation(x[M, K] * w[N, K]^T + bias[N] + addend[M, N])
//
// A workgroup of 16x16 threads makes a tile of (16 SIDE)^2 outputs, SIDE x SIDE a thread, and walks K with 256 quads of
// x and as many of w in workgroup memory (8 KiB: WebGPU guarantees 16). While it multiplies, the next quads are on
// their way from memory. Weights stay packed there and are widened to f32 as they come. What a thread accumulates has
// names instead of indices: not every driver keeps an array in registers.

const SIDE = {{ side }}u;
const TILE = SIDE * 16u;   // rows and columns of a workgroup
const QUADS = 256u / TILE; // along K at once

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> w: array<u32>;
@group(0) @binding(2) var<storage, read_write> bias: array<f32>;
@group(0) @binding(3) var<storage, read_write> addend: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
struct Info {
    rows: u32, cols: u32, depth: u32,
    group_bits: u32, // log2 of the values that share a scale
    scales: u32,     // word at which the scales begin
    has_bias: u32, activation: u32, has_addend: u32,
}
@group(0) @binding(5) var<uniform> info: Info;

var<workgroup> tile_x: array<vec4<f32>, 256>; // [quad][row]
var<workgroup> tile_w: array<vec4<f32>, 256>; // [quad][column]

{{ unpack }}

fn activate(v: f32) -> f32 {
    if (info.activation == 1u) {
        // GELU, tanh form; the argument is clamped because tanh overflows to NaN on some drivers.
        let t = clamp(0.7978845608028654 * (v + 0.044715 * v * v * v), -15.0, 15.0);
        return 0.5 * v * (1.0 + tanh(t));
    }
    if (info.activation == 2u) {
        return v / (1.0 + exp(-clamp(v, -80.0, 80.0)));
    }
    return v;
}

fn quad_of_x(row: u32, k: u32) -> vec4<f32> {
    if (row >= info.rows || k >= info.depth) { return vec4<f32>(0.0); }
    let at = row * info.depth + k;
    return vec4<f32>(x[at], x[at + 1u], x[at + 2u], x[at + 3u]);
}

fn quad_of_w(col: u32, k: u32) -> vec4<f32> {
    if (col >= info.cols || k >= info.depth) { return vec4<f32>(0.0); }
    return weight4(col, k);
}

fn store(row: u32, col: u32, sum: f32) {
    if (row >= info.rows || col >= info.cols) { return; }
    var v = sum;
    if (info.has_bias == 1u) { v += bias[col]; }
    if (info.has_addend == 1u) { v += addend[row * info.cols + col]; }
    out[row * info.cols + col] = activate(v);
}

@compute @workgroup_size(16, 16, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let row0 = group_id.y * TILE;
    let col0 = group_id.x * TILE;
    let lane = local.y * 16u + local.x;
    let loads = lane / QUADS;        // the row of x and the column of w that this thread fetches
    let k = lane % QUADS * 4u;
    let to = lane % QUADS * TILE + loads;

    {{ clear }}
    var xv = quad_of_x(row0 + loads, k);
    var wv = quad_of_w(col0 + loads, k);
    for (var k0 = 0u; k0 < info.depth; k0 += 4u * QUADS) {
        tile_x[to] = xv;
        tile_w[to] = wv;
        workgroupBarrier();
        let ahead = k0 + 4u * QUADS + k;
        xv = quad_of_x(row0 + loads, ahead);
        wv = quad_of_w(col0 + loads, ahead);
        for (var quad = 0u; quad < QUADS; quad++) {
            let from_w = quad * TILE + local.x;
            let from_x = quad * TILE + local.y;
            {{ multiply }}
        }
        workgroupBarrier();
    }
    {{ store }}
}
