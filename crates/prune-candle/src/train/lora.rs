/// Options of low-rank adapters: every chosen layer computes `x Wᵀ + (α / r) x Aᵀ Bᵀ`, of which
/// only A `(r, in)` and B `(out, r)`, 0 at first, are trained.
///
/// Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// The rank r.
    pub rank: usize,
    /// The numerator of the scale.
    pub alpha: f64,
    /// The layers, by the end of their names.
    pub layers: Vec<String>,
}

impl Default for LoraOptions {
    /// Rank 8 and α 16 on all seven layers of a block.
    fn default() -> Self {
        let layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self { rank: 8, alpha: 16.0, layers: layers.map(str::to_string).to_vec() }
    }
}
