//! Products with sparse and quantized matrices, fast on any CPU.
