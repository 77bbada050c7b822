use prune_core::{Error, Result, Seed};
use serde::{Deserialize, Serialize};

use super::nsga2::Fitness;
use super::{KvConfig, KvPair, Nsga2, SearchSpace, out_of_range, pareto_front};

/// Which bits a search counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BitCount {
    /// The paper's equivalent bits: codes alone.
    #[default]
    Codes,
    /// What is stored: codes, scales and offsets.
    Stored,
}

/// The first generation of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FirstGeneration {
    /// The configurations that give every layer the same pair, then random ones. The result is
    /// then never worse than a uniform configuration that the space contains.
    #[default]
    Uniform,
    /// Random points only, as in the released code.
    Random,
}

/// KVTuner's search: fewest bits and highest accuracy over a [`SearchSpace`], by [`Nsga2`].
///
/// Accuracy is whatever the closure measures of a configuration; higher is better. The paper
/// searches with MOEA/D, its released code with NSGA-II; here it is NSGA-II. Every evaluated
/// configuration is a different one, a space no larger than `evaluations` is searched whole, and
/// the same seed gives the same search for the same measurements.
///
/// Source: Li et al., "KVTuner", ICML 2025, section 5; released code, revision babe775.
///
/// ```
/// use prune_quant::kv::{KvPair, KvScheme, KvSearch, LayerGroup, SearchSpace};
///
/// let group = |layers: &[usize]| LayerGroup {
///     layers: layers.to_vec(),
///     candidates: vec![KvPair::NINE[0], KvPair::NINE[4], KvPair::NINE[8]],
/// };
/// let space = SearchSpace::from_groups(vec![group(&[0]), group(&[1, 2])], KvScheme::kivi())?;
/// // A model where layer 0 needs its bits.
/// let accuracy = |config: &prune_quant::kv::KvConfig| -> prune_core::Result<f64> {
///     let bits: Vec<f64> = config.layers().iter().map(|p| p.mean_bits()).collect();
///     Ok(10.0 * bits[0] + bits[1] + bits[2])
/// };
/// let tuning = KvSearch::default().run(&space, 128, accuracy)?;
/// let best = tuning.best(4.0).ok_or("none")?;
/// assert_eq!(best.layers.iter().map(|p| p.to_string()).collect::<Vec<_>>(), ["KV8", "KV2", "KV2"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct KvSearch {
    /// Mean bits that a configuration should not exceed, in units of `count`; no limit when
    /// absent. Soft: what exceeds it ranks behind what does not.
    pub max_bits: Option<f64>,
    /// Which bits are minimised and limited.
    pub count: BitCount,
    /// Configurations to measure, at most.
    pub evaluations: usize,
    /// The genetic algorithm.
    pub nsga2: Nsga2,
    /// The first generation.
    pub first: FirstGeneration,
    /// The seed.
    pub seed: Seed,
}

impl Default for KvSearch {
    /// 200 configurations, as in the paper, without a limit on bits.
    fn default() -> Self {
        Self {
            max_bits: None,
            count: BitCount::default(),
            evaluations: 200,
            nsga2: Nsga2::default(),
            first: FirstGeneration::default(),
            seed: Seed::default(),
        }
    }
}

/// One configuration that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KvTrial {
    /// The pair of each layer.
    pub layers: Vec<KvPair>,
    /// The paper's equivalent bits.
    pub code_bits: f64,
    /// Bits with scales and offsets.
    pub stored_bits: f64,
    /// What the closure measured.
    pub accuracy: f64,
}

/// Everything that a search measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvTuning {
    /// In the order of measurement.
    pub trials: Vec<KvTrial>,
    /// Indices into `trials` of the Pareto front of bits and accuracy, by falling bits.
    pub front: Vec<usize>,
    count: BitCount,
    space: SearchSpace,
}

