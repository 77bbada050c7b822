use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result, Targets};

/// What is to be done to a model: ordered rules, of which the last that matches a layer decides.
///
/// ```
/// use prune_pipeline::Recipe;
/// let recipe = Recipe::from_yaml(
///     "seed: 7
/// rules:
///   - layers: '*'
///     method: wanda
///     sparsity: 0.5
///   - layers: 're:.*\\.mlp\\.down_proj$'
///     skip: true
/// ")?;
/// assert_eq!(recipe.rules.len(), 2);
/// assert!(Recipe::from_yaml("rules: []\nsparsty: 0.5").is_err());
/// # Ok::<(), prune_pipeline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// The version of this format: 1.
    #[serde(default = "version")]
    pub version: u32,
    /// From which every layer's random numbers come.
    #[serde(default)]
    pub seed: u64,
    /// The dtype of pruned tensors; that of the source when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// Calibration tokens that every calibrated layer has to see; fewer are an error.
    #[serde(default = "min_tokens")]
    pub min_tokens: u64,
    /// What layers are fitted to by methods that fit weights to outputs (those that need Gram
    /// matrices).
    #[serde(default, skip_serializing_if = "is_default")]
    pub targets: Targets,
    /// How quantised layers are stored: `compressed-tensors`, `gptq`, `gptq-v1`, `awq`, `gguf`, or
    /// `dense` (the default): as the floats that the codes stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The GGUF type of the embeddings and the output matrix; that of llama.cpp's own files when
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<String>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// What is to be done to the linear layers whose name matches.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A glob over layer names (`*` also matches dots), or a regular expression after `re:`.
    pub layers: String,
    /// Leave these layers alone; excludes every other field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip: bool,
    /// A pruner, such as `wanda`, a factoriser, such as `armor`, or a quantizer, such as `gptq`;
    /// `ggml` quantises to the types of GGUF as llama.cpp does, and `keep` stores the codes that the
    /// source has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// The fraction of the rule's weights to remove, `0 <= sparsity < 1`. Fixed by N:M patterns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sparsity: Option<f64>,
    /// `unstructured` (default), `2:4`, `block 16x16`, `channels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    /// `row`, `layer` or `global`; the method's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// How the rule's budget is divided over its layers: `uniform` (default), `erk`, `owl`, `farms`
    /// and the other names of [`prune_allocate::allocators`]; one that can be tuned takes its
    /// parameter after `=`, as `owl=0.08`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocate: Option<String>,
    /// Options of the method, by name: numbers or words. Those of
    /// [`prune_unstructured::factoriser`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "scalars")]
    pub options: BTreeMap<String, String>,
    /// How a quantizer groups and scales weights: `int4 g128 asym f16`, see
    /// [`prune_core::QuantScheme`]; for `ggml` the type, `q4_k`. The number may come from `bits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Bits of a code; with `levels`, on average over the rule's layers and never more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<f64>,
    /// The widths among which each layer gets one, by `allocate`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<u8>,
    /// Whether a quantizer leaves weights that are zero in the source zero, as in a model that was
    /// pruned; it does not unless this is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_zeros: Option<bool>,
}

impl Rule {
    /// Whether the method quantises, to a scheme of [`prune_core::QuantScheme`] that can keep
    /// zeros.
    pub fn quantizes(&self) -> bool {
        let method = self.method.as_deref().unwrap_or_default();
        prune_quant::QUANTIZERS.iter().any(|(name, _)| *name == method)
    }
}

/// A map of names to numbers, words or truth values, each as text.
pub(crate) fn scalars<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<BTreeMap<String, String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Whole(i64),
        Number(f64),
        Truth(bool),
        Text(String),
    }
    let found = BTreeMap::<String, Scalar>::deserialize(deserializer)?;
    let text = |scalar| match scalar {
        Scalar::Whole(number) => number.to_string(),
        Scalar::Number(number) => number.to_string(),
        Scalar::Truth(truth) => truth.to_string(),
        Scalar::Text(text) => text,
    };
    Ok(found.into_iter().map(|(key, scalar)| (key, text(scalar))).collect())
}

fn is_default(targets: &Targets) -> bool {
    *targets == Targets::default()
}

fn version() -> u32 {
    1
}

/// Fewer tokens than this say little about a layer's input.
fn min_tokens() -> u64 {
    128
}

impl Recipe {
    /// A recipe of one rule: every linear layer of every block, pruned by `method`.
    pub fn new(method: &str) -> Self {
        let rule = Rule { layers: "*".into(), method: Some(method.into()), ..Rule::default() };
        Self {
            version: 1,
            seed: 0,
            dtype: None,
            min_tokens: min_tokens(),
            targets: Targets::default(),
            format: None,
            embeddings: None,
            rules: vec![rule],
        }
    }

    /// With the first rule's sparsity.
    #[must_use]
    pub fn sparsity(self, sparsity: f64) -> Self {
        self.first(|rule| rule.sparsity = Some(sparsity))
    }

    /// With the first rule's pattern, as text.
    #[must_use]
    pub fn pattern(self, pattern: &str) -> Self {
        self.first(|rule| rule.pattern = Some(pattern.into()))
    }

    /// With the first rule's scope, as text.
    #[must_use]
    pub fn scope(self, scope: &str) -> Self {
        self.first(|rule| rule.scope = Some(scope.into()))
    }

