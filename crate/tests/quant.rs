//! Number formats: exact bytes, error bounds, and refusal of everything that is not finite.

use half::f16;
use kinora::model::manifest::DType;
use kinora::model::quant::{GROUPS, check, decode, decode_rows, encode};
use proptest::prelude::*;

fn scale_bytes(scale: f32) -> [u8; 2] {
    f16::from_f32(scale).to_le_bytes()
}

#[test]
fn q8_bytes_are_values_then_scales() {
    // Row 0 reaches 127 with scale 1, row 1 reaches -127 with scale 0.5.
    let mut values = vec![0.0f32; 64];
    (values[0], values[1], values[31]) = (127.0, -2.0, 1.4);
    (values[32], values[33]) = (-63.5, 3.0);
    let bytes = encode(DType::Q8, &[2, 32], Some(32), &values).unwrap();
    assert_eq!(bytes.len(), 64 + 4);
    assert_eq!((bytes[0] as i8, bytes[1] as i8, bytes[31] as i8), (127, -2, 1));
    assert_eq!((bytes[32] as i8, bytes[33] as i8), (-127, 6));
    assert_eq!(bytes[64..66], scale_bytes(1.0));
    assert_eq!(bytes[66..68], scale_bytes(0.5));
    let decoded = decode(DType::Q8, &[2, 32], Some(32), &bytes).unwrap();
    assert_eq!((decoded[0], decoded[31], decoded[32], decoded[33]), (127.0, 1.0, -63.5, 3.0));
}

#[test]
fn q4_bytes_have_the_first_value_in_the_low_half() {
    // All steps of scale 2, so that no other scale can be better.
    let values: Vec<f32> = (0..32).map(|index| 2.0 * ((index % 16) as f32 - 8.0)).collect();
    let bytes = encode(DType::Q4, &[32], Some(32), &values).unwrap();
    assert_eq!(bytes.len(), 16 + 2);
    assert_eq!(bytes[..3], [0x10, 0x32, 0x54]);
    assert_eq!(bytes[16..], scale_bytes(2.0));
    assert_eq!(decode(DType::Q4, &[32], Some(32), &bytes).unwrap(), values);
}

#[test]
fn q4_reads_any_nibbles_with_any_scale() {
    let mut bytes = vec![0x88; 16 * 4];
    bytes[16] = 0xf0; // second group of the first row: -8 then 7
    for scale in [1.0, -0.25, 3.0, 0.0] {
        bytes.extend(scale_bytes(scale));
    }
    let decoded = decode(DType::Q4, &[2, 64], Some(32), &bytes).unwrap();
    assert_eq!((decoded[0], decoded[32], decoded[33]), (0.0, 2.0, -1.75));
    assert_eq!(decode_rows(DType::Q4, &[2, 64], Some(32), &bytes, &[1, 0]).unwrap()[64 + 32], 2.0);
}

#[test]
fn zeros_stay_zero() {
    for dtype in [DType::F32, DType::F16, DType::Q8, DType::Q4] {
        let group = dtype.quantized().then_some(32);
        let bytes = encode(dtype, &[3, 32], group, &[0.0; 96]).unwrap();
        assert_eq!(decode(dtype, &[3, 32], group, &bytes).unwrap(), vec![0.0; 96], "{dtype}");
    }
}

#[test]
fn scales_that_are_not_finite_are_refused() {
    for dtype in [DType::Q8, DType::Q4] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bytes = encode(dtype, &[2, 64], Some(32), &[1.0; 128]).unwrap();
            let last = bytes.len() - 2;
            bytes[last..].copy_from_slice(&f16::from_f32(bad).to_le_bytes());
            let shape = [2, 64];
            let error = decode(dtype, &shape, Some(32), &bytes).unwrap_err();
            assert!(error.code() == "tensor" && error.to_string().contains("scale 3 is"), "{error}");
            assert_eq!(check(dtype, &shape, Some(32), &bytes).unwrap_err().code(), "tensor");
            assert_eq!(decode_rows(dtype, &shape, Some(32), &bytes, &[1]).unwrap_err().code(), "tensor");
            assert!(decode_rows(dtype, &shape, Some(32), &bytes, &[0]).is_ok(), "row 0 has good scales");
        }
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![0.5f32; 64];
        values[41] = bad;
        for dtype in [DType::F32, DType::F16, DType::Q8, DType::Q4] {
            let group = dtype.quantized().then_some(64);
            let error = encode(dtype, &[64], group, &values).unwrap_err();
            assert!(error.to_string().contains("41"), "{error}");
        }
        let f32s: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let f16s: Vec<u8> = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
        for (dtype, bytes) in [(DType::F32, f32s), (DType::F16, f16s)] {
            assert_eq!(decode(dtype, &[64], None, &bytes).unwrap_err().code(), "tensor");
            assert_eq!(check(dtype, &[64], None, &bytes).unwrap_err().code(), "tensor");
        }
    }
}

