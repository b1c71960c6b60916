// The rows of a cache as f32, and a chunk's own behind them, in one buffer. Four values an invocation.

@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> own: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
struct Info { stored: u32, quads: u32, group_quads: u32 }
@group(0) @binding(3) var<uniform> info: Info;

{{ widen }}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = (group_id.y * 32768u + group_id.x) * 64u + local.x;
    if (at >= info.quads) { return; }
    if (at < info.stored) {
        out[at] = widened4(at, info.group_quads);
    } else {
        out[at] = own[at - info.stored];
    }
}
