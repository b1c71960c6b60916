//! 3x3 convolutions on the CPU with fewer multiplications: two outputs from four inputs along each axis, F(2x2, 3x3)
//! of Winograd's minimal filtering, after Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016).
//!
//! A tile of 4x4 inputs gives 2x2 outputs for 16 multiplications a pair of channels instead of 36. Where the input is
//! enlarged twice (nearest), the two inner inputs of a tile are equal along each axis, one of the four transformed
//! values is nothing, and 9 multiplications remain. Both inputs, the enlargement, bias, residual and rectifier are
//! part of the passes over memory that there are anyway.

/// Values of transformed input that are multiplied at once, about: what caches hold.
const STRIP: usize = 1 << 16;

/// One input of a convolution: planes `[channels, height, width]`, all of one size.
#[derive(Clone, Copy)]
pub(crate) struct Planes<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) channels: usize,
}

/// What is computed: `relu?(conv(enlarged?(inputs)) + bias + residual)`, zero padding 1.
pub(crate) struct Conv3x3<'a> {
    /// Taken together, as if they were joined along the channels.
    pub(crate) inputs: &'a [Planes<'a>],
    /// Height and width of the inputs.
    pub(crate) size: [usize; 2],
    /// Whether they are enlarged twice first.
    pub(crate) upsample: bool,
    pub(crate) out_channels: usize,
    pub(crate) bias: Option<&'a [f32]>,
    /// As large as the output.
    pub(crate) residual: Option<&'a [f32]>,
    pub(crate) relu: bool,
}

/// Transformed values along an axis, of the four: the third is nothing in an enlarged input.
fn kept(upsample: bool) -> &'static [usize] {
    if upsample { &[0, 1, 3] } else { &[0, 1, 2, 3] }
}

/// Number of products of one pair of channels in a tile.
pub(crate) fn products(upsample: bool) -> usize {
    kept(upsample).len().pow(2)
}

/// Tiles whose inputs are transformed and multiplied at once: whole rows of tiles, at least one.
pub(crate) fn strip(channels: usize, upsample: bool, [rows, columns]: [usize; 2]) -> usize {
    let fitting = STRIP / (products(upsample) * channels).max(1);
    (fitting / columns.max(1)).clamp(1, rows.max(1)) * columns
}

/// Weights `[out, input, 3, 3]` -> `[out, input]` for each product.
pub(crate) fn transformed_weights(weights: &[f32], upsample: bool) -> Vec<Vec<f32>> {
    let pairs = weights.len() / 9;
    let mut made = vec![vec![0.0; pairs]; products(upsample)];
    let along = |[a, b, c]: [f32; 3]| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
    for (pair, tap) in weights.chunks_exact(9).enumerate() {
        let columns: [[f32; 4]; 3] = std::array::from_fn(|x| along([tap[x], tap[3 + x], tap[6 + x]]));
        let mut made = made.iter_mut();
        for &y in kept(upsample) {
            let row = along([columns[0][y], columns[1][y], columns[2][y]]);
            for (&x, made) in kept(upsample).iter().zip(&mut made) {
                made[pair] = row[x];
            }
        }
    }
    made
}

