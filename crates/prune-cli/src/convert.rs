use prune_checkpoint::BlockType;
use prune_core::QuantScheme;
use prune_pipeline::{Recipe, Rule, linear_layers};

use crate::args::OutputArgs;
use crate::compress;
use crate::error::Error;
use crate::model::open;

/// `prune convert`: stores what is there in another format.
pub(crate) fn convert(
    model: &str,
    output: &OutputArgs,
    format: &str,
    kind: &str,
    embeddings: Option<String>,
) -> Result<(), Error> {
    let source = open(model)?;
    let stored = |scheme: Option<QuantScheme>| match (scheme, format) {
        // The codes go along where the format has a place for them.
        (Some(scheme), "gguf") if BlockType::of_scheme(&scheme).is_none() => ggml(kind),
        (Some(scheme), _) => Rule {
            method: Some("keep".into()),
            scheme: Some(scheme.to_string()),
            ..Rule::default()
        },
        (None, "gguf") => ggml(kind),
        (None, _) => Rule { method: Some("keep".into()), ..Rule::default() },
    };
    let mut rules: Vec<Rule> = Vec::new();
    for layer in linear_layers(&*source) {
        let rule = stored(source.scheme(&layer.id));
        // The first rule is for all layers; those that differ have one of their own.
        match rules.first() {
            None => rules.push(Rule { layers: "*".into(), ..rule }),
            Some(first) if Rule { layers: "*".into(), ..rule.clone() } == *first => {}
            Some(_) => rules.push(Rule { layers: layer.id.to_string(), ..rule }),
        }
    }
    let recipe = Recipe { format: Some(format.into()), embeddings, rules, ..Recipe::new("keep") };
    compress::convert(source, recipe, output)
}

fn ggml(kind: &str) -> Rule {
    Rule { method: Some("ggml".into()), scheme: Some(kind.into()), ..Rule::default() }
}
