//! GELU and softmax on the CPU, in a form that compilers turn into vector instructions: burn's take powers, hyperbolic
//! tangents and exponential functions of one number at a time, which was two fifths of a denoising step.

/// Past these, `exp` is nothing or more than an f32 holds.
const LEAST: f32 = -87.0;
const MOST: f32 = 88.0;
/// Added to a number below 2^22, it leaves the nearest whole number in the lowest bits.
const SHIFTER: f32 = 12_582_912.0;
/// The natural logarithm of 2 in two parts; the first has so few bits that its products with whole numbers are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `exp(x)` within 2e-7 of itself, without branches: 2^n times a Taylor series for what is left.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(LEAST, MOST);
    let shifted = x * std::f32::consts::LOG2_E + SHIFTER;
    let n = shifted - SHIFTER;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let series = 1.0 / 720.0 + r * (1.0 / 5040.0);
    let series = 1.0 / 24.0 + r * (1.0 / 120.0 + r * series);
    let series = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * series)));
    let power = shifted.to_bits().wrapping_sub(SHIFTER.to_bits()).wrapping_add(127) << 23;
    series * f32::from_bits(power)
}

/// `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, which is `x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x^3)))`.
pub(crate) fn gelu(values: &mut [f32]) {
    const FACTOR: f32 = -1.595_769_1;
    for value in values {
        let x = *value;
        *value = x / (1.0 + exp(FACTOR * x * (1.0 + 0.044_715 * x * x)));
    }
}

/// Every row of `width` values becomes positive and has the sum 1.
pub(crate) fn softmax(values: &mut [f32], width: usize) {
    for row in values.chunks_exact_mut(width.max(1)) {
        let largest = row.iter().fold(f32::NEG_INFINITY, |most, value| most.max(*value));
        row.iter_mut().for_each(|value| *value = exp(*value - largest));
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_function() {
        for at in -870_000..880_000 {
            let x = at as f32 / 10_000.0;
            let (found, wanted) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / wanted - 1.0).abs() < 2e-7, "exp({x}) is {found}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::INFINITY) > 1e38 && exp(0.0) == 1.0);
    }

    #[test]
    fn as_by_definition() {
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let inputs: Vec<f32> =
            (-120_000..120_000).map(|at| at as f32 / 10_000.0).chain([-1e30, -1e4, 1e4, 1e30]).collect();
        let mut found = inputs.clone();
        gelu(&mut found);
        for (x, found) in inputs.into_iter().map(f64::from).zip(found.into_iter().map(f64::from)) {
            let wanted = 0.5 * x * (1.0 + (root * (x + 0.044715 * x * x * x)).tanh());
            assert!((found - wanted).abs() <= 4e-7 * wanted.abs() + 1e-7, "gelu({x}) is {found}, not {wanted}");
        }
    }

    #[test]
    fn rows_of_softmax() {
        let rows = [[0.0, 1.0, 2.0, 3.0], [-1e4, 5.0, 5.0, f32::NEG_INFINITY], [900.0, 0.0, 899.0, 898.5]];
        let mut found: Vec<f32> = rows.concat();
        softmax(&mut found, 4);
        for (row, found) in rows.iter().zip(found.chunks_exact(4)) {
            let largest = row.iter().fold(f32::NEG_INFINITY, |most, value| most.max(*value));
            let wanted = row.map(|value| f64::from(value - largest).exp());
            let sum: f64 = wanted.iter().sum();
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((f64::from(*found) - wanted / sum).abs() < 2e-7, "{found} is not {}", wanted / sum);
            }
        }
    }

    #[test]
    fn nothing_becomes_nan_but_nan() {
        let mut values = [f32::NAN, f32::MAX, f32::MIN, f32::INFINITY, 0.0];
        gelu(&mut values);
        assert!(values[0].is_nan() && values[1..].iter().all(|value| !value.is_nan()), "{values:?}");
    }
}
