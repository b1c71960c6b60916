// 2-D convolution of one frame, zero padding (kernel - 1) / 2:
// out[O, h, w] = relu?(conv(cat(x0[C0], x1[C1])) + bias + residual[O, h, w])
//
// The second input spares the concatenation that every memory block would do with the previous frame; UPSAMPLE reads
// the inputs through a nearest 2x enlargement without storing it. Four pixels, 64 apart, and eight output channels a
// thread: a weight that is read serves four pixels, a pixel eight channels. Sums have names instead of indices, so that
// every driver keeps them in registers.

const KERNEL = {{ kernel }}u;
const STRIDE = {{ stride }}u;
const UPSAMPLE = {{ upsample }}u;

@group(0) @binding(0) var<storage, read_write> x0: array<f32>;
@group(0) @binding(1) var<storage, read_write> x1: array<f32>;
@group(0) @binding(2) var<storage, read_write> w: array<vec4<f32>>; // [O / 8, KERNEL, KERNEL, C0 + C1, 8]
@group(0) @binding(3) var<storage, read_write> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> residual: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;
struct Info {
    first_channels: u32, second_channels: u32, in_h: u32, in_w: u32, out_c: u32, out_h: u32, out_w: u32,
    has_bias: u32, has_residual: u32, rectify: u32,
}
@group(0) @binding(6) var<uniform> info: Info;

struct Place { inside: bool, at: u32 }

// Where the inputs hold what a tap sees of an output pixel.
fn place(pixel: u32, ky: u32, kx: u32) -> Place {
    let vy = i32(pixel / info.out_w * STRIDE + ky) - i32(KERNEL / 2u);
    let vx = i32(pixel % info.out_w * STRIDE + kx) - i32(KERNEL / 2u);
    let inside = vy >= 0 && vy < i32(info.in_h * UPSAMPLE) && vx >= 0 && vx < i32(info.in_w * UPSAMPLE);
    return Place(inside, select(0u, u32(vy) / UPSAMPLE * info.in_w + u32(vx) / UPSAMPLE, inside));
}

// Output channels are padded to a multiple of eight in the weights, never in the output.
fn store(pixel: u32, channel: u32, sum: f32) {
    let pixels = info.out_h * info.out_w;
    if (pixel >= pixels || channel >= info.out_c) { return; }
    var v = sum;
    if (info.has_bias == 1u) { v += bias[channel]; }
    let to = channel * pixels + pixel;
    if (info.has_residual == 1u) { v += residual[to]; }
    if (info.rectify == 1u) { v = max(v, 0.0); }
    out[to] = v;
}

@compute @workgroup_size(64, 1, 1)
fn main(@builtin(workgroup_id) group_id: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let pixel = (group_id.z * 32768u + group_id.x) * 256u + local.x;
    let area = info.in_h * info.in_w;
    let channels = info.first_channels + info.second_channels;
    var from_w = group_id.y * KERNEL * KERNEL * channels * 2u;

    {{ clear }}
    for (var ky = 0u; ky < KERNEL; ky++) {
        for (var kx = 0u; kx < KERNEL; kx++) {
            {{ places }}
            for (var c = 0u; c < info.first_channels; c++) {
                let low = w[from_w];
                let high = w[from_w + 1u];
                from_w += 2u;
                {{ first }}
            }
            for (var c = 0u; c < info.second_channels; c++) {
                let low = w[from_w];
                let high = w[from_w + 1u];
                from_w += 2u;
                {{ second }}
            }
        }
    }
    {{ store }}
}