impl Conv3x3<'_> {
    fn channels(&self) -> usize {
        self.inputs.iter().map(|input| input.channels).sum()
    }

    /// Height and width of the output.
    pub(crate) fn made(&self) -> [usize; 2] {
        self.size.map(|length| if self.upsample { 2 * length } else { length })
    }

    /// Rows and columns of tiles.
    fn tiles(&self) -> [usize; 2] {
        self.made().map(|length| length.div_ceil(2))
    }

    /// The convolution. `multiply` gets the number of a product, transformed inputs `[channels, tiles]` and the number of
    /// tiles, and returns the product of that number's transformed weights with them, `[out_channels, tiles]`.
    pub(crate) fn run<P: AsRef<[f32]>>(&self, multiply: impl Fn(usize, Vec<f32>, usize) -> P + Sync) -> Vec<f32> {
        let [height, width] = self.made();
        let [rows, columns] = self.tiles();
        let at_once = (strip(self.channels(), self.upsample, [rows, columns]) / columns.max(1)).max(1);
        let strips: Vec<_> = (0..rows).step_by(at_once).map(|first| first..(first + at_once).min(rows)).collect();
        let mut out = vec![0.0; self.out_channels * height * width];
        in_parallel(
            strips.len(),
            |index| {
                let rows = strips[index].clone();
                let tiles = rows.len() * columns;
                let inputs = self.transform(rows.clone()).into_iter().enumerate();
                let products: Vec<P> = inputs.map(|(index, values)| multiply(index, values, tiles)).collect();
                self.finish(&products, rows)
            },
            |index, part| {
                let (first, length) = (2 * strips[index].start * width, part.len() / self.out_channels.max(1));
                for (channel, part) in part.chunks_exact(length.max(1)).enumerate() {
                    let at = channel * height * width + first;
                    out[at..at + length].copy_from_slice(part);
                }
            },
        );
        out
    }

    /// Inputs of some rows of tiles, `[channels, tiles]` for each product.
    fn transform(&self, rows: std::ops::Range<usize>) -> Vec<Vec<f32>> {
        let ([height, width], [_, columns]) = (self.size, self.tiles());
        let (channels, tiles, kept) = (self.channels(), rows.len() * columns, kept(self.upsample));
        let mut made = vec![vec![0.0; channels * tiles]; products(self.upsample)];
        let nothing = vec![0.0; width];
        let mut mixed = vec![0.0; width];
        let [mut even, mut odd] = [(); 2].map(|()| vec![0.0; columns + 1]);
        let planes = self.inputs.iter().flat_map(|input| input.values.chunks_exact((height * width).max(1)));
        for (channel, plane) in planes.enumerate() {
            for (index, row) in rows.clone().enumerate() {
                // The four rows of inputs that a row of tiles looks at; the first output row lies on the second.
                let source: [&[f32]; 4] = std::array::from_fn(|tap| {
                    let y = 2 * row + tap;
                    let y = if self.upsample { (y + 1) / 2 } else { y };
                    // one row of padding
                    let y = y.wrapping_sub(1);
                    if y < height { &plane[y * width..(y + 1) * width] } else { &nothing }
                });
                for (down, &y) in kept.iter().enumerate() {
                    vertical(&source, y, &mut mixed);
                    self.split(&mixed, &mut even, &mut odd);
                    for (across, &x) in kept.iter().enumerate() {
                        let at = channel * tiles + index * columns;
                        let made = &mut made[down * kept.len() + across];
                        horizontal(&even, &odd, x, &mut made[at..at + columns]);
                    }
                }
            }
        }
        made
    }

    /// A padded (and enlarged) row as its even and odd elements.
    fn split(&self, row: &[f32], even: &mut [f32], odd: &mut [f32]) {
        let width = row.len();
        if self.upsample {
            even[1..=width].copy_from_slice(row);
            odd[..width].copy_from_slice(row);
            return;
        }
        for ((even, odd), pair) in even[1..].iter_mut().zip(odd.iter_mut()).zip(row.chunks_exact(2)) {
            (*odd, *even) = (pair[0], pair[1]);
        }
        if width % 2 == 1 {
            odd[width / 2] = row[width - 1];
        }
    }

    /// Outputs of some rows of tiles, `[out_channels, rows of pixels, width]`, from `[out_channels, tiles]` of each product.
    fn finish<P: AsRef<[f32]>>(&self, products: &[P], rows: std::ops::Range<usize>) -> Vec<f32> {
        let ([height, width], [_, columns]) = (self.made(), self.tiles());
        let (tiles, side) = (rows.len() * columns, kept(self.upsample).len());
        let mut sums = vec![vec![0.0; columns]; side];
        let mut line = vec![0.0; 2 * columns];
        let pixels = 2 * rows.start..(2 * rows.end).min(height);
        let mut out = Vec::with_capacity(self.out_channels * pixels.len() * width);
        for channel in 0..self.out_channels {
            let bias = self.bias.map_or(0.0, |bias| bias[channel]);
            for y in pixels.clone() {
                let product = |down: usize, across: usize| {
                    let at = channel * tiles + (y / 2 - rows.start) * columns;
                    &products[down * side + across].as_ref()[at..at + columns]
                };
                for (across, sum) in sums.iter_mut().enumerate() {
                    combine(self.four(|down| product(down, across)), y % 2, sum);
                }
                interleave(self.four(|across| &sums[across][..]), bias, &mut line);
                let at = out.len();
                match self.residual {
                    Some(residual) => {
                        let residual = &residual[(channel * height + y) * width..];
                        out.extend(line[..width].iter().zip(residual).map(|(line, residual)| line + residual));
                    }
                    None => out.extend_from_slice(&line[..width]),
                }
                if self.relu {
                    // `max` would make 0 of what is not a number.
                    out[at..].iter_mut().for_each(|value| *value = if *value < 0.0 { 0.0 } else { *value });
                }
            }
        }
        out
    }

    /// The four values along an axis; the third is empty where it is nothing.
    fn four<'a>(&self, value: impl Fn(usize) -> &'a [f32]) -> [&'a [f32]; 4] {
        match self.upsample {
            true => [value(0), value(1), &[], value(2)],
            false => [value(0), value(1), value(2), value(3)],
        }
    }
}

