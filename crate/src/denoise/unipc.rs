//! UniPC of order 2 for flow matching, for weights that have not been distilled.
//!
//! Follows diffusers `scheduling_unipc_multistep.py` with `use_flow_sigmas`, `prediction_type="flow_prediction"`,
//! `predict_x0`, `solver_type="bh2"`, `solver_order=2` and `lower_order_final`, which Wan's own `fm_solvers_unipc.py`
//! agrees with (Zhao et al., "UniPC", 2023). Coefficients are computed in f64.

/// What the solver remembers of the steps before.
#[derive(Clone, Debug, Default)]
pub struct UniPc {
    /// Estimates of the clean latents and the noise levels they were made at, the newest last; two at most.
    estimates: Vec<(f64, Vec<f32>)>,
    /// The latents that the last prediction started from, and its order.
    last: Option<(Vec<f32>, usize)>,
}

/// Logarithm of the ratio of signal to noise. Sigma 1 is moved a millionth down, as the reference does.
fn lambda(sigma: f64) -> f64 {
    let sigma = sigma.min(1.0 - 1e-6);
    (1.0 - sigma).ln() - sigma.ln()
}

/// `sum of scale * values` over the terms.
fn combine(terms: &[(f64, &[f32])]) -> Vec<f32> {
    let length = terms.first().map_or(0, |(_, values)| values.len());
    (0..length).map(|i| terms.iter().map(|(scale, values)| scale * f64::from(values[i])).sum::<f64>() as f32).collect()
}

impl UniPc {
    /// From `sigma` to `next`, given the estimate of the clean latents at `x`; `left` counts the steps that are left,
    /// this one included.
    pub fn advance(&mut self, x: &[f32], clean: Vec<f32>, sigma: f64, next: f64, left: usize) -> Vec<f32> {
        let x = self.corrected(x, &clean, sigma);
        self.estimates.push((sigma, clean));
        if self.estimates.len() > 2 {
            self.estimates.remove(0);
        }
        let order = self.estimates.len().min(left);
        let moved = self.predicted(&x, sigma, next, order);
        self.last = Some((x, order));
        moved
    }

    /// Goes the last step once more, now that the estimate at its end is known.
    fn corrected(&self, x: &[f32], clean: &[f32], sigma: f64) -> Vec<f32> {
        let (Some((start, order)), Some((from, newest))) = (&self.last, self.estimates.last()) else {
            return x.to_vec();
        };
        let h = lambda(sigma) - lambda(*from);
        let phi = (-h).exp_m1();
        let alpha = 1.0 - sigma;
        // b_k of the reference, divided by B(h) = phi
        let first = (phi / -h - 1.0) / phi;
        let second = 2.0 * ((phi / -h - 1.0) / -h - 0.5) / phi;
        let mut terms = vec![(sigma / from, start.as_slice())];
        let mut own = -alpha * phi;
        match (order, self.estimates.first()) {
            (2, Some((before, oldest))) if self.estimates.len() == 2 => {
                // rho of [1 1; r 1] rho = [first; second]
                let r = (lambda(*before) - lambda(*from)) / h;
                let rho_old = (first - second) / (1.0 - r);
                let rho_new = first - rho_old;
                terms.push((-alpha * phi * rho_old / r, oldest));
                terms.push((-alpha * phi * rho_new, clean));
                own += alpha * phi * (rho_old / r + rho_new);
            }
            _ => {
                terms.push((-alpha * phi * 0.5, clean));
                own += alpha * phi * 0.5;
            }
        }
        terms.push((own, newest));
        combine(&terms)
    }

    fn predicted(&self, x: &[f32], sigma: f64, next: f64, order: usize) -> Vec<f32> {
        let Some((_, newest)) = self.estimates.last() else { return x.to_vec() };
        if next == 0.0 {
            // The limit of the first-order step: lambda is infinite there.
            return newest.clone();
        }
        let h = lambda(next) - lambda(sigma);
        let step = -(1.0 - next) * (-h).exp_m1();
        let mut terms = vec![(next / sigma, x)];
        let mut own = step;
        if let (2, [(before, oldest), _]) = (order, self.estimates.as_slice()) {
            let r = (lambda(*before) - lambda(sigma)) / h;
            terms.push((step * 0.5 / r, oldest));
            own -= step * 0.5 / r;
        }
        terms.push((own, newest));
        combine(&terms)
    }
}
