//! Gaussian noise that is the same to the bit on every machine and in every language.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) makes the uniform numbers, the
//! inverse normal distribution of Wichura (algorithm AS 241, PPND16) bends them. Both use nothing but integer
//! arithmetic, `+ - * /` and the square root, which IEEE 754 fixes; the logarithm that AS 241 needs in the tails is a
//! series for the same reason, since `ln` differs between maths libraries.

/// `count` values of N(0, 1) for a seed and a stream (0: the initial noise; i: the noise added before step i).
pub fn normal(seed: u64, stream: u32, count: usize) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    (0..count)
        .map(|index| {
            let block = (index / 2) as u64;
            let r = philox([block as u32, (block >> 32) as u32, stream, 0], key);
            let (high, low) = if index % 2 == 0 { (r[0], r[1]) } else { (r[2], r[3]) };
            let bits = ((u64::from(high) << 32) | u64::from(low)) >> 11;
            quantile((bits as f64 + 0.5) * 2f64.powi(-53)) as f32
        })
        .collect()
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
    }
    counter
}

/// Natural logarithm by the series of atanh, for positive normal numbers.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m >= std::f64::consts::SQRT_2 {
        m *= 0.5;
        exponent += 1;
    }
    let s = (m - 1.0) / (m + 1.0);
    let y = s * s;
    let series = (0..=12).rev().fold(0.0, |sum, k| sum * y + 1.0 / f64::from(2 * k + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

fn horner(x: f64, coefficients: &[f64]) -> f64 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

/// Inverse of the standard normal distribution, AS 241.
fn quantile(p: f64) -> f64 {
    let q = p - 0.5;
    if q.abs() <= 0.425 {
        let r = 0.180625 - q * q;
        return q * horner(r, &CENTRE_NUMERATOR) / horner(r, &CENTRE_DENOMINATOR);
    }
    let r = (-ln(if q < 0.0 { p } else { 1.0 - p })).sqrt();
    let z = if r <= 5.0 {
        horner(r - 1.6, &MIDDLE_NUMERATOR) / horner(r - 1.6, &MIDDLE_DENOMINATOR)
    } else {
        horner(r - 5.0, &TAIL_NUMERATOR) / horner(r - 5.0, &TAIL_DENOMINATOR)
    };
    if q < 0.0 { -z } else { z }
}

const CENTRE_NUMERATOR: [f64; 8] = [
    3.387_132_872_796_366_608,
    133.141_667_891_784_377_45,
    1_971.590_950_306_551_442_7,
    13_731.693_765_509_461_125,
    45_921.953_931_549_871_457,
    67_265.770_927_008_700_853,
    33_430.575_583_588_128_105,
    2_509.080_928_730_122_672_7,
];
const CENTRE_DENOMINATOR: [f64; 8] = [
    1.0,
    42.313_330_701_600_911_252,
    687.187_007_492_057_908_3,
    5_394.196_021_424_751_107_7,
    21_213.794_301_586_595_867,
    39_307.895_800_092_710_61,
    28_729.085_735_721_942_674,
    5_226.495_278_852_854_561,
];
const MIDDLE_NUMERATOR: [f64; 8] = [
    1.423_437_110_749_683_577_34,
    4.630_337_846_156_545_295_9,
    5.769_497_221_460_691_405_5,
    3.647_848_324_763_204_605_04,
    1.270_458_252_452_368_382_58,
    0.241_780_725_177_450_611_77,
    0.022_723_844_989_269_184_583_3,
    7.745_450_142_783_414_076_4e-4,
];
const MIDDLE_DENOMINATOR: [f64; 8] = [
    1.0,
    2.053_191_626_637_758_821_87,
    1.676_384_830_183_803_849_4,
    0.689_767_334_985_100_004_55,
    0.148_103_976_427_480_074_59,
    0.015_198_666_563_616_457_189_3,
    5.475_938_084_995_344_946e-4,
    1.050_750_071_644_416_843_24e-9,
];
const TAIL_NUMERATOR: [f64; 8] = [
    6.657_904_643_501_103_777_2,
    5.463_784_911_164_114_369_9,
    1.784_826_539_917_291_335_8,
    0.296_560_571_828_504_891_23,
    0.026_532_189_526_576_123_093,
    1.242_660_947_388_078_438_6e-3,
    2.711_555_568_743_487_578_15e-5,
    2.010_334_399_292_288_132_65e-7,
];
const TAIL_DENOMINATOR: [f64; 8] = [
    1.0,
    0.599_832_206_555_887_937_69,
    0.136_929_880_922_735_805_31,
    0.014_875_361_290_850_615_025,
    7.868_691_311_456_132_591e-4,
    1.846_318_317_510_054_681_8e-5,
    1.421_511_758_316_445_888_7e-7,
    2.044_263_103_389_939_785_64e-15,
];

#[cfg(test)]
mod tests {
    use super::*;

    // Random123's published known answers for philox4x32-10.
    #[test]
    fn philox_matches_the_published_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
    }

    #[test]
    fn the_portable_logarithm_agrees_with_the_library() {
        for i in 1..2000 {
            let x = f64::from(i) * 3.7e-5;
            assert!((ln(x) - x.ln()).abs() < 1e-14 * x.ln().abs().max(1.0), "ln({x})");
        }
    }

    #[test]
    fn the_quantile_is_right_where_tables_are() {
        for (p, z) in [(0.5, 0.0), (0.975, 1.959_963_984_540_054), (1e-9, -5.997_807_015_007_686_5)] {
            assert!((quantile(p) - z).abs() < 1e-13, "{p}: {}", quantile(p));
        }
    }

    #[test]
    fn values_have_the_moments_of_a_normal_distribution() {
        let values = normal(7, 0, 200_000);
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 2e5;
        let fourth = values.iter().map(|v| f64::from(*v).powi(4)).sum::<f64>() / 2e5;
        let variance = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / 2e5;
        assert!(mean.abs() < 0.01 && (variance - 1.0).abs() < 0.01 && (fourth - 3.0).abs() < 0.1);
    }

    #[test]
    fn streams_and_seeds_are_independent() {
        assert_ne!(normal(1, 0, 8), normal(1, 1, 8));
        assert_ne!(normal(1, 0, 8), normal(1 << 32, 0, 8));
        assert_eq!(normal(1, 0, 8)[..], normal(1, 0, 100)[..8]);
    }
}
