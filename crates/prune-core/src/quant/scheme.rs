use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use super::minifloat::{
    decode_e2m1, decode_e4m3, decode_e5m2, decode_e8m0, encode_e4m3, encode_e8m0,
};
use crate::{Error, Result};

/// What the codes of a quantised matrix stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NumberFormat {
    /// Unsigned integers of 1 to 8 bits, from which a zero point is subtracted.
    Int {
        /// Bits of a code.
        bits: u8,
    },
    /// The 16 quantiles of a normal distribution of bitsandbytes (Dettmers et al. 2023,
    /// arXiv 2305.14314), from −1 to 1.
    Nf4,
    /// FP4 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    Fp4,
    /// FP8 E4M3 without infinities, up to ±448.
    Fp8E4M3,
    /// FP8 E5M2, up to ±57344.
    Fp8E5M2,
}

/// The levels of NF4, ascending.
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

impl NumberFormat {
    /// Bits of a code.
    pub fn bits(self) -> u32 {
        match self {
            NumberFormat::Int { bits } => u32::from(bits),
            NumberFormat::Nf4 | NumberFormat::Fp4 => 4,
            NumberFormat::Fp8E4M3 | NumberFormat::Fp8E5M2 => 8,
        }
    }

    /// The number that `code` stands for before scaling, and before the zero point of integers is
    /// subtracted. NaN and infinities of FP8 are given as they are.
    pub fn level(self, code: u8) -> f32 {
        match self {
            NumberFormat::Int { .. } => f32::from(code),
            NumberFormat::Nf4 => NF4_LEVELS[usize::from(code & 15)],
            NumberFormat::Fp4 => decode_e2m1(code),
            NumberFormat::Fp8E4M3 => decode_e4m3(code),
            NumberFormat::Fp8E5M2 => decode_e5m2(code),
        }
    }

    /// Whether the codes are integers.
    pub fn is_integer(self) -> bool {
        matches!(self, NumberFormat::Int { .. })
    }
}

impl fmt::Display for NumberFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NumberFormat::Int { bits } => write!(f, "int{bits}"),
            NumberFormat::Nf4 => f.write_str("nf4"),
            NumberFormat::Fp4 => f.write_str("fp4"),
            NumberFormat::Fp8E4M3 => f.write_str("e4m3"),
            NumberFormat::Fp8E5M2 => f.write_str("e5m2"),
        }
    }
}

/// Which weights share a scale (and zero point).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// All of the matrix.
    PerTensor,
    /// Each output channel: a row.
    PerChannel,
    /// This many consecutive input channels of one row; the last group of a row may be shorter.
    Group(usize),
    /// This many consecutive weights in row-major order, across the ends of rows: the blocks of
    /// bitsandbytes. The last may be shorter.
    Flat(usize),
}

impl Granularity {
    /// The shape `(rows, columns)` of the matrix of scales for `rows x cols` weights.
    ///
    /// ```
    /// use prune_core::Granularity;
    /// assert_eq!(Granularity::Group(128).scales_shape(8, 300), (8, 3));
    /// assert_eq!(Granularity::PerChannel.scales_shape(8, 300), (8, 1));
    /// assert_eq!(Granularity::Flat(64).scales_shape(8, 300), (1, 38));
    /// ```
    pub fn scales_shape(self, rows: usize, cols: usize) -> (usize, usize) {
        match self {
            Granularity::PerTensor => (1, 1),
            Granularity::PerChannel => (rows, 1),
            Granularity::Group(n) => (rows, cols.div_ceil(n.max(1))),
            Granularity::Flat(n) => (1, rows.saturating_mul(cols).div_ceil(n.max(1))),
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Granularity::PerTensor => f.write_str("tensor"),
            Granularity::PerChannel => f.write_str("channel"),
            Granularity::Group(n) => write!(f, "g{n}"),
            Granularity::Flat(n) => write!(f, "flat{n}"),
        }
    }
}

