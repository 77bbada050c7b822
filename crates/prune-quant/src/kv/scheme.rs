use prune_core::Result;
use serde::{Deserialize, Serialize};

use super::{KvBits, KvPair, out_of_range};

/// Which numbers of a `(tokens, channels)` matrix share one scale and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Grouping {
    /// Neighbouring channels of one token, inside one head.
    PerToken {
        /// Channels of a group; the whole head when absent. Divides the width of a head.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        channels: Option<usize>,
    },
    /// Neighbouring tokens of one channel. What is right for keys, whose outliers stay in a few
    /// channels (KIVI).
    PerChannel {
        /// Tokens of a group.
        tokens: usize,
    },
}

/// The number format of scales, offsets and the residual window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredFloat {
    /// IEEE half, as caches of 16-bit models have it. Values beyond ±65504 are refused.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl StoredFloat {
    /// Bits of a number.
    pub fn bits(self) -> u32 {
        match self {
            StoredFloat::F16 => 16,
            StoredFloat::F32 => 32,
        }
    }

    /// Bytes of a number.
    pub fn size(self) -> usize {
        self.bits() as usize / 8
    }

    /// The largest magnitude that can be cached. For f32 it leaves room for the width of a range.
    pub fn limit(self) -> f32 {
        match self {
            StoredFloat::F16 => 65504.0,
            StoredFloat::F32 => 1e38,
        }
    }
}

/// How a KV cache quantises: everything but the widths.
///
/// The default is KIVI's: keys by channel in groups of 32 tokens, values by token in groups of 32
/// channels, and the newest tokens (a window of 32) not quantised. [`KvScheme::per_token`] is
/// KVTuner's other mode.
///
/// ```
/// use prune_quant::kv::{Grouping, KvPair, KvScheme};
/// let kivi = KvScheme::default();
/// assert_eq!(kivi.key, Grouping::PerChannel { tokens: 32 });
/// // One f16 scale and one f16 offset for 32 numbers are one bit a number.
/// assert_eq!(kivi.stored_bits("KV4".parse()?, 128), 5.0);
/// assert_eq!(KvScheme::per_token().stored_bits("KV4".parse()?, 128), 4.25);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvScheme {
    /// Groups of the keys.
    pub key: Grouping,
    /// Groups of the values.
    pub value: Grouping,
    /// Newest tokens that are not quantised. By token it is a sliding window of this many; by
    /// channel the window fills up, is quantised whole and starts again, so it must be a positive
    /// multiple of the group.
    pub residual: usize,
    /// Format of scales, offsets and the residual window.
    #[serde(default)]
    pub numbers: StoredFloat,
}

impl Default for KvScheme {
    fn default() -> Self {
        Self::kivi()
    }
}

impl KvScheme {
    /// KIVI: keys by channel, values by token, groups of 32, a residual window of 32.
    pub const fn kivi() -> Self {
        Self {
            key: Grouping::PerChannel { tokens: 32 },
            value: Grouping::PerToken { channels: Some(32) },
            residual: 32,
            numbers: StoredFloat::F16,
        }
    }

    /// KVTuner's `per-token-asym`: one group a token and head, no residual window.
    pub const fn per_token() -> Self {
        Self {
            key: Grouping::PerToken { channels: None },
            value: Grouping::PerToken { channels: None },
            residual: 0,
            numbers: StoredFloat::F16,
        }
    }

    /// The same with another residual window.
    pub const fn residual(self, tokens: usize) -> Self {
        Self { residual: tokens, ..self }
    }

    /// The same with another number format.
    pub const fn numbers(self, numbers: StoredFloat) -> Self {
        Self { numbers, ..self }
    }

    /// The same with groups of `size` on both sides: channels by token, tokens by channel.
    pub const fn group(self, size: usize) -> Self {
        const fn resized(grouping: Grouping, size: usize) -> Grouping {
            match grouping {
                Grouping::PerToken { .. } => Grouping::PerToken { channels: Some(size) },
                Grouping::PerChannel { .. } => Grouping::PerChannel { tokens: size },
            }
        }
        Self { key: resized(self.key, size), value: resized(self.value, size), ..self }
    }

    /// Checks the scheme against the width of a head.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] naming the group or window.
    pub fn check(&self, head_dim: usize) -> Result<()> {
        for (side, grouping) in [("keys", self.key), ("values", self.value)] {
            match grouping {
                Grouping::PerToken { channels } => {
                    let group = channels.unwrap_or(head_dim);
                    if group == 0 || !head_dim.is_multiple_of(group) {
                        let what = format!("group of {side} (channels)");
                        return Err(out_of_range(
                            what,
                            group,
                            format!("a divisor of the {head_dim} channels of a head"),
                        ));
                    }
                }
                Grouping::PerChannel { tokens } => {
                    if tokens == 0 || tokens > 1 << 20 {
                        let what = format!("group of {side} (tokens)");
                        return Err(out_of_range(what, tokens, "between 1 and 2^20"));
                    }
                    if self.residual == 0 || !self.residual.is_multiple_of(tokens) {
                        return Err(out_of_range(
                            format!("residual window beside {side} by channel"),
                            self.residual,
                            format!("a positive multiple of the group of {tokens} tokens"),
                        ));
                    }
                }
            }
        }
        if self.residual > 1 << 20 {
            return Err(out_of_range("residual window", self.residual, "at most 2^20 tokens"));
        }
        Ok(())
    }

    /// Honest bits a cached number, codes with their share of scale and offset, of a pair in heads
    /// of `head_dim` channels. Without the residual window, whose share falls with the length.
    pub fn stored_bits(&self, pair: KvPair, head_dim: usize) -> f64 {
        let side = |bits: KvBits, grouping: Grouping| {
            let group = match grouping {
                Grouping::PerToken { channels } => channels.unwrap_or(head_dim),
                Grouping::PerChannel { tokens } => tokens,
            };
            let ranges = match bits {
                KvBits::Sixteen => 0.0,
                _ => 2.0 * f64::from(self.numbers.bits()) / group.max(1) as f64,
            };
            f64::from(bits.width()) + ranges
        };
        (side(pair.key, self.key) + side(pair.value, self.value)) / 2.0
    }
}
