//! Convolutions of the autoencoder, one frame at a time.

use super::launch::{Output, Variant, grid_2d, launch};
use super::{ConvSpec, GpuTensor};

/// Pixels of a thread.
const PIXELS: usize = 4;
/// Output channels of a thread; the weights of so many lie side by side.
const CHANNELS: usize = 8;

/// Weights `[O, C, k, k]` as the kernel reads them: `[O / 8, k, k, C, 8]`, with channels of zeros up to a multiple of
/// eight.
pub(crate) fn conv_weights(values: &[f32], [out, input, high, wide]: [usize; 4]) -> Vec<f32> {
    let taps = high * wide;
    let mut laid = vec![0.0; out.next_multiple_of(CHANNELS) * input * taps];
    for (index, &value) in values.iter().enumerate() {
        let (tap, channel, to) = (index % taps, index / taps % input, index / taps / input);
        laid[((to / CHANNELS * taps + tap) * input + channel) * CHANNELS + to % CHANNELS] = value;
    }
    laid
}

/// A row of text for every pixel of a thread.
fn each_pixel(text: impl Fn(usize) -> String) -> String {
    (0..PIXELS).map(text).collect::<Vec<_>>().join("\n")
}

/// One channel of an input taken to all pixels.
fn gather(input: &str) -> String {
    each_pixel(|p| {
        format!(
            "let v{p} = select(0.0, {input}[c * area + place{p}.at], place{p}.inside);\n\
             low{p} += v{p} * low;\nhigh{p} += v{p} * high;"
        )
    })
}

/// What the template is compiled for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Windows {
    kernel: usize,
    stride: usize,
    upsample: usize,
}

impl Variant for Windows {
    const TEXT: &'static str = include_str!("conv2d.wgsl");

    fn fill(&self) -> Vec<(&'static str, String)> {
        let store = each_pixel(|p| {
            let one = |half: &str, first: usize| {
                (0..4)
                    .zip(["x", "y", "z", "w"])
                    .map(|(i, part)| {
                        format!(
                            "store(pixel + {}u, group_id.y * {CHANNELS}u + {}u, {half}{p}.{part});",
                            64 * p,
                            first + i
                        )
                    })
                    .collect::<Vec<_>>()
                    .join("\n")
            };
            format!("{}\n{}", one("low", 0), one("high", 4))
        });
        vec![
            ("kernel", self.kernel.to_string()),
            ("stride", self.stride.to_string()),
            ("upsample", self.upsample.to_string()),
            ("clear", each_pixel(|p| format!("var low{p} = vec4<f32>(0.0);\nvar high{p} = vec4<f32>(0.0);"))),
            ("places", each_pixel(|p| format!("let place{p} = place(pixel + {}u, ky, kx);", 64 * p))),
            ("first", gather("x0")),
            ("second", gather("x1")),
            ("store", store),
        ]
    }
}

/// `[1, C0, h, w]`, `[1, C1, h, w]`, weights as in `conv2d.wgsl`, `[O]`, `[1, O, h', w']` -> `[1, O, h', w']`.
pub(super) fn conv2d(
    x0: GpuTensor,
    x1: GpuTensor,
    w: GpuTensor,
    bias: GpuTensor,
    residual: GpuTensor,
    spec: ConvSpec,
) -> GpuTensor {
    let shape = x0.meta.shape();
    let (c0, h, width) = (shape[1], shape[2], shape[3]);
    let out_h = (h * spec.upsample).div_ceil(spec.stride);
    let out_w = (width * spec.upsample).div_ceil(spec.stride);
    let out = Output::new(&x0, &[1, spec.out_channels, out_h, out_w]);
    let info = [
        c0,
        spec.second_channels,
        h,
        width,
        spec.out_channels,
        out_h,
        out_w,
        usize::from(spec.has_bias),
        usize::from(spec.has_residual),
        usize::from(spec.relu),
    ];
    let windows = Windows { kernel: spec.kernel, stride: spec.stride, upsample: spec.upsample };
    launch(
        windows,
        &[&x0, &x1, &w, &bias, &residual],
        &out,
        &info,
        grid_2d((out_h * out_w).div_ceil(64 * PIXELS), spec.out_channels.div_ceil(CHANNELS)),
    );
    out.into()
}