/// Where zero lies on the grid of integer codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ZeroPoint {
    /// In the middle: code 2^(bits − 1) is zero, and no zero points are stored. The only choice for
    /// codes that are no integers.
    Symmetric,
    /// At a code of its own in each group.
    Integer,
    /// Anywhere: a number in each group, stored as the scales are, in 16 or 32 bits. Zero need not
    /// have a code.
    Float,
}

impl fmt::Display for ZeroPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ZeroPoint::Symmetric => "sym",
            ZeroPoint::Integer => "asym",
            ZeroPoint::Float => "float",
        })
    }
}

/// The number format in which scales (and zero points that are no codes) are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ScaleFormat {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE 754.
    F16,
    /// 16 bits, the upper half of an f32.
    BF16,
    /// FP8 E4M3, divided by one f32 for the whole matrix (NVFP4).
    E4M3,
    /// A power of two in a byte (MXFP4).
    E8M0,
    /// Double quantisation of bitsandbytes: a byte a scale, an f32 for every 256 of them and one
    /// for their mean.
    Double,
}

impl ScaleFormat {
    /// Bits of `count` scales of one matrix, with what they share.
    ///
    /// ```
    /// use prune_core::ScaleFormat;
    /// assert_eq!(ScaleFormat::F16.storage_bits(10), 160);
    /// assert_eq!(ScaleFormat::E4M3.storage_bits(10), 80 + 32);
    /// assert_eq!(ScaleFormat::Double.storage_bits(512), 512 * 8 + 3 * 32);
    /// ```
    pub fn storage_bits(self, count: usize) -> usize {
        match self {
            ScaleFormat::F32 => 32 * count,
            ScaleFormat::F16 | ScaleFormat::BF16 => 16 * count,
            ScaleFormat::E4M3 => 8 * count + 32,
            ScaleFormat::E8M0 => 8 * count,
            ScaleFormat::Double => 8 * count + 32 * count.div_ceil(256) + 32,
        }
    }

    /// The number of this format nearest to `value`, in f32. [`ScaleFormat::Double`], whose
    /// rounding depends on the other scales, gives `value`. Infinite when F16 overflows.
    ///
    /// Quantise with the scale as it will be stored: only then is the error of a code at most half
    /// a step.
    ///
    /// ```
    /// use prune_core::ScaleFormat;
    /// assert_eq!(ScaleFormat::F16.round(0.1), 0.099975586);
    /// assert_eq!(ScaleFormat::E8M0.round(0.1), 0.125);
    /// ```
    pub fn round(self, value: f32) -> f32 {
        match self {
            ScaleFormat::F32 | ScaleFormat::Double => value,
            ScaleFormat::F16 => f16::from_f32(value).to_f32(),
            ScaleFormat::BF16 => bf16::from_f32(value).to_f32(),
            ScaleFormat::E4M3 => decode_e4m3(encode_e4m3(value)),
            ScaleFormat::E8M0 => decode_e8m0(encode_e8m0(value)),
        }
    }

    /// The smallest positive number of this format.
    pub fn smallest(self) -> f32 {
        match self {
            ScaleFormat::F32 | ScaleFormat::Double => f32::MIN_POSITIVE,
            ScaleFormat::F16 => 5.960_464_5e-8,
            ScaleFormat::BF16 => f32::MIN_POSITIVE,
            ScaleFormat::E4M3 => 0.001_953_125,
            ScaleFormat::E8M0 => decode_e8m0(0),
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScaleFormat::F32 => "f32",
            ScaleFormat::F16 => "f16",
            ScaleFormat::BF16 => "bf16",
            ScaleFormat::E4M3 => "s-e4m3",
            ScaleFormat::E8M0 => "s-e8m0",
            ScaleFormat::Double => "double",
        })
    }
}

