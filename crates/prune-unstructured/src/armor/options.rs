use prune_core::{Error, Result};

/// How ARMOR decomposes a layer. [`Default`] is [`ArmorOptions::fast`].
///
/// ```
/// use prune_unstructured::{ArmorOptions, GroupChoice};
/// let options = ArmorOptions::fast().block(32).iterations(300).choice(GroupChoice::Greedy);
/// assert_eq!(options.block, [32, 32]);
/// // A 4096 x 4096 layer gets 32 · (4096 + 4096) numbers more: 1.6 % of what it has.
/// assert_eq!(options.overhead(4096, 4096), 0.015625);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ArmorOptions {
    /// Rows of a block of A and of a block of B. Capped at the layer's size; the last block is
    /// smaller where they do not divide it. The second is a multiple of `m`.
    pub block: [usize; 2],
    /// How A, B and the values of the core move.
    pub method: ArmorMethod,
    /// Which group of each block changes its support.
    pub choice: GroupChoice,
    /// Iterations at most, those of [`AdamOptions::warm_up`] apart. Each moves A, B and the values,
    /// then groups of the core.
    pub iterations: usize,
    /// Moves of A, B and the values in an iteration, at least 1.
    pub continuous_steps: usize,
    /// Groups that each pair of blocks changes in an iteration, one after the other.
    /// [`GroupChoice::Exhaustive`] ranks them all once and takes as many from the top.
    pub discrete_steps: usize,
    /// When to give up before the last iteration.
    pub patience: Patience,
    /// Which of the states met is the result.
    pub keep: Keep,
    /// Whose guards against division by zero.
    pub fidelity: Fidelity,
}

/// How A, B and the values of the core move.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ArmorMethod {
    /// One step of Adam on all of them at once, as the authors' code does. The loss may rise.
    Adam(AdamOptions),
    /// A step of gradient descent on A, then on B, then on the values, each as long as the
    /// curvature allows (1/β): the algorithm of the paper's theorem. The loss never rises.
    Sequential,
    /// The best A, then the best B, then `core_steps` conjugate gradient steps on the values. The
    /// loss never rises.
    Exact {
        /// Steps for the values, at least 1.
        core_steps: usize,
    },
}

/// Learning rates of [`ArmorMethod::Adam`], and what goes before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamOptions {
    /// The first learning rate of A and B, whose diagonals start at 1.
    pub factor_rate: f64,
    /// That of the core: absolute, or a multiple of the root mean square of its kept values.
    pub core_rate: CoreRate,
    /// How both fall.
    pub schedule: Schedule,
    /// Sweeps of [`ArmorMethod::Exact`] with [`AdamOptions::WARM_UP_CORE_STEPS`] before the first
    /// step: beside `iterations`, and counted with them in reports. They lower the loss at once, and pay where fewer than a
    /// hundred iterations follow: beyond that the result may be a little worse.
    pub warm_up: usize,
}

impl AdamOptions {
    /// The steps for the core's values in a sweep of the warm-up.
    pub const WARM_UP_CORE_STEPS: usize = 2;
}

/// The learning rate of the core's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CoreRate {
    /// This number.
    Absolute(f64),
    /// This multiple of the root mean square of the values kept at the start, so that layers of
    /// any width move alike: normalised weights shrink with the square root of the width.
    Relative(f64),
}

/// How a learning rate falls over the iterations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Along half a cosine, to this part of where it started.
    Cosine(f64),
}

/// Which group of `m` weights each pair of blocks changes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum GroupChoice {
    /// Any, all alike.
    Random,
    /// At random, as likely as its gradient (sum of absolute values) is large: the authors' choice.
    GradientRandom,
    /// The one of largest gradient.
    Greedy,
    /// The one whose change lowers the loss most; every group is solved.
    Exhaustive,
}

/// Stops a run that no longer improves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Patience {
    /// Iterations in a row that may fail to improve on the one before by both tolerances.
    pub iterations: usize,
    /// Relative tolerance.
    pub relative: f64,
    /// Absolute tolerance; a core of zeros has loss 1.
    pub absolute: f64,
}

/// Which state is returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The one of least loss. Costs a copy of the core.
    Best,
    /// The last, as the released code does.
    Last,
}

/// Where the released code and the mathematics differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fidelity {
    /// Guards relative to what they guard; a group step that does not lower the loss is not taken;
    /// of equals the lower index goes.
    #[default]
    Corrected,
    /// The released code's: 1e-9 on the diagonal of the group's system, 1e-8 on `‖a‖²`.
    Released,
}

impl Default for ArmorOptions {
    fn default() -> Self {
        Self::fast()
    }
}