/// Does `work` for every index below `count` and gives each result to `place`, in any order. Natively on all cores, each
/// of which holds one piece of work at a time.
#[cfg(not(target_family = "wasm"))]
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync, place: impl FnMut(usize, T) + Send) {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let (next, place) = (AtomicUsize::new(0), Mutex::new(place));
    let one_by_one = || {
        loop {
            let index = next.fetch_add(1, Relaxed);
            if index >= count {
                break;
            }
            let result = work(index);
            // A lock is poisoned where another thread has panicked, which ends this one too.
            place.lock().expect("no thread has panicked")(index, result);
        }
    };
    rayon::scope(|scope| {
        for _ in 1..rayon::current_num_threads().min(count) {
            scope.spawn(|_| one_by_one());
        }
        one_by_one();
    });
}

#[cfg(target_family = "wasm")]
fn in_parallel<T>(count: usize, work: impl Fn(usize) -> T, mut place: impl FnMut(usize, T)) {
    for index in 0..count {
        place(index, work(index));
    }
}

/// One of the four transformed values of rows, element by element.
fn vertical(rows: &[&[f32]; 4], which: usize, out: &mut [f32]) {
    match which {
        0 => of_two(out, rows[0], rows[2], |a, b| a - b),
        1 => of_two(out, rows[1], rows[2], |a, b| a + b),
        2 => of_two(out, rows[2], rows[1], |a, b| a - b),
        _ => of_two(out, rows[1], rows[3], |a, b| a - b),
    }
}

/// The same along a row, given as its even and odd elements, for all tiles.
fn horizontal(even: &[f32], odd: &[f32], which: usize, out: &mut [f32]) {
    let count = out.len();
    match which {
        0 => of_two(out, &even[..count], &even[1..], |a, b| a - b),
        1 => of_two(out, &odd[..count], &even[1..], |a, b| a + b),
        2 => of_two(out, &even[1..], &odd[..count], |a, b| a - b),
        _ => of_two(out, &odd[..count], &odd[1..], |a, b| a - b),
    }
}

#[inline(always)]
fn of_two(out: &mut [f32], a: &[f32], b: &[f32], value: impl Fn(f32, f32) -> f32) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = value(*a, *b);
    }
}

/// First or second output along an axis from the four products.
fn combine([first, second, third, fourth]: [&[f32]; 4], which: usize, out: &mut [f32]) {
    match (which, third.is_empty()) {
        (0, false) => {
            for (((out, a), b), c) in out.iter_mut().zip(first).zip(second).zip(third) {
                *out = a + b + c;
            }
        }
        (_, false) => {
            for (((out, b), c), d) in out.iter_mut().zip(second).zip(third).zip(fourth) {
                *out = b - c - d;
            }
        }
        (0, true) => of_two(out, first, second, |a, b| a + b),
        (_, true) => of_two(out, second, fourth, |b, d| b - d),
    }
}