impl KvSearch {
    /// The measured configurations and their Pareto front. `head_dim` is the width of a head, for
    /// the honest bits. The closure is called once for each configuration, in order.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for options outside their range, [`Error::NotFinite`] for an accuracy
    /// that is not finite, and what the closure gives.
    pub fn run<E: From<Error>>(
        &self,
        space: &SearchSpace,
        head_dim: usize,
        mut accuracy: impl FnMut(&KvConfig) -> Result<f64, E>,
    ) -> Result<KvTuning, E> {
        self.check()?;
        space.scheme().check(head_dim)?;
        let choices: Vec<usize> = space.groups().iter().map(|g| g.candidates.len()).collect();
        let mut trials: Vec<KvTrial> = Vec::new();
        let stream = self.seed.stream("kv-search");
        self.nsga2.run(&choices, self.start(space), self.evaluations, stream, |choice| {
            let config = space.config(choice)?;
            let accuracy = accuracy(&config)?;
            if !accuracy.is_finite() {
                return Err(E::from(Error::NotFinite {
                    what: "accuracy of a KV configuration".to_string(),
                    index: trials.len(),
                    value: accuracy.to_string(),
                }));
            }
            let trial = KvTrial {
                layers: config.layers().to_vec(),
                code_bits: config.mean_bits(),
                stored_bits: config.stored_bits(head_dim),
                accuracy,
            };
            let bits = trial.bits(self.count);
            trials.push(trial);
            let violation = self.max_bits.map_or(0.0, |max| (bits - max).max(0.0));
            Ok(Fitness { objectives: [bits, -accuracy], violation })
        })?;
        let costs: Vec<f64> = trials.iter().map(|t| t.bits(self.count)).collect();
        let errors: Vec<f64> = trials.iter().map(|t| -t.accuracy).collect();
        let front = pareto_front(&costs, &errors)?;
        Ok(KvTuning { trials, front, count: self.count, space: space.clone() })
    }

    fn start(&self, space: &SearchSpace) -> Vec<Vec<usize>> {
        if self.first == FirstGeneration::Random {
            return Vec::new();
        }
        space.groups()[0].candidates.iter().filter_map(|pair| space.uniform(*pair)).collect()
    }

    fn check(&self) -> Result<()> {
        if self.evaluations == 0 {
            return Err(out_of_range("KV configurations to measure", 0, "at least 1"));
        }
        if self.nsga2.population == 0 {
            return Err(out_of_range("NSGA-II population", 0, "at least 1"));
        }
        let n = &self.nsga2;
        let rates = [
            ("crossover", n.crossover),
            ("swap", n.swap),
            ("mutation", n.mutation.unwrap_or_default()),
        ];
        for (what, rate) in rates {
            if !(0.0..=1.0).contains(&rate) {
                return Err(out_of_range(format!("NSGA-II {what}"), rate, "between 0 and 1"));
            }
        }
        match self.max_bits {
            Some(max) if !(max.is_finite() && max > 0.0) => {
                Err(out_of_range("limit on KV bits", max, "finite and above 0"))
            }
            _ => Ok(()),
        }
    }
}

impl KvTrial {
    /// The bits that are counted.
    pub fn bits(&self, count: BitCount) -> f64 {
        match count {
            BitCount::Codes => self.code_bits,
            BitCount::Stored => self.stored_bits,
        }
    }
}

impl KvTuning {
    /// The most accurate trial of at most `max_bits` bits, of equals that of fewer bits; `None`
    /// when there is none. The bits are those that the search counted.
    pub fn best(&self, max_bits: f64) -> Option<&KvTrial> {
        let fits = self.trials.iter().filter(|t| t.bits(self.count) <= max_bits);
        fits.reduce(|best, t| {
            let better = t.accuracy > best.accuracy
                || t.accuracy == best.accuracy && t.bits(self.count) < best.bits(self.count);
            if better { t } else { best }
        })
    }

    /// The trials on the Pareto front, by falling bits.
    pub fn front(&self) -> impl Iterator<Item = &KvTrial> {
        self.front.iter().map(|i| &self.trials[*i])
    }

    /// The space that was searched.
    pub fn space(&self) -> &SearchSpace {
        &self.space
    }

    /// The configuration of a trial, ready for a cache or a file.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a trial without layers.
    pub fn config(&self, trial: &KvTrial) -> Result<KvConfig> {
        KvConfig::new(trial.layers.clone(), *self.space.scheme())
    }
}