impl ArmorOptions {
    /// Blocks of 16, every group solved, 200 iterations at learning rates that fit any width:
    /// minutes on a CPU for a model of 135 million weights.
    ///
    /// Solving every group costs a tenth of an iteration and replaces thousands of random tries:
    /// the authors' choice of groups needs far more iterations for the same loss.
    pub fn fast() -> Self {
        Self {
            block: [16, 16],
            method: ArmorMethod::Adam(AdamOptions {
                factor_rate: 1e-2,
                core_rate: CoreRate::Relative(0.1),
                schedule: Schedule::Cosine(0.05),
                warm_up: 0,
            }),
            choice: GroupChoice::Exhaustive,
            iterations: 200,
            continuous_steps: 1,
            discrete_steps: 2,
            patience: Patience::default(),
            keep: Keep::Best,
            fidelity: Fidelity::Corrected,
        }
    }

    /// The settings of the authors' replication scripts: blocks of 128, Adam at 1e-4, 20,000
    /// iterations. Hours a layer on a CPU. The best state is kept where the released code keeps
    /// the last.
    pub fn paper() -> Self {
        Self {
            block: [128, 128],
            method: ArmorMethod::Adam(AdamOptions {
                factor_rate: 1e-4,
                core_rate: CoreRate::Absolute(1e-4),
                schedule: Schedule::Constant,
                warm_up: 0,
            }),
            choice: GroupChoice::GradientRandom,
            iterations: 20_000,
            discrete_steps: 1,
            ..Self::fast()
        }
    }

    /// The same options with square blocks of `size` rows.
    #[must_use]
    pub fn block(self, size: usize) -> Self {
        Self { block: [size, size], ..self }
    }

    /// The same options with another method.
    #[must_use]
    pub fn method(self, method: ArmorMethod) -> Self {
        Self { method, ..self }
    }

    /// The same options with another choice of groups.
    #[must_use]
    pub fn choice(self, choice: GroupChoice) -> Self {
        Self { choice, ..self }
    }

    /// The same options with another number of iterations.
    #[must_use]
    pub fn iterations(self, iterations: usize) -> Self {
        Self { iterations, ..self }
    }

    /// The numbers in A and B, over those of the dense layer: `b (1/d_out + 1/d_in)` for blocks of
    /// `b` that divide both. 0 for an empty layer.
    pub fn overhead(&self, rows: usize, cols: usize) -> f64 {
        let numbers = |size: usize, block: usize| match block.min(size) {
            0 => 0,
            block => size / block * block * block + (size % block).pow(2),
        };
        match rows * cols {
            0 => 0.0,
            all => {
                (numbers(rows, self.block[0]) + numbers(cols, self.block[1])) as f64 / all as f64
            }
        }
    }

    /// Whether the options can be used with groups of `m` columns.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] naming the option.
    pub fn check(&self, m: usize) -> Result<()> {
        let bad = |what: &str, found: String, expected: &str| {
            Err(Error::OutOfRange {
                what: format!("armor {what}"),
                found,
                expected: expected.to_string(),
            })
        };
        let [rows, cols] = self.block;
        if rows == 0 || cols == 0 || !cols.is_multiple_of(m.max(1)) {
            let expected = format!("at least 1, and a multiple of {m} columns");
            return bad("block", format!("{rows} x {cols}"), &expected);
        }
        if self.continuous_steps == 0 {
            return bad("continuous_steps", "0".into(), "at least 1");
        }
        if self.patience.iterations == 0 {
            return bad("patience", "0 iterations".into(), "at least 1");
        }
        for (what, x) in
            [("relative", self.patience.relative), ("absolute", self.patience.absolute)]
        {
            if !(0.0..1.0).contains(&x) {
                return bad(&format!("patience ({what})"), x.to_string(), "0 <= tolerance < 1");
            }
        }
        match &self.method {
            ArmorMethod::Adam(adam) => {
                let (CoreRate::Absolute(core) | CoreRate::Relative(core)) = adam.core_rate;
                for (what, rate) in [("factor_rate", adam.factor_rate), ("core_rate", core)] {
                    if !(rate.is_finite() && rate > 0.0) {
                        return bad(what, rate.to_string(), "finite and above 0");
                    }
                }
                match adam.schedule {
                    Schedule::Cosine(floor) if !(0.0..=1.0).contains(&floor) => {
                        bad("schedule", format!("a cosine to {floor}"), "a cosine to 0..=1")
                    }
                    _ => Ok(()),
                }
            }
            ArmorMethod::Exact { core_steps: 0 } => bad("core_steps", "0".into(), "at least 1"),
            _ => Ok(()),
        }
    }
}

impl Default for Patience {
    /// That of the released code: 100 iterations, 1e-6, 1e-8.
    fn default() -> Self {
        Self { iterations: 100, relative: 1e-6, absolute: 1e-8 }
    }
}
