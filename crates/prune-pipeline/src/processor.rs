/// The kind of processor, as far as the matrix products choose their instructions by it.
///
/// Products of the same matrices give the same bits on the same kind, whatever the number of
/// threads. Between kinds they may differ in the last places, because sums are grouped by the width
/// of the registers and fused multiply-add rounds once instead of twice.
///
/// ```
/// assert!(prune_pipeline::processor().starts_with(std::env::consts::ARCH));
/// ```
pub fn processor() -> String {
    format!("{}{}", std::env::consts::ARCH, features())
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn features() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "+avx512f"
    } else if std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
    {
        "+avx2+fma"
    } else {
        ""
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86")))]
fn features() -> &'static str {
    if cfg!(target_arch = "aarch64") { "+neon" } else { "" }
}