/// How a matrix is quantised: codes, grouping, zero point and the format of the scales.
///
/// Written and parsed as words in any order: `int4 g128 sym f16`, `nf4 flat64 double`. What is left
/// out is symmetric, per channel, with f16 scales. `nvfp4` and `mxfp4` stand for `fp4 g16 s-e4m3` and
/// `fp4 g32 s-e8m0`.
///
/// ```
/// use prune_core::{Granularity, QuantScheme, ZeroPoint};
///
/// let scheme: QuantScheme = "int4 g128 asym".parse()?;
/// assert_eq!(scheme, QuantScheme::int(4)?.group(128).zero(ZeroPoint::Integer));
/// assert_eq!(scheme.to_string(), "int4 g128 asym f16");
/// // 4 bits, and 16 for a scale and 4 for a zero point in every group of 128.
/// assert_eq!(scheme.bits_per_weight(4096, 4096), 4.15625);
/// assert!("int9".parse::<QuantScheme>().is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantScheme {
    /// What a code stands for.
    pub number: NumberFormat,
    /// Which weights share a scale.
    pub granularity: Granularity,
    /// Where zero lies.
    pub zero: ZeroPoint,
    /// How scales are stored.
    pub scale: ScaleFormat,
}

impl QuantScheme {
    /// Integers of `bits` bits: symmetric, per channel, f16 scales.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] unless `1 <= bits <= 8`.
    pub fn int(bits: u8) -> Result<Self> {
        let scheme = Self::of(NumberFormat::Int { bits });
        scheme.check()?;
        Ok(scheme)
    }

    /// NF4 as bitsandbytes stores it: blocks of 64 with f32 scales, 4.5 bits a weight.
    pub fn nf4() -> Self {
        let (granularity, scale) = (Granularity::Flat(64), ScaleFormat::F32);
        Self { granularity, scale, ..Self::of(NumberFormat::Nf4) }
    }

    /// MXFP4 of the Open Compute Project: groups of 32 that share a power of two, 4.25 bits a
    /// weight.
    pub fn mxfp4() -> Self {
        let (granularity, scale) = (Granularity::Group(32), ScaleFormat::E8M0);
        Self { granularity, scale, ..Self::of(NumberFormat::Fp4) }
    }

    /// NVFP4: groups of 16 that share an FP8 number, 4.5 bits a weight.
    pub fn nvfp4() -> Self {
        let (granularity, scale) = (Granularity::Group(16), ScaleFormat::E4M3);
        Self { granularity, scale, ..Self::of(NumberFormat::Fp4) }
    }

    /// FP8 E4M3 with an f32 scale for each output channel.
    pub fn fp8() -> Self {
        Self { scale: ScaleFormat::F32, ..Self::of(NumberFormat::Fp8E4M3) }
    }

    fn of(number: NumberFormat) -> Self {
        Self {
            number,
            granularity: Granularity::PerChannel,
            zero: ZeroPoint::Symmetric,
            scale: ScaleFormat::F16,
        }
    }

    /// The same in groups of `size` input channels.
    #[must_use]
    pub fn group(mut self, size: usize) -> Self {
        self.granularity = Granularity::Group(size);
        self
    }

    /// The same with other grouping.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// The same with another zero point.
    #[must_use]
    pub fn zero(mut self, zero: ZeroPoint) -> Self {
        self.zero = zero;
        self
    }

    /// The same with scales stored otherwise.
    #[must_use]
    pub fn scale(mut self, scale: ScaleFormat) -> Self {
        self.scale = scale;
        self
    }

    /// Checks that the parts fit together.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for integers of 0 or more than 8 bits, empty groups, a zero point for
    /// codes that are no integers, and float zero points beside scales of 8 bits, in whose format
    /// they would be stored.
    pub fn check(&self) -> Result<()> {
        if let NumberFormat::Int { bits } = self.number
            && !(1..=8).contains(&bits)
        {
            return Err(Error::out_of_range("bits of an integer code", bits, "1 to 8"));
        }
        if let Granularity::Group(0) | Granularity::Flat(0) = self.granularity {
            return Err(Error::out_of_range("group size", 0, "at least 1"));
        }
        if !self.number.is_integer() && self.zero != ZeroPoint::Symmetric {
            return Err(Error::out_of_range(
                "zero point",
                format!("`{}` for {} codes", self.zero, self.number),
                "`sym`; only integer codes have a zero point",
            ));
        }
        let wide = matches!(self.scale, ScaleFormat::F32 | ScaleFormat::F16 | ScaleFormat::BF16);
        if self.zero == ZeroPoint::Float && !wide {
            return Err(Error::out_of_range(
                "zero point",
                format!("`float` with `{}` scales", self.scale),
                "`sym` or `asym`, or scales in `f32`, `f16` or `bf16`, as which a float zero \
                 point is stored",
            ));
        }
        Ok(())
    }

