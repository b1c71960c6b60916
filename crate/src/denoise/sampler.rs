//! Flow matching over the manifest's list of sigmas.
//!
//! A clip on the way is `x = (1 - sigma) * x0 + sigma * noise`; the denoiser predicts the velocity
//! `v = noise - x0`, so that `x0 = x - sigma * v`. Formulas as in diffusers' `FlowMatchEulerDiscreteScheduler`
//! (Euler), in the re-noising loop of distribution-matching distillation, and in `unipc.rs`.

use crate::denoise::unipc::UniPc;
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

/// Classifier-free guidance: from the velocity without the prompt through the one with it, `scale` times as far.
pub fn guided(captioned: &[f32], free: &[f32], scale: f64) -> Vec<f32> {
    captioned.iter().zip(free).map(|(c, f)| f + scale as f32 * (c - f)).collect()
}

/// One run from noise to clean latents.
#[derive(Clone, Debug)]
pub struct Sampler {
    initial_scale: f64,
    step: SamplerStep,
    sigmas: Vec<f64>,
    timesteps: Vec<f64>,
    unipc: UniPc,
}

impl Sampler {
    /// A run as the manifest has it.
    pub fn new(config: &SamplerConfig) -> Self {
        let sigmas = schedule(config);
        let usual = || sigmas.iter().map(|sigma| sigma * config.timestep_scale).collect();
        Self {
            initial_scale: config.initial_scale,
            step: config.step,
            timesteps: config.timesteps.clone().unwrap_or_else(usual),
            sigmas,
            unipc: UniPc::default(),
        }
    }

    /// What the first step starts from, made of standard normal noise.
    pub fn start(&self, mut noise: Vec<f32>) -> Vec<f32> {
        if self.initial_scale != 1.0 {
            noise.iter_mut().for_each(|value| *value *= self.initial_scale as f32);
        }
        noise
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// Noise level that step `index` starts from.
    pub fn sigma(&self, index: usize) -> f64 {
        self.sigmas[index]
    }

    /// What the denoiser is told at step `index`.
    pub fn timestep(&self, index: usize) -> f64 {
        self.timesteps[index]
    }

    /// Moves `x` over step `index`, given the velocity there: the latents after it and the estimate of the clean ones.
    /// Steps must be taken in order. `fresh` makes the noise that re-noising needs and is called only then.
    pub fn advance(
        &mut self,
        index: usize,
        x: &[f32],
        velocity: &[f32],
        fresh: impl FnOnce() -> Vec<f32>,
    ) -> (Vec<f32>, Vec<f32>) {
        let (sigma, next) = (self.sigmas[index], self.sigmas[index + 1]);
        let clean = clean_estimate(x, velocity, sigma);
        let moved = match self.step {
            SamplerStep::Euler => {
                let width = (next - sigma) as f32;
                x.iter().zip(velocity).map(|(x, v)| x + width * v).collect()
            }
            SamplerStep::Renoise if next == 0.0 => clean.clone(),
            SamplerStep::Renoise => {
                let (keep, add) = ((1.0 - next) as f32, next as f32);
                clean.iter().zip(fresh()).map(|(x0, noise)| keep * x0 + add * noise).collect()
            }
            SamplerStep::Unipc => self.unipc.advance(x, clean.clone(), sigma, next, self.steps() - index),
        };
        (moved, clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sigmas: Vec<f64>, step: SamplerStep) -> SamplerConfig {
        SamplerConfig {
            sigmas,
            shift: 1.0,
            step,
            timestep_scale: 1000.0,
            timesteps: None,
            initial_scale: 1.0,
            guidance: 1.0,
            negative_prompt: String::new(),
            causal: None,
        }
    }

    #[test]
    fn the_denoiser_is_told_what_it_was_trained_with() {
        let plain = config(vec![1.0, 0.75], SamplerStep::Renoise);
        let sampler = Sampler::new(&SamplerConfig { shift: 3.0, ..plain.clone() });
        assert_eq!((sampler.timestep(0), sampler.timestep(1)), (1000.0, 900.0));
        let sampler = Sampler::new(&SamplerConfig { timesteps: Some(vec![1000.0, 757.0]), ..plain });
        assert_eq!((sampler.timestep(1), sampler.sigma(1)), (757.0, 0.75));
    }

    #[test]
    fn an_exact_velocity_reaches_the_clean_latents_in_any_number_of_steps() {
        let clean = [0.5f32, -1.25, 2.0];
        let noise = [1.0f32, 0.25, -0.75];
        for step in [SamplerStep::Euler, SamplerStep::Unipc] {
            for sigmas in [vec![0.999], vec![0.999, 0.9, 0.5, 0.1]] {
                let mut sampler = Sampler::new(&SamplerConfig { shift: 3.0, ..config(sigmas, step) });
                let velocity: Vec<f32> = noise.iter().zip(clean).map(|(n, c)| n - c).collect();
                let sigma = sampler.sigma(0) as f32;
                let mut x: Vec<f32> = noise.iter().zip(clean).map(|(n, c)| sigma * n + (1.0 - sigma) * c).collect();
                for index in 0..sampler.steps() {
                    x = sampler.advance(index, &x, &velocity, Vec::new).0;
                }
                for (got, want) in x.iter().zip(clean) {
                    assert!((got - want).abs() < 1e-5, "{step:?}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn renoising_mixes_the_estimate_with_fresh_noise() {
        let mut sampler = Sampler::new(&config(vec![1.0, 0.25], SamplerStep::Renoise));
        assert_eq!(sampler.advance(0, &[2.0], &[1.0], || vec![4.0]).0, [0.75 + 1.0]);
        let last = sampler.advance(1, &[2.0], &[1.0], || unreachable!("no noise after the end"));
        assert_eq!(last, (vec![1.75], vec![1.75]));
    }

    #[test]
    fn a_run_starts_from_scaled_noise() {
        let plain = config(vec![0.5], SamplerStep::Euler);
        assert_eq!(Sampler::new(&plain).start(vec![2.0]), [2.0]);
        assert_eq!(Sampler::new(&SamplerConfig { initial_scale: 0.5, ..plain }).start(vec![2.0]), [1.0]);
    }

    #[test]
    fn guidance_goes_beyond_the_prompt() {
        assert_eq!(guided(&[2.0, 1.0], &[1.0, 1.0], 3.0), [4.0, 1.0]);
        assert_eq!(guided(&[2.0], &[1.0], 1.0), [2.0]);
    }

    #[test]
    fn shift_keeps_the_ends_and_raises_the_middle() {
        assert_eq!(shifted(1.0, 8.0), 1.0);
        assert_eq!(shifted(0.0, 8.0), 0.0);
        assert!((shifted(0.75, 5.0) - 0.9375).abs() < 1e-12);
    }
}
