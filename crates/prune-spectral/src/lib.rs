//! Spectral densities of weights: heavy-tail exponents, WeightWatcher metrics and FARMS.
