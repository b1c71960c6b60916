// Rotary position embedding on interleaved pairs: x[N, H*D], table[N, D/2] of (cos, sin).

@group(0) @binding(0) var<storage, read_write> x: array<vec2<f32>>;
@group(0) @binding(1) var<storage, read_write> table: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec2<f32>>;
struct Info { pairs: u32, row_pairs: u32, head_pairs: u32 }
@group(0) @binding(3) var<uniform> info: Info;

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = (group_id.y * 32768u + group_id.x) * 64u + local.x;
    if (at >= info.pairs) { return; }
    let row = at / info.row_pairs;
    let pair = at % info.row_pairs % info.head_pairs;
    let turn = table[row * info.head_pairs + pair];
    let p = x[at];
    out[at] = vec2<f32>(p.x * turn.x - p.y * turn.y, p.x * turn.y + p.y * turn.x);
}
