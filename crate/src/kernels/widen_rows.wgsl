// The rows of a cache as f32, and a chunk's own behind them, in one buffer. Four values an invocation.

@group(0) @binding(0) var<storage, read_write> words: array<u32>;
@group(0) @binding(1) var<storage, read_write> own: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> info: array<u32>; // stored quads, quads in all, quads of a group

{{ widen }}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = (group_id.y * 32768u + group_id.x) * 64u + local.x;
    if (at >= info[1]) { return; }
    if (at < info[0]) {
        out[at] = widened4(at, info[2]);
    } else {
        out[at] = own[at - info[0]];
    }
}