    /// The bytes of a `rows x cols` matrix in this scheme: densely packed codes, scales and zero
    /// points, each rounded up to whole bytes.
    ///
    /// ```
    /// use prune_core::QuantScheme;
    /// assert_eq!(QuantScheme::mxfp4().nbytes(4, 64), 4 * (32 + 2));
    /// ```
    pub fn nbytes(&self, rows: usize, cols: usize) -> usize {
        let (r, c) = self.granularity.scales_shape(rows, cols);
        let groups = r.saturating_mul(c);
        let zeros = match self.zero {
            ZeroPoint::Symmetric => 0,
            ZeroPoint::Integer => groups.saturating_mul(self.number.bits() as usize),
            ZeroPoint::Float => self.scale.storage_bits(groups),
        };
        let codes = rows.saturating_mul(cols).saturating_mul(self.number.bits() as usize);
        codes.div_ceil(8) + self.scale.storage_bits(groups).div_ceil(8) + zeros.div_ceil(8)
    }

    /// Bits for each weight of a `rows x cols` matrix, scales and zero points included; 0 for an
    /// empty matrix.
    pub fn bits_per_weight(&self, rows: usize, cols: usize) -> f64 {
        let weights = rows.saturating_mul(cols);
        if weights == 0 { 0.0 } else { 8.0 * self.nbytes(rows, cols) as f64 / weights as f64 }
    }
}

impl fmt::Display for QuantScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.number, self.granularity, self.zero, self.scale)
    }
}

