// Rows of f32 to the words of a cache, one unit an invocation: a group with its scale, or the values of one word.
// Values come in as bits: whether one is finite, and which is the largest, can be told from them on every device.

@group(0) @binding(0) var<storage, read_write> x: array<u32>;
@group(0) @binding(1) var<storage, read_write> out: array<u32>;
struct Info { units: u32, values: u32, words: u32 }
@group(0) @binding(2) var<uniform> info: Info;

{{ store }}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let at = (group_id.y * 32768u + group_id.x) * 64u + local.x;
    if (at >= info.units) { return; }
    store(at * info.values, at * info.words, info.values);
}
