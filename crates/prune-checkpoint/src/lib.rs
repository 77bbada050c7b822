//! Model checkpoints as streams of tensors: safetensors and GGUF in, Hugging Face directories out.