#[test]
fn values_too_large_for_the_format_are_refused() {
    let mut values = [0.0f32; 32];
    values[3] = 70_000.0;
    assert!(encode(DType::F16, &[32], None, &values).unwrap_err().to_string().contains("70000"));
    assert!(encode(DType::Q8, &[32], Some(32), &values).is_ok());
    values[3] = 1e9;
    assert!(encode(DType::Q8, &[32], Some(32), &values).is_err());
    assert!(encode(DType::Q4, &[32], Some(32), &values).is_err());
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let bytes = vec![0u8; 68];
    let cases: [(DType, &[usize], Option<usize>); 10] = [
        (DType::Q8, &[2, 32], Some(64)),
        (DType::Q8, &[2, 32], Some(16)),
        (DType::Q8, &[2, 32], Some(0)),
        (DType::Q8, &[2, 32], None),
        (DType::Q8, &[3, 32], Some(32)),
        (DType::Q8, &[], Some(32)),
        (DType::Q8, &[0, 32], Some(32)),
        (DType::F32, &[17], Some(32)),
        (DType::F32, &[18], None),
        (DType::F16, &[usize::MAX, 2], None),
    ];
    for (dtype, shape, group) in cases {
        let error = decode(dtype, shape, group, &bytes).expect_err(&format!("{dtype} {shape:?} {group:?}"));
        assert_eq!(error.code(), "tensor");
    }
    assert!(decode(DType::Q8, &[2, 32], Some(32), &bytes).is_ok());
    assert!(decode_rows(DType::Q8, &[2, 32], Some(32), &bytes, &[2]).is_err());
    assert!(encode(DType::F32, &[3], None, &[1.0, 2.0]).is_err());
}

/// Shape, group and values: a few rows, values spread over many magnitudes as weights are.
fn tensor() -> impl Strategy<Value = (Vec<usize>, usize, Vec<f32>)> {
    (1usize..5, 1usize..4, prop::sample::select(GROUPS.to_vec()), -12i32..6).prop_flat_map(
        |(rows, groups, group, exponent)| {
            let width = groups * group;
            let size = 2f32.powi(exponent);
            let value = prop_oneof![4 => -1.0f32..1.0, 1 => -0.01f32..0.01, 1 => Just(0.0f32)];
            let values = prop::collection::vec(value.prop_map(move |value| value * size), rows * width);
            (Just(vec![rows, width]), Just(group), values)
        },
    )
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn f32_is_exact_and_f16_is_the_nearest((shape, _, values) in tensor()) {
        let bytes = encode(DType::F32, &shape, None, &values).unwrap();
        prop_assert_eq!(&decode(DType::F32, &shape, None, &bytes).unwrap(), &values);
        let bytes = encode(DType::F16, &shape, None, &values).unwrap();
        for (half, value) in decode(DType::F16, &shape, None, &bytes).unwrap().iter().zip(&values) {
            prop_assert!((half - value).abs() <= value.abs() / 2048.0 + 3e-8);
        }
    }

    #[test]
    fn q8_is_off_by_half_a_step_at_most((shape, group, values) in tensor()) {
        let bytes = encode(DType::Q8, &shape, Some(group), &values).unwrap();
        let decoded = decode(DType::Q8, &shape, Some(group), &bytes).unwrap();
        for (values, decoded) in values.chunks(group).zip(decoded.chunks(group)) {
            // Half a step of absmax / 127; the f16 scale is off by 2^-11, or by 2^-25 where it is subnormal.
            let bound = largest(values) / 254.0 * 1.001 + 127.0 * 3e-8;
            for (value, decoded) in values.iter().zip(decoded) {
                prop_assert!((value - decoded).abs() <= bound, "{} became {}, bound {}", value, decoded, bound);
            }
        }
    }

    #[test]
    fn q4_is_never_worse_than_the_scale_that_reaches_the_largest_value((shape, group, values) in tensor()) {
        let bytes = encode(DType::Q4, &shape, Some(group), &values).unwrap();
        let decoded = decode(DType::Q4, &shape, Some(group), &bytes).unwrap();
        for (values, decoded) in values.chunks(group).zip(decoded.chunks(group)) {
            let error: f64 = values.iter().zip(decoded).map(|(value, decoded)| f64::from(value - decoded).powi(2)).sum();
            let scale = f16::from_f32(largest(values) / 7.0).to_f32();
            let plain: f64 = values.iter().map(|value| {
                let step = if scale == 0.0 { 0.0 } else { (value / scale).round().clamp(-8.0, 7.0) };
                f64::from(value - step * scale).powi(2)
            }).sum();
            prop_assert!(error <= plain * 1.01 + 1e-12, "{} instead of {}", error, plain);
            // No value is further off than the step, whatever the search preferred.
            for (value, decoded) in values.iter().zip(decoded) {
                prop_assert!((value - decoded).abs() <= largest(values) * 0.45 + 1e-6);
            }
        }
    }

    #[test]
    fn rows_are_the_rows_of_the_whole((shape, group, values) in tensor(), pick in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let rows: Vec<usize> = pick.iter().map(|index| index.index(shape[0])).collect();
        for dtype in [DType::F32, DType::F16, DType::Q8, DType::Q4] {
            let group = dtype.quantized().then_some(group);
            let bytes = encode(dtype, &shape, group, &values).unwrap();
            prop_assert!(check(dtype, &shape, group, &bytes).is_ok());
            let whole = decode(dtype, &shape, group, &bytes).unwrap();
            let expected: Vec<f32> = rows.iter().flat_map(|row| whole[row * shape[1]..][..shape[1]].to_vec()).collect();
            prop_assert_eq!(decode_rows(dtype, &shape, group, &bytes, &rows).unwrap(), expected);
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), shape in prop::collection::vec(0usize..70, 0..4), group in prop::option::of(0usize..70)) {
        for dtype in [DType::F32, DType::F16, DType::Q8, DType::Q4] {
            let decoded = decode(dtype, &shape, group, &bytes);
            prop_assert_eq!(decoded.is_ok(), check(dtype, &shape, group, &bytes).is_ok());
        }
    }
}
