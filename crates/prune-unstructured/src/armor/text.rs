use std::collections::BTreeMap;
use std::str::FromStr;

use prune_core::{Error, Result};

use super::{AdamOptions, ArmorMethod, ArmorOptions, CoreRate, Fidelity, GroupChoice, Keep};

/// The keys that [`ArmorOptions::from_text`] knows, as its errors list them.
const KEYS: &str = "preset, block, iterations, optimiser, groups, discrete_steps, factor_rate, \
                    core_rate, warm_up, patience, keep, fidelity";

/// Those that mean something for Adam alone.
const ADAM_KEYS: [&str; 3] = ["factor_rate", "core_rate", "warm_up"];

impl ArmorOptions {
    /// The options that a recipe states, by name; what it leaves out is that of the preset.
    ///
    /// | key | value | `fast` | `paper` |
    /// |---|---|---|---|
    /// | `preset` | `fast`, `paper` | | |
    /// | `block` | rows of a block, or `RxC` for A and B apart | 16 | 128 |
    /// | `iterations` | at most so many | 200 | 20000 |
    /// | `optimiser` | `adam`, `sequential`, `exact` | `adam` | `adam` |
    /// | `groups` | `exhaustive`, `greedy`, `gradient`, `random` | `exhaustive` | `gradient` |
    /// | `discrete_steps` | groups that a pair of blocks changes in an iteration | 2 | 1 |
    /// | `factor_rate` | Adam's learning rate of A and B | 0.01 | 0.0001 |
    /// | `core_rate` | that of the core: for `fast` over the root mean square of its values | 0.1 | 0.0001 |
    /// | `warm_up` | sweeps of the exact method before Adam | 0 | 0 |
    /// | `patience` | iterations without improvement that end the run | 100 | 100 |
    /// | `keep` | `best`, `last` state | `best` | `best` |
    /// | `fidelity` | `corrected`, `released` guards | `corrected` | `corrected` |
    ///
    /// # Errors
    /// [`Error::OutOfRange`] naming the option, for unknown keys and values, and for `factor_rate`,
    /// `core_rate` or `warm_up` beside an optimiser other than Adam.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use prune_unstructured::ArmorOptions;
    /// let text = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
    ///     pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    /// };
    /// let found = ArmorOptions::from_text(&text(&[("preset", "paper"), ("block", "32")]))?;
    /// assert_eq!(found, ArmorOptions::paper().block(32));
    /// assert!(ArmorOptions::from_text(&text(&[("blok", "32")])).is_err());
    /// assert!(ArmorOptions::from_text(&text(&[("warm_up", "10")])).is_ok());
    /// let unused = [("optimiser", "exact"), ("warm_up", "10")];
    /// assert!(ArmorOptions::from_text(&text(&unused)).is_err());
    /// # Ok::<(), prune_core::Error>(())
    /// ```
    pub fn from_text(options: &BTreeMap<String, String>) -> Result<Self> {
        let mut found = match options.get("preset").map(String::as_str) {
            None | Some("fast") => Self::fast(),
            Some("paper") => Self::paper(),
            Some(other) => return Err(bad("preset", other, "fast or paper")),
        };
        for (key, value) in options {
            found.set(key, value.trim())?;
        }
        let of_adam = ADAM_KEYS.iter().find(|key| options.contains_key(**key));
        match (&found.method, of_adam) {
            (ArmorMethod::Adam(_), _) | (_, None) => Ok(found),
            (_, Some(key)) => Err(bad(key, "another optimiser", "optimiser adam")),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        match key {
            "preset" => {}
            "block" => {
                let (rows, cols) = value.split_once('x').unwrap_or((value, value));
                self.block = [number(key, rows)?, number(key, cols)?];
            }
            "iterations" => self.iterations = number(key, value)?,
            "optimiser" => {
                self.method = match value {
                    // What both presets have, with their rates.
                    "adam" => return Ok(()),
                    "sequential" => ArmorMethod::Sequential,
                    "exact" => ArmorMethod::Exact { core_steps: 2 },
                    _ => return Err(bad(key, value, "adam, sequential or exact")),
                }
            }
            "groups" => {
                self.choice = match value {
                    "exhaustive" => GroupChoice::Exhaustive,
                    "greedy" => GroupChoice::Greedy,
                    "gradient" => GroupChoice::GradientRandom,
                    "random" => GroupChoice::Random,
                    _ => return Err(bad(key, value, "exhaustive, greedy, gradient or random")),
                }
            }
            "discrete_steps" => self.discrete_steps = number(key, value)?,
            "factor_rate" => {
                let rate = number(key, value)?;
                self.change_adam(|adam| adam.factor_rate = rate);
            }
            "core_rate" => {
                let rate = number(key, value)?;
                self.change_adam(|adam| {
                    adam.core_rate = match adam.core_rate {
                        CoreRate::Absolute(_) => CoreRate::Absolute(rate),
                        CoreRate::Relative(_) => CoreRate::Relative(rate),
                    }
                });
            }
            "warm_up" => {
                let sweeps = number(key, value)?;
                self.change_adam(|adam| adam.warm_up = sweeps);
            }
            "patience" => self.patience.iterations = number(key, value)?,
            "keep" => {
                self.keep = match value {
                    "best" => Keep::Best,
                    "last" => Keep::Last,
                    _ => return Err(bad(key, value, "best or last")),
                }
            }
            "fidelity" => {
                self.fidelity = match value {
                    "corrected" => Fidelity::Corrected,
                    "released" => Fidelity::Released,
                    _ => return Err(bad(key, value, "corrected or released")),
                }
            }
            _ => return Err(bad(key, "unknown", KEYS)),
        }
        Ok(())
    }

    fn change_adam(&mut self, change: impl FnOnce(&mut AdamOptions)) {
        if let ArmorMethod::Adam(adam) = &mut self.method {
            change(adam);
        }
    }
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T> {
    value.trim().parse().map_err(|_| bad(key, value, "a number"))
}

fn bad(key: &str, found: &str, expected: &str) -> Error {
    Error::OutOfRange {
        what: format!("armor option `{key}`"),
        found: found.to_string(),
        expected: expected.to_string(),
    }
}
