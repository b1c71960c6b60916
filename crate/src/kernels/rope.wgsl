// Rotary position embedding on interleaved pairs: x[N, H*D], table[N, D/2] of (cos, sin).

@group(0) @binding(0) var<storage, read_write> x: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> table: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> info: array<u32>; // pairs in all, pairs per row, pairs per head

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = (group_id.y * 32768u + group_id.x) * 64u + local.x;
    if (at >= info[0]) { return; }
    let row = at / info[1];
    let pair = at % info[1] % info[2];
    let turn = table[row * info[2] + pair];
    let p = x[at];
    out[at] = vec2<f32>(p.x * turn.x - p.y * turn.y, p.x * turn.y + p.y * turn.x);
}
