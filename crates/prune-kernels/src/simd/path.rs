use std::fmt;

use prune_core::{Error, Result};

use super::{Job, Simd, portable};

/// An instruction set that the products of this crate are compiled for.
///
/// The best one that the processor has is chosen when a matrix is made; a matrix says which with
/// [`LinearOperator::path`](crate::LinearOperator::path), for manifests, and takes another with its
/// `with_path`, for tests. Results on different paths differ in the last bits of f32, since only
/// some fuse a multiplication with the addition after it; on one path they are the same on every
/// run and for any number of threads.
///
/// ```
/// use prune_kernels::KernelPath;
///
/// let path = KernelPath::best();
/// assert!(["avx512", "avx2+fma", "neon", "portable"].contains(&path.name()));
/// assert!(path.is_available() && KernelPath::Portable.is_available());
/// assert_eq!(KernelPath::available().first(), Some(&path));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KernelPath {
    /// AVX-512 F, BW, DQ and VL of x86-64, with what [`KernelPath::Avx2`] needs.
    Avx512,
    /// AVX2, FMA, F16C, and the bit counts that came with them, of x86-64.
    Avx2,
    /// Advanced SIMD of 64-bit Arm.
    Neon,
    /// Any processor.
    Portable,
}

const ALL: [KernelPath; 4] =
    [KernelPath::Avx512, KernelPath::Avx2, KernelPath::Neon, KernelPath::Portable];

impl KernelPath {
    /// The fastest path of this processor.
    pub fn best() -> Self {
        ALL.into_iter().find(|p| p.is_available()).unwrap_or(Self::Portable)
    }

    /// The paths of this processor, fastest first; the last is [`KernelPath::Portable`].
    pub fn available() -> Vec<Self> {
        ALL.into_iter().filter(|p| p.is_available()).collect()
    }

    /// The name in manifests: `avx512`, `avx2+fma`, `neon` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2+fma",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                    && std::arch::is_x86_feature_detected!("f16c")
                    && std::arch::is_x86_feature_detected!("popcnt")
                    && std::arch::is_x86_feature_detected!("bmi1")
                    && std::arch::is_x86_feature_detected!("bmi2")
                    && std::arch::is_x86_feature_detected!("lzcnt")
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            Self::Portable => true,
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

impl fmt::Display for KernelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A path that this processor was found to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Selected(KernelPath);

impl Selected {
    pub(crate) fn best() -> Self {
        Self(KernelPath::best())
    }

    pub(crate) fn portable() -> Self {
        Self(KernelPath::Portable)
    }

    /// An error unless the processor has the instructions.
    pub(crate) fn new(path: KernelPath) -> Result<Self> {
        if path.is_available() {
            return Ok(Self(path));
        }
        let names: Vec<_> = KernelPath::available().iter().map(|p| p.name()).collect();
        Err(Error::OutOfRange {
            what: "kernel path".to_string(),
            found: path.to_string(),
            expected: format!("one that this processor has: {}", names.join(", ")),
        })
    }

    pub(crate) fn path(self) -> KernelPath {
        self.0
    }

    /// [`Simd::COLUMNS`].
    pub(crate) fn columns(self) -> usize {
        self.run(Columns)
    }

    /// Runs `job` with the instructions of this path.
    pub(crate) fn run<J: Job>(self, job: J) -> J::Output {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx512 => {
                // SAFETY: a `Selected` holds only paths whose features were detected.
                #[allow(unsafe_code)]
                unsafe {
                    super::x86::avx512(job)
                }
            }
            #[cfg(target_arch = "x86_64")]
            KernelPath::Avx2 => {
                // SAFETY: a `Selected` holds only paths whose features were detected.
                #[allow(unsafe_code)]
                unsafe {
                    super::x86::avx2(job)
                }
            }
            #[cfg(target_arch = "aarch64")]
            KernelPath::Neon => {
                // SAFETY: a `Selected` holds only paths whose features were detected.
                #[allow(unsafe_code)]
                unsafe {
                    super::neon::neon(job)
                }
            }
            _ => portable::portable(job),
        }
    }
}

struct Columns;

impl Job for Columns {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::COLUMNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_the_processor_lacks_is_refused_by_name() {
        let lacking = ALL.into_iter().find(|p| !p.is_available()).unwrap();
        let error = Selected::new(lacking).unwrap_err().to_string();
        assert!(error.starts_with(&format!("kernel path is {lacking}; expected")), "{error}");
    }
}
