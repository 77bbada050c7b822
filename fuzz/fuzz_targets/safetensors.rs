#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    prune_fuzz::checkpoint::safetensors(bytes);
});