impl FromStr for QuantScheme {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |word: &str| {
            Error::out_of_range(
                "quantisation scheme",
                format!("`{word}` in `{text}`"),
                "a number format (`int4`, `nf4`, `fp4`, `e4m3`, `e5m2`) or all of `nvfp4` or \
                 `mxfp4`, and perhaps a grouping \
                 (`tensor`, `channel`, `g128`, `flat64`), a zero point (`sym`, `asym`, `float`) \
                 and a format of the scales (`f32`, `f16`, `bf16`, `s-e4m3`, `s-e8m0`, `double`)",
            )
        };
        // First, so that other words change them wherever they stand.
        let named = text.split_whitespace().find_map(|word| match word {
            "nvfp4" => Some(Self::nvfp4()),
            "mxfp4" => Some(Self::mxfp4()),
            _ => None,
        });
        let mut number = named.map(|scheme| scheme.number);
        let mut scheme = named.unwrap_or(Self::of(NumberFormat::Nf4));
        for word in text.split_whitespace() {
            let tail = |prefix: &str| word.strip_prefix(prefix).and_then(|n| n.parse().ok());
            match word {
                "nf4" => number = Some(NumberFormat::Nf4),
                "fp4" => number = Some(NumberFormat::Fp4),
                "nvfp4" | "mxfp4" => {}
                "e4m3" => number = Some(NumberFormat::Fp8E4M3),
                "e5m2" => number = Some(NumberFormat::Fp8E5M2),
                "tensor" => scheme.granularity = Granularity::PerTensor,
                "channel" => scheme.granularity = Granularity::PerChannel,
                "sym" => scheme.zero = ZeroPoint::Symmetric,
                "asym" => scheme.zero = ZeroPoint::Integer,
                "float" => scheme.zero = ZeroPoint::Float,
                "f32" => scheme.scale = ScaleFormat::F32,
                "f16" => scheme.scale = ScaleFormat::F16,
                "bf16" => scheme.scale = ScaleFormat::BF16,
                "s-e4m3" => scheme.scale = ScaleFormat::E4M3,
                "s-e8m0" => scheme.scale = ScaleFormat::E8M0,
                "double" => scheme.scale = ScaleFormat::Double,
                _ => {
                    if let Some(bits) = word.strip_prefix("int").and_then(|n| n.parse().ok()) {
                        number = Some(NumberFormat::Int { bits });
                    } else if let Some(n) = tail("flat") {
                        scheme.granularity = Granularity::Flat(n);
                    } else if let Some(n) = tail("g") {
                        scheme.granularity = Granularity::Group(n);
                    } else {
                        return Err(bad(word));
                    }
                }
            }
        }
        scheme.number = number.ok_or_else(|| bad(""))?;
        scheme.check()?;
        Ok(scheme)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_per_weight_match_the_published_formulas() {
        let int = |bits| QuantScheme::int(bits).unwrap();
        let (sym, asym) = (ZeroPoint::Symmetric, ZeroPoint::Integer);
        let n = 4096;
        for (scheme, bpw) in [
            (int(4).group(128).zero(sym), 4.125),
            (int(4).group(128).zero(asym), 4.15625),
            (int(4).group(128).zero(ZeroPoint::Float), 4.25),
            (int(4).group(64).zero(ZeroPoint::Float), 4.5),
            (int(4).group(32), 4.5),
            (int(3).group(128).zero(asym), 3.148_437_5),
            (int(2).group(128).zero(asym), 2.140_625),
            (int(2).group(32).zero(ZeroPoint::Float), 3.0),
            (int(8).group(128), 8.125),
            (QuantScheme::nf4(), 4.5),
            (QuantScheme::mxfp4(), 4.25),
        ] {
            assert_eq!(scheme.bits_per_weight(n, n), bpw, "{scheme}");
            assert_eq!(scheme.to_string().parse::<QuantScheme>().unwrap(), scheme);
        }
        let weights = (n * n) as f64;
        let nvfp4 = QuantScheme::nvfp4().bits_per_weight(n, n);
        assert!((nvfp4 - (4.5 + 32.0 / weights)).abs() < 1e-12);
        let double = QuantScheme::nf4().scale(ScaleFormat::Double).bits_per_weight(n, n);
        assert!((double - (4.126_953_125 + 32.0 / weights)).abs() < 1e-12);
    }

    /// The share of a normal distribution below `x`, from a series of odd powers.
    fn normal_below(x: f64) -> f64 {
        let (mut term, mut sum, mut odd) = (x, x, 1.0);
        while term.abs() > 1e-18 {
            odd += 2.0;
            term *= x * x / odd;
            sum += term;
        }
        0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
    }

    fn normal_quantile(p: f64) -> f64 {
        let (mut low, mut high) = (-4.0, 4.0);
        for _ in 0..80 {
            let middle = f64::midpoint(low, high);
            if normal_below(middle) < p { low = middle } else { high = middle }
        }
        low
    }

    #[test]
    fn nf4_levels_are_those_of_bitsandbytes_and_quantiles_of_the_normal_distribution() {
        let table: [f64; 16] = [
            -1.0,
            -0.696_192_800_998_687_7,
            -0.525_073_051_452_636_7,
            -0.394_917_488_098_144_53,
            -0.284_441_381_692_886_35,
            -0.184_773_430_228_233_34,
            -0.091_050_036_251_544_95,
            0.0,
            0.079_580_299_556_255_34,
            0.160_930_201_411_247_25,
            0.246_112_301_945_686_34,
            0.337_915_241_718_292_24,
            0.440_709_829_330_444_34,
            0.562_617_003_917_694_1,
            0.722_956_836_223_602_3,
            1.0,
        ];
        assert_eq!(NF4_LEVELS.map(f64::from), table);
        // From the offset down to the median: nine points above it and eight below, the median
        // once, over the largest.
        let offset = 0.967_708_3;
        let point = |i: usize, points: usize| {
            normal_quantile(offset + (0.5 - offset) * i as f64 / (points - 1) as f64)
        };
        let mut levels: Vec<f64> = (0..8).map(|i| point(i, 9)).collect();
        levels.extend((0..7).map(|i| -point(i, 8)));
        levels.push(0.0);
        levels.sort_by(f64::total_cmp);
        let largest = levels[15];
        for (level, quantile) in NF4_LEVELS.iter().zip(&levels) {
            assert!((f64::from(*level) - quantile / largest).abs() < 1.2e-7, "{level} {quantile}");
        }
    }