    /// With the first rule's allocator.
    #[must_use]
    pub fn allocate(self, allocator: &str) -> Self {
        self.first(|rule| rule.allocate = Some(allocator.into()))
    }

    /// With an option of the first rule's method.
    #[must_use]
    pub fn option(self, key: &str, value: &str) -> Self {
        self.first(|rule| drop(rule.options.insert(key.into(), value.into())))
    }

    /// With the first rule's scheme, as text.
    #[must_use]
    pub fn scheme(self, scheme: &str) -> Self {
        self.first(|rule| rule.scheme = Some(scheme.into()))
    }

    /// With the first rule's bits: on average, where there are levels.
    #[must_use]
    pub fn bits(self, bits: f64) -> Self {
        self.first(|rule| rule.bits = Some(bits))
    }

    /// With the widths among which the first rule's layers get one.
    #[must_use]
    pub fn levels(self, levels: &[u8]) -> Self {
        self.first(|rule| rule.levels = levels.to_vec())
    }

    /// With the first rule's quantizer leaving zeros zero.
    #[must_use]
    pub fn keep_zeros(self) -> Self {
        self.first(|rule| rule.keep_zeros = Some(true))
    }

    /// With quantised layers stored in this format.
    #[must_use]
    pub fn format(mut self, format: &str) -> Self {
        self.format = Some(format.into());
        self
    }

    /// With a seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With another least number of calibration tokens a layer.
    #[must_use]
    pub fn min_tokens(mut self, tokens: u64) -> Self {
        self.min_tokens = tokens;
        self
    }

    /// With other outputs to fit layers to.
    #[must_use]
    pub fn targets(mut self, targets: Targets) -> Self {
        self.targets = targets;
        self
    }

    /// With one more rule, which overrides those before it where it matches.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    fn first(mut self, change: impl FnOnce(&mut Rule)) -> Self {
        if let Some(rule) = self.rules.first_mut() {
            change(rule);
        }
        self
    }

    /// The recipe that a YAML text states; JSON is YAML too.
    ///
    /// # Errors
    /// [`Error::Recipe`] for syntax, unknown fields and contradictions.
    pub fn from_yaml(text: &str) -> Result<Self> {
        let recipe: Recipe = yaml_serde::from_str(text).map_err(|e| Error::recipe("syntax", e))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// Checks everything that can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the field.
    pub fn check(&self) -> Result<()> {
        if self.version != 1 {
            return Err(Error::recipe(
                "version",
                format!("{} is unknown; expected 1", self.version),
            ));
        }
        if self.rules.is_empty() {
            return Err(Error::recipe("rules", "there is none"));
        }
        for (i, rule) in self.rules.iter().enumerate() {
            let field = |name: &str| format!("rule {}, {name}", i + 1);
            LayerMatcher::new(&rule.layers).map_err(|e| Error::recipe(field("layers"), e))?;
            let others = [
                rule.method.is_some(),
                rule.sparsity.is_some(),
                rule.pattern.is_some(),
                rule.scope.is_some(),
                rule.allocate.is_some(),
                !rule.options.is_empty(),
                rule.scheme.is_some(),
                rule.bits.is_some(),
                !rule.levels.is_empty(),
                rule.keep_zeros.is_some(),
            ];
            if rule.skip && others.contains(&true) {
                return Err(Error::recipe(field("skip"), "excludes every field but `layers`"));
            }
            if !rule.skip && rule.method.is_none() {
                return Err(Error::recipe(field("method"), "is missing; say `skip: true` to skip"));
            }
            if rule.keep_zeros.is_some() && !rule.quantizes() {
                let reason = "is for quantizers that fit a scheme, such as gptq";
                return Err(Error::recipe(field("keep_zeros"), reason));
            }
        }
        Ok(())
    }
}

/// Bytes of a pattern: a class of a few bytes, such as `\pL`, takes thousands once it is parsed.
const PATTERN_BYTES: usize = 2048;
/// Bytes of a compiled regular expression, which a few bytes of pattern can ask for: `(a{99}){99}`.
const COMPILED_BYTES: usize = 1 << 20;

/// A glob or, after `re:`, a regular expression that must match the whole name.
pub(crate) enum LayerMatcher {
    Glob(GlobMatcher),
    Regex(Regex),
}

impl LayerMatcher {
    pub(crate) fn new(pattern: &str) -> std::result::Result<Self, String> {
        if pattern.len() > PATTERN_BYTES {
            return Err(format!("{} bytes; at most {PATTERN_BYTES} make a pattern", pattern.len()));
        }
        match pattern.strip_prefix("re:") {
            Some(re) => RegexBuilder::new(&format!("^(?:{re})$"))
                .size_limit(COMPILED_BYTES)
                .build()
                .map(LayerMatcher::Regex)
                .map_err(|e| e.to_string()),
            None => GlobBuilder::new(pattern)
                .literal_separator(false)
                .build()
                .map(|g| LayerMatcher::Glob(g.compile_matcher()))
                .map_err(|e| e.to_string()),
        }
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            LayerMatcher::Glob(glob) => glob.is_match(name),
            LayerMatcher::Regex(regex) => regex.is_match(name),
        }
    }
}
