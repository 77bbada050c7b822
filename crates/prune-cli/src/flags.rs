use std::path::Path;

use prune_pipeline::{Recipe, Rule, Targets};

use crate::args::{PruneArgs, QuantArgs, RecipeArgs};
use crate::error::Error;

/// The flags that stand for a recipe.
pub(crate) struct Flags<'a> {
    pub(crate) recipe: &'a RecipeArgs,
    pub(crate) prune: Option<&'a PruneArgs>,
    pub(crate) quant: Option<&'a QuantArgs>,
}

impl Flags<'_> {
    /// The recipe, from its file or from the flags.
    pub(crate) fn recipe(&self) -> Result<Recipe, Error> {
        let args = self.recipe;
        let mut recipe = match &args.recipe {
            Some(path) => read_recipe(path)?,
            None => Recipe::new(args.method.as_deref().unwrap_or_default()),
        };
        if args.recipe.is_none()
            && let Some(rule) = recipe.rules.first_mut()
        {
            rule.allocate.clone_from(&args.allocate);
            if let Some(prune) = self.prune {
                rule.sparsity = prune.sparsity;
                rule.pattern.clone_from(&prune.pattern);
                rule.scope.clone_from(&prune.scope);
                rule.options.extend(prune.option.iter().cloned());
            }
            if let Some(quant) = self.quant {
                quant.fill(rule);
            }
        }
        if self.prune.and_then(|p| p.targets.as_deref()) == Some("dense") {
            recipe.targets = Targets::Dense;
        }
        if let Some(quant) = self.quant {
            recipe.format = quant.format.clone().or(recipe.format);
            recipe.embeddings = quant.embeddings.clone().or(recipe.embeddings);
        }
        if let Some(seed) = args.seed {
            recipe.seed = seed;
        }
        Ok(recipe)
    }
}

impl QuantArgs {
    fn fill(&self, rule: &mut Rule) {
        rule.bits = self.bits;
        rule.levels.clone_from(&self.levels);
        rule.keep_zeros = self.keep_zeros;
        rule.scheme = match (&self.kind, &self.scheme, self.bits, rule.method.as_deref()) {
            (Some(text), ..) | (None, Some(text), ..) => Some(text.clone()),
            (None, None, None, _) | (_, _, _, Some("ggml")) => None,
            (None, None, Some(_), method) => Some(self.words(method.unwrap_or_default())),
        };
    }

    /// The words of the scheme besides the number.
    fn words(&self, method: &str) -> String {
        let format = self.format.as_deref().unwrap_or("dense");
        let group = match &self.group {
            Some(text) if text.parse::<usize>().is_ok() => format!("g{text}"),
            Some(text) => text.clone(),
            None if format == "gguf" => "g32".into(),
            None => "g128".into(),
        };
        let zero = match (&self.zero, method, format) {
            (Some(text), ..) => text.as_str(),
            (None, "hqq", _) => "float",
            (None, _, "compressed-tensors" | "gguf" | "gptq-v1") => "sym",
            (None, ..) => "asym",
        };
        format!("{group} {zero} {}", self.scales)
    }
}

fn read_recipe(path: &Path) -> Result<Recipe, Error> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::Input { path: path.into(), reason: e.to_string() })?;
    Ok(Recipe::from_yaml(&text)?)
}
