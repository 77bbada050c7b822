//! The bridge to candle: Llama-family models a block at a time, tokenizers, evaluation.
