//! Few-step flow matching, driven by the manifest's list of sigmas.
//!
//! A clip on the way is `x = (1 - sigma) * x0 + sigma * noise`; the denoiser predicts the velocity
//! `v = noise - x0`, so that `x0 = x - sigma * v`. Formulas as in diffusers' `FlowMatchEulerDiscreteScheduler`
//! (Euler) and in the re-noising loop of distribution-matching distillation.

use crate::model::manifest::{SamplerConfig, SamplerStep};

/// `k s / (1 + (k - 1) s)`: moves a schedule towards the noisy end for `shift` > 1.
pub fn shifted(sigma: f64, shift: f64) -> f64 {
    shift * sigma / (1.0 + (shift - 1.0) * sigma)
}

/// The sigmas of a run: the configured ones, shifted, and a final 0.
pub fn schedule(config: &SamplerConfig) -> Vec<f64> {
    config.sigmas.iter().map(|&sigma| shifted(sigma, config.shift)).chain([0.0]).collect()
}

/// Estimate of the clean latents.
pub fn clean_estimate(x: &[f32], velocity: &[f32], sigma: f64) -> Vec<f32> {
    x.iter().zip(velocity).map(|(x, v)| x - sigma as f32 * v).collect()
}

/// Moves `x` from `sigma` to `next`. `fresh` makes the noise that re-noising needs and is called only then.
pub fn advance(
    step: SamplerStep,
    x: &[f32],
    velocity: &[f32],
    sigma: f64,
    next: f64,
    fresh: impl FnOnce() -> Vec<f32>,
) -> Vec<f32> {
    match step {
        SamplerStep::Euler => {
            let width = (next - sigma) as f32;
            x.iter().zip(velocity).map(|(x, v)| x + width * v).collect()
        }
        SamplerStep::Renoise => {
            let clean = clean_estimate(x, velocity, sigma);
            if next == 0.0 {
                return clean;
            }
            let (keep, add) = ((1.0 - next) as f32, next as f32);
            clean.iter().zip(fresh()).map(|(x0, noise)| keep * x0 + add * noise).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_velocity_reaches_the_clean_latents_in_any_number_of_steps() {
        let clean = [0.5f32, -1.25, 2.0];
        let noise = [1.0f32, 0.25, -0.75];
        for sigmas in [vec![1.0], vec![1.0, 0.9, 0.5, 0.1]] {
            let config = SamplerConfig { sigmas, shift: 3.0, step: SamplerStep::Euler, timestep_scale: 1000.0 };
            let sigmas = schedule(&config);
            let velocity: Vec<f32> = noise.iter().zip(clean).map(|(n, c)| n - c).collect();
            let mut x = noise.to_vec();
            for pair in sigmas.windows(2) {
                x = advance(config.step, &x, &velocity, pair[0], pair[1], Vec::new);
            }
            for (got, want) in x.iter().zip(clean) {
                assert!((got - want).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn renoising_mixes_the_estimate_with_fresh_noise() {
        let x = advance(SamplerStep::Renoise, &[2.0], &[1.0], 1.0, 0.25, || vec![4.0]);
        assert_eq!(x, [0.75 + 1.0]);
        let last = advance(SamplerStep::Renoise, &[2.0], &[1.0], 0.5, 0.0, || unreachable!("no noise after the end"));
        assert_eq!(last, [1.5]);
    }

    #[test]
    fn shift_keeps_the_ends_and_raises_the_middle() {
        assert_eq!(shifted(1.0, 8.0), 1.0);
        assert_eq!(shifted(0.0, 8.0), 0.0);
        assert!((shifted(0.75, 5.0) - 0.9375).abs() < 1e-12);
    }
}
