/// Whether a method is computed as it should be or as the code released with its paper does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Fidelity {
    /// The budget is met, degenerate input is handled.
    #[default]
    Exact,
    /// What the released code computes, for comparison with published numbers.
    Released,
}
