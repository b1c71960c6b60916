// out[Nq, H*D] = softmax(q k^T * scale + bias) v per head, without ever storing a score matrix.
//
// A query row belongs to PARTS threads with MINE quads of its head each, so that query and sums fit their registers;
// they add their shares of a score in workgroup memory. Online softmax in f32, TILE keys and values at a time. At most
// 16 KiB of workgroup memory, which every WebGPU device has. Masking uses a finite floor: WGSL has no infinities.

const D4 = {{ d4 }}u;       // head dimension / 4
const PARTS = {{ parts }}u;
const MINE = D4 / PARTS;
const ROWS = {{ rows }}u;   // queries of a workgroup
const TILE = {{ tile }}u;   // keys at once

@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>; // [H, Nq, Nk] or one unused element
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
struct Info { queries: u32, count: u32, heads: u32, scale: u32, has_bias: u32, first: u32 }
@group(0) @binding(5) var<uniform> info: Info;

var<workgroup> keys: array<vec4<f32>, {{ stage }}>;
var<workgroup> values: array<vec4<f32>, {{ stage }}>;
var<workgroup> shares: array<f32, {{ shares }}>; // [key][part][row]

@compute @workgroup_size({{ threads }}, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let head = group_id.y;
    let slot = local.x % ROWS;
    let part = local.x / ROWS;
    let row = info.first + group_id.x * ROWS + slot;
    let live = row < info.queries;
    let stride = info.heads * D4;
    let from_q = row * stride + head * D4 + part * MINE;
    let mine = part * MINE;
    let scale = bitcast<f32>(info.scale);

    {{ begin }}
    var peak = -3.0e38;
    var total = 0.0;

    for (var first = 0u; first < info.count; first += TILE) {
        for (var at = local.x; at < TILE * D4; at += ROWS * PARTS) {
            let key = first + at / D4;
            var kv = vec4<f32>(0.0);
            var vv = vec4<f32>(0.0);
            if (key < info.count) {
                kv = k[key * stride + head * D4 + at % D4];
                vv = v[key * stride + head * D4 + at % D4];
            }
            keys[at] = kv;
            values[at] = vv;
        }
        workgroupBarrier();
        {{ scores }}
        {{ join }}
        if (info.has_bias == 1u && live) {
            let from_bias = (head * info.queries + row) * info.count + first;
            {{ add_bias }}
        }
        // A key past the last one has no weight.
        var highest = peak;
        {{ highest }}
        let shrink = exp(max(peak - highest, -80.0));
        peak = highest;
        total *= shrink;
        {{ weights }}
        {{ gather }}
        workgroupBarrier();
    }
    if (live) {
        let inverse = 1.0 / total;
        {{ finish }}
    }
}
