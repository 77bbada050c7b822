//! Scores of layers, blocks and weights: what a network can do without.
