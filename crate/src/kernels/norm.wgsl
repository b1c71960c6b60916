// out[N, C] = normalise(x[N, C]) * (offset + a[r, C]) + b[r, C], r = row / rows_per_modulation
//
// Layer normalisation or root-mean-square normalisation over the full width, in f32, one row a
// workgroup. a and b are affine parameters (one row) or a modulation (one row per latent frame).

const CENTRE = {{ centre }};

@group(0) @binding(0) var<storage, read_write> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> a: array<f32>;
@group(0) @binding(2) var<storage, read_write> b: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
struct Info { rows: u32, width: u32, rows_per_modulation: u32, eps: u32, offset: u32, has_a: u32, has_b: u32 }
@group(0) @binding(4) var<uniform> info: Info;

var<workgroup> partial: array<f32, 64>;

fn total(lane: u32, value: f32) -> f32 {
    workgroupBarrier();
    partial[lane] = value;
    workgroupBarrier();
    for (var step = 32u; step > 0u; step >>= 1u) {
        if (lane < step) { partial[lane] += partial[lane + step]; }
        workgroupBarrier();
    }
    return partial[0];
}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    // Past 65535 rows the grid folds into y. The row is the same for the whole workgroup, but the
    // barriers below must stay in uniform control flow, so rows past the end compute and don't store.
    let row = group_id.y * 32768u + group_id.x;
    let live = row < info.rows;
    let width = info.width;
    let from_row = min(row, info.rows - 1u) * width;

    var mean = 0.0;
    if (CENTRE) {
        var sum = 0.0;
        for (var c = local.x; c < width; c += 64u) { sum += x[from_row + c]; }
        mean = total(local.x, sum) / f32(width);
    }
    var squares = 0.0;
    for (var c = local.x; c < width; c += 64u) {
        let d = x[from_row + c] - mean;
        squares += d * d;
    }
    let inverse = 1.0 / sqrt(total(local.x, squares) / f32(width) + bitcast<f32>(info.eps));
    let from_mod = min(row, info.rows - 1u) / info.rows_per_modulation * width;
    if (live) {
        for (var c = local.x; c < width; c += 64u) {
            var v = (x[from_row + c] - mean) * inverse;
            if (info.has_a == 1u) { v *= bitcast<f32>(info.offset) + a[from_mod + c]; }
            if (info.has_b == 1u) { v += b[from_mod + c]; }
            out[from_row + c] = v;
        }
    }
}