    /// Layers of Llama-2-7B.
    fn llama() -> Vec<(usize, usize)> {
        let block =
            [(4096, 4096); 4].into_iter().chain([(11008, 4096), (11008, 4096), (4096, 11008)]);
        block.cycle().take(7 * 32).collect()
    }

    #[test]
    fn a_large_model_takes_the_bytes_of_the_formula() {
        let weights: usize = llama().iter().map(|(r, c)| r * c).sum();
        let rest = 262_144_000 + 266_240; // embeddings and output, norms
        assert_eq!((weights, weights + rest), (6_476_005_376, 6_738_415_616));
        let bytes = |scheme: &str| {
            let scheme: QuantScheme = scheme.parse().unwrap();
            llama().iter().map(|(r, c)| scheme.nbytes(*r, *c)).sum::<usize>() + 2 * rest
        };
        for (scheme, gigabytes) in [
            ("int4 g128", 3.864),
            ("int4 g128 asym", 3.889),
            ("nf4 flat64 f32", 4.168),
            ("nf4 flat64 double", 3.866),
        ] {
            let found = bytes(scheme) as f64 / 1e9;
            assert!((found - gigabytes).abs() < 5.1e-4, "{scheme}: {found}");
        }
        let found = bytes("int4 g128") as f64;
        assert!((found / f64::from(1 << 30) - 3.599).abs() < 5.1e-4);
        assert!((8.0 * found / (weights + rest) as f64 - 4.587).abs() < 5.1e-4);
        // HierarchicalPrune: 79.4 % of the weights in NF4 are reported to take 22.5 % of the bytes.
        let share = 0.794 * QuantScheme::nf4().bits_per_weight(4096, 4096) / 16.0;
        assert!((share - 0.2233).abs() < 1e-4 && (share / 0.225 - 1.0).abs() < 0.01);
    }

    #[test]
    fn nf4_of_a_ragged_size_counts_whole_bytes_and_blocks() {
        // ceil(n / 2) bytes of codes and 4 for each block of 64.
        assert_eq!(QuantScheme::nf4().nbytes(1, 131), 66 + 3 * 4);
    }

    #[test]
    fn the_formats_of_blocks_have_names_of_their_own() {
        for (name, scheme, words) in [
            ("nvfp4", QuantScheme::nvfp4(), "fp4 g16 sym s-e4m3"),
            ("mxfp4", QuantScheme::mxfp4(), "fp4 g32 sym s-e8m0"),
        ] {
            assert_eq!(name.parse::<QuantScheme>().unwrap(), scheme);
            assert_eq!(scheme.to_string(), words);
        }
        for text in ["mxfp4 g64", "g64 mxfp4"] {
            assert_eq!(text.parse::<QuantScheme>().unwrap(), QuantScheme::mxfp4().group(64));
        }
    }

    #[test]
    fn schemes_that_contradict_themselves_are_refused() {
        assert!(QuantScheme::int(0).is_err());
        assert!(QuantScheme::int(9).is_err());
        assert!(QuantScheme::nf4().zero(ZeroPoint::Integer).check().is_err());
        assert!("int4 g0".parse::<QuantScheme>().is_err());
        for scale in ["s-e4m3", "s-e8m0", "double"] {
            assert!(format!("int4 g16 asym {scale}").parse::<QuantScheme>().is_ok());
            let e = format!("int4 g16 float {scale}").parse::<QuantScheme>().unwrap_err();
            assert!(e.to_string().contains(scale), "{e}");
        }
        assert!("g128".parse::<QuantScheme>().is_err());
        assert!("int4 g128 wide".parse::<QuantScheme>().is_err());
    }
}
