use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How the learning rate goes over the steps of training, as a factor of its peak.
///
/// ```
/// use prune_train::Schedule;
/// let schedule = Schedule::Cosine { warmup: 10, least: 0.0 };
/// assert_eq!(schedule.factor(4, 110), 0.5);
/// assert_eq!(schedule.factor(10, 110), 1.0);
/// assert!((schedule.factor(60, 110) - 0.5).abs() < 1e-12);
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Schedule {
    /// The peak at every step.
    #[default]
    Constant,
    /// Up linearly, then down along half a cosine.
    Cosine {
        /// Steps until the peak.
        warmup: usize,
        /// The factor at the end.
        least: f64,
    },
    /// Up linearly, the peak, then down linearly (WSD; Hu et al., MiniCPM, 2024).
    WarmupStableDecay {
        /// Steps until the peak.
        warmup: usize,
        /// Steps at the end that go down.
        decay: usize,
        /// The factor at the end.
        least: f64,
    },
    /// Multiplied by `factor` at each milestone, which are shares of all steps.
    Step {
        /// Where, in rising order, each between 0 and 1.
        milestones: Vec<f64>,
        /// What with.
        factor: f64,
    },
}

impl Schedule {
    /// The schedule of the CIFAR experiments of Liu et al. 2022: a tenth at one half and at three
    /// quarters.
    pub fn cifar() -> Self {
        Schedule::Step { milestones: vec![0.5, 0.75], factor: 0.1 }
    }

    /// The factor of step `step`, from 0, of `steps`.
    pub fn factor(&self, step: usize, steps: usize) -> f64 {
        let share = |from: usize, to: usize| {
            ((step.saturating_sub(from)) as f64 / to.saturating_sub(from).max(1) as f64).min(1.0)
        };
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine { warmup, .. } | Schedule::WarmupStableDecay { warmup, .. }
                if step < *warmup =>
            {
                (step + 1) as f64 / *warmup as f64
            }
            Schedule::Cosine { warmup, least } => {
                let half = 0.5 * (1.0 + (std::f64::consts::PI * share(*warmup, steps)).cos());
                least + (1.0 - least) * half
            }
            Schedule::WarmupStableDecay { decay, least, .. } => {
                let start = steps.saturating_sub(*decay);
                if step < start {
                    return 1.0;
                }
                1.0 - (1.0 - least) * share(start, steps)
            }
            Schedule::Step { milestones, factor } => {
                let passed = milestones.iter().filter(|m| step as f64 >= **m * steps as f64);
                factor.powi(passed.count() as i32)
            }
        }
    }

    /// An error for factors that are not finite or negative.
    pub(crate) fn check(&self) -> Result<()> {
        let (what, value) = match self {
            Schedule::Constant => return Ok(()),
            Schedule::Cosine { least, .. } | Schedule::WarmupStableDecay { least, .. } => {
                ("least factor of the schedule", *least)
            }
            Schedule::Step { factor, .. } => ("factor of the schedule", *factor),
        };
        if value.is_finite() && value >= 0.0 {
            return Ok(());
        }
        Err(Error::out_of_range(what, value, "finite and not negative"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_then_linear_to_the_end() {
        let s = Schedule::WarmupStableDecay { warmup: 2, decay: 4, least: 0.1 };
        let factors: Vec<f64> = (0..10).map(|t| s.factor(t, 10)).collect();
        assert_eq!(factors[..7], [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert!((factors[8] - 0.55).abs() < 1e-12);
    }

    #[test]
    fn steps_at_their_milestones() {
        let s = Schedule::cifar();
        assert_eq!(s.factor(79, 160), 1.0);
        assert_eq!(s.factor(80, 160), 0.1);
        assert!((s.factor(120, 160) - 0.01).abs() < 1e-15);
    }
}
