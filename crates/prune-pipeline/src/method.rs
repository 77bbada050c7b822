use std::collections::BTreeMap;

use prune_core::{Factoriser, Needs, Pattern, Pruner, Scope};

use prune_importance::BlockTaylor;

use crate::plan::Action;
use crate::plan_quantized::{GGML, KEEP};
use crate::{Error, Result};

fn pruner(name: &str) -> Option<Box<dyn Pruner>> {
    match name {
        BlockTaylor::NAME => Some(Box::new(BlockTaylor)),
        _ => prune_unstructured::pruner(name),
    }
}

/// What does the work of a rule or of a planned tensor.
pub(crate) enum Method {
    /// Writes a sparse weight in place of the weight.
    Pruner(Box<dyn Pruner>),
    /// Writes factors, and their product in place of the weight.
    Factoriser(Box<dyn Factoriser>),
}

impl Method {
    /// The method of that name with these options.
    pub(crate) fn new(name: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        if let Some(factoriser) = prune_unstructured::factoriser(name, options)? {
            return Ok(Self::Factoriser(factoriser));
        }
        let Some(pruner) = pruner(name) else {
            let pruners = prune_unstructured::PRUNERS.iter();
            let pruners = pruners
                .chain(prune_unstructured::FACTORISERS)
                .map(|(name, _)| *name)
                .chain([BlockTaylor::NAME]);
            let quantizers = prune_quant::QUANTIZERS.iter().map(|(name, _)| *name);
            let known = pruners.chain(quantizers).chain([GGML, KEEP]);
            let known = known.collect::<Vec<_>>().join(", ");
            return Err(Error::recipe("method", format!("`{name}` is unknown; known are {known}")));
        };
        match options.keys().next() {
            Some(key) => {
                Err(Error::recipe("options", format!("`{name}` takes none; found `{key}`")))
            }
            None => Ok(Self::Pruner(pruner)),
        }
    }

    /// The method of an action that prunes or factorises; `None` for others.
    pub(crate) fn of(action: &Action) -> Result<Option<Self>> {
        match action {
            Action::Copy
            | Action::Quantize { .. }
            | Action::Fold { .. }
            | Action::Encode { .. } => Ok(None),
            Action::Prune { method, .. } => Self::new(method, &BTreeMap::new()).map(Some),
            Action::Factorise { method, options, .. } => Self::new(method, options).map(Some),
        }
    }

    /// The statistics that it reads.
    pub(crate) fn needs(&self) -> Needs {
        match self {
            Self::Pruner(pruner) => pruner.needs(),
            Self::Factoriser(factoriser) => factoriser.needs(),
        }
    }

    /// The scope of its authors for unstructured pruning.
    pub(crate) fn default_scope(&self) -> Scope {
        match self {
            Self::Pruner(pruner) => pruner.default_scope(),
            Self::Factoriser(_) => Scope::PerLayer,
        }
    }

    pub(crate) fn supports(&self, pattern: Pattern, scope: Scope) -> Result<()> {
        match self {
            Self::Pruner(pruner) => pruner.supports(pattern, scope)?,
            Self::Factoriser(factoriser) => factoriser.supports(pattern, scope)?,
        }
        Ok(())
    }

    pub(crate) fn workspace_bytes(&self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Pruner(pruner) => pruner.workspace_bytes(rows, cols),
            Self::Factoriser(factoriser) => factoriser.workspace_bytes(rows, cols),
        }
    }
}