/// Both outputs of each tile along a row, one after the other.
fn interleave([first, second, third, fourth]: [&[f32]; 4], bias: f32, line: &mut [f32]) {
    let pairs = line.chunks_exact_mut(2).zip(first).zip(second).zip(fourth);
    if third.is_empty() {
        for (((pair, a), b), d) in pairs {
            pair[0] = a + b + bias;
            pair[1] = b - d + bias;
        }
    } else {
        for ((((pair, a), b), d), c) in pairs.zip(third) {
            pair[0] = a + b + c + bias;
            pair[1] = b - c - d + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in -1..1, the same every time.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// By definition, in f64.
    fn expected(conv: &Conv3x3, weights: &[f32]) -> Vec<f32> {
        let (channels, [height, width], [h, w]) = (conv.channels(), conv.made(), conv.size);
        let joined: Vec<f32> = conv.inputs.iter().flat_map(|input| input.values.to_vec()).collect();
        let grown = if conv.upsample { 2 } else { 1 };
        let mut out = Vec::new();
        for o in 0..conv.out_channels {
            for y in 0..height {
                for x in 0..width {
                    let mut sum = conv.bias.map_or(0.0, |bias| f64::from(bias[o]));
                    for c in 0..channels {
                        for (dy, dx) in (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx))) {
                            let (Some(y), Some(x)) = ((y + dy).checked_sub(1), (x + dx).checked_sub(1)) else {
                                continue;
                            };
                            if y < height && x < width {
                                let value = joined[(c * h + y / grown) * w + x / grown];
                                let weight = weights[((o * channels + c) * 3 + dy) * 3 + dx];
                                sum += f64::from(value) * f64::from(weight);
                            }
                        }
                    }
                    sum += conv.residual.map_or(0.0, |residual| f64::from(residual[out.len()]));
                    out.push(if conv.relu { sum.max(0.0) } else { sum } as f32);
                }
            }
        }
        out
    }

    fn product(u: &[f32], v: &[f32], [out, channels, tiles]: [usize; 3]) -> Vec<f32> {
        let mut made = vec![0.0; out * tiles];
        for (row, line) in made.chunks_exact_mut(tiles).enumerate() {
            for c in 0..channels {
                let weight = u[row * channels + c];
                line.iter_mut().zip(&v[c * tiles..]).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        made
    }

    #[test]
    fn the_same_as_by_definition() {
        for (number, &(first, second, out, h, w, upsample)) in [
            (3, 0, 5, 8, 8, false),
            (2, 3, 4, 7, 5, false),
            (1, 0, 1, 1, 1, false),
            (4, 4, 3, 2, 9, false),
            (3, 0, 4, 5, 6, true),
            (2, 2, 3, 1, 1, true),
            // several strips
            (64, 64, 2, 40, 34, false),
            (96, 0, 2, 31, 33, true),
        ]
        .iter()
        .enumerate()
        {
            let seed = 10 * number as u64;
            let channels = first + second;
            let (a, b) = (noise(first * h * w, seed + 1), noise(second * h * w, seed + 2));
            let grown = if upsample { 4 } else { 1 };
            let (bias, residual) = (noise(out, seed + 3), noise(out * h * w * grown, seed + 4));
            let weights = noise(out * channels * 9, seed + 5);
            let inputs = [Planes { values: &a, channels: first }, Planes { values: &b, channels: second }];
            for whole in [false, true] {
                let conv = Conv3x3 {
                    inputs: &inputs,
                    size: [h, w],
                    upsample,
                    out_channels: out,
                    bias: whole.then_some(&bias[..]),
                    residual: whole.then_some(&residual[..]),
                    relu: whole,
                };
                let u = transformed_weights(&weights, upsample);
                let found = conv.run(|index, v, tiles| product(&u[index], &v, [out, channels, tiles]));
                let wanted = expected(&conv, &weights);
                let largest = wanted.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert!((found - wanted).abs() < 2e-6 * largest.max(1.0), "{number}: {found} is not {wanted}");
                }
                assert_eq!(found.len(), wanted.len());
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let mut values = noise(64, 1);
        values[9] = f32::NAN;
        let inputs = [Planes { values: &values, channels: 1 }];
        let conv = Conv3x3 {
            inputs: &inputs,
            size: [8, 8],
            upsample: false,
            out_channels: 1,
            bias: None,
            residual: None,
            relu: true,
        };
        let u = transformed_weights(&noise(9, 2), false);
        let found = conv.run(|index, v, tiles| product(&u[index], &v, [1, 1, tiles]));
        assert!(found[9].is_nan() && !found[63].is_nan(), "{found:?}");
    }

    #[test]
    fn strips_are_whole_rows_and_bounded() {
        assert_eq!(strip(128, false, [8, 8]), 32);
        assert_eq!(strip(64, false, [64, 64]), 64);
        assert_eq!(strip(1024, false, [100, 500]), 500);
        assert_eq!(strip(0, true, [0, 0]), 0);
    }
}
