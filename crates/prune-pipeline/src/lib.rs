//! Recipe to plan to apply to verify: the compression pipeline.
