// out[Nq, H*D] = softmax(q k^T * scale + bias) v per head, without ever storing a score matrix.
//
// One query row a thread, online softmax in f32, keys and values staged TILE rows at a time
// (8 KiB of workgroup memory for both). Masking uses a finite floor: WGSL has no infinities.

const D4 = {{ d4 }}u;      // head dimension / 4
const TILE = {{ tile }}u;  // keys per stage

@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> bias: array<f32>; // [H, Nq, Nk] or one unused element
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> info: array<u32>; // Nq, Nk, H, scale bits, has_bias, first query row

var<workgroup> keys: array<vec4<f32>, {{ stage }}>;
var<workgroup> values: array<vec4<f32>, {{ stage }}>;
var<workgroup> shared_count: u32;

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let queries = info[0];
    // Uniform for the barriers below: see linear.wgsl.
    if (local.x == 0u) { shared_count = info[1]; }
    let count = workgroupUniformLoad(&shared_count);
    let heads = info[2];
    let scale = bitcast<f32>(info[3]);
    let head = group_id.y;
    let row = info[5] + group_id.x * 64u + local.x;
    let live = row < queries;
    let stride = heads * D4;

    var query: array<vec4<f32>, D4>;
    var acc: array<vec4<f32>, D4>;
    for (var i = 0u; i < D4; i++) {
        query[i] = vec4<f32>(0.0);
        acc[i] = vec4<f32>(0.0);
        if (live) { query[i] = q[row * stride + head * D4 + i] * scale; }
    }
    var peak = -3.0e38;
    var total = 0.0;

    for (var first = 0u; first < count; first += TILE) {
        for (var at = local.x; at < TILE * D4; at += 64u) {
            let key = first + at / D4;
            var kv = vec4<f32>(0.0);
            var vv = vec4<f32>(0.0);
            if (key < count) {
                kv = k[key * stride + head * D4 + at % D4];
                vv = v[key * stride + head * D4 + at % D4];
            }
            keys[at] = kv;
            values[at] = vv;
        }
        workgroupBarrier();
        if (live) {
            let last = min(TILE, count - first);
            for (var j = 0u; j < last; j++) {
                var score = 0.0;
                for (var i = 0u; i < D4; i++) { score += dot(query[i], keys[j * D4 + i]); }
                if (info[4] == 1u) { score += bias[(head * queries + row) * count + first + j]; }
                if (score > peak) {
                    let shrink = exp(max(peak - score, -80.0));
                    total *= shrink;
                    for (var i = 0u; i < D4; i++) { acc[i] *= shrink; }
                    peak = score;
                }
                let weight = exp(max(score - peak, -80.0));
                total += weight;
                for (var i = 0u; i < D4; i++) { acc[i] += weight * values[j * D4 + i]; }
            }
        }
        workgroupBarrier();
    }
    if (live) {
        for (var i = 0u; i < D4; i++) { out[row * stride + head * D4 + i] = acc[i] / total; }
    }
}
