use prune_core::{
    Error, Fidelity, NF4_LEVELS, NumberFormat, QuantScheme, Result, ScaleFormat, ZeroPoint,
    decode_e8m0, encode_e2m1, encode_e4m3, encode_e5m2,
};

use super::{Family, MseSearch, MxScale, Range};

/// What the weights of one group share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Params {
    /// As stored.
    pub(crate) scale: f32,
    /// The zero point on the grid of codes; 0 where codes are no integers.
    pub(crate) zero: f32,
    /// What a step of codes is worth: the scale over the scale of the matrix.
    step: f32,
    /// The weight of code 0, for float zero points.
    offset: f32,
}

/// Choices that are not part of a scheme.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rules {
    pub(crate) family: Family,
    pub(crate) range: Range,
    pub(crate) mx_scale: MxScale,
    pub(crate) fidelity: Fidelity,
}

/// Turns weights of one matrix into codes and back.
#[derive(Debug, Clone)]
pub(crate) struct Coder {
    scheme: QuantScheme,
    rules: Rules,
    global: Option<f32>,
    /// The largest integer code.
    top: f32,
    /// The code of zero in a symmetric scheme.
    middle: f32,
    nf4_midpoints: [f32; 15],
}

impl Coder {
    /// `absmax` is the largest magnitude of the whole matrix.
    pub(crate) fn new(scheme: QuantScheme, rules: Rules, absmax: f32) -> Result<Self> {
        scheme.check()?;
        check_range(&rules.range)?;
        let bits = scheme.number.bits();
        let global = (scheme.scale == ScaleFormat::E4M3).then(|| global_scale(scheme, absmax));
        Ok(Self {
            scheme,
            rules,
            global,
            top: ((1u32 << bits) - 1) as f32,
            middle: if scheme.number.is_integer() { (1u32 << (bits - 1)) as f32 } else { 0.0 },
            nf4_midpoints: std::array::from_fn(|i| {
                (f64::midpoint(f64::from(NF4_LEVELS[i]), f64::from(NF4_LEVELS[i + 1]))) as f32
            }),
        })
    }

    /// What all scales are divided by, where there is such a number.
    pub(crate) fn global(&self) -> Option<f32> {
        self.global
    }

    /// The scale and zero point of a group with these weights; of an empty one as of zeros.
    pub(crate) fn params(&self, group: &[f32]) -> Params {
        let (lo, hi) = bounds(&self.rules.range, group);
        match self.rules.range {
            Range::Mse(search) if lo < hi || lo != 0.0 => self.search(&search, group, lo, hi),
            _ => self.params_of_range(lo, hi),
        }
    }

    fn search(&self, search: &MseSearch, group: &[f32], lo: f32, hi: f32) -> Params {
        let mut best = self.params_of_range(lo, hi);
        let mut least = self.error(&best, group, search.norm, f64::INFINITY);
        let steps = (search.shrink * f64::from(search.grid)) as u32;
        for i in 1..steps {
            let part = (1.0 - f64::from(i) / f64::from(search.grid)) as f32;
            let params = self.params_of_range(part * lo, part * hi);
            let error = self.error(&params, group, search.norm, least);
            if error < least {
                (best, least) = (params, error);
            }
        }
        best
    }

    /// The sum of `|x̂ − x|^norm`, or some number not below `limit` when it reaches that.
    fn error(&self, params: &Params, group: &[f32], norm: f64, limit: f64) -> f64 {
        let mut sum = 0.0;
        for x in group {
            let d = f64::from((self.value(params, self.code(params, *x)) - x).abs());
            sum += if norm == 2.0 { d * d } else { d.powf(norm) };
            if sum >= limit {
                break;
            }
        }
        sum
    }

    /// For weights from `lo` to `hi`.
    fn params_of_range(&self, lo: f32, hi: f32) -> Params {
        match (self.scheme.number, self.scheme.zero) {
            (NumberFormat::Int { .. }, ZeroPoint::Float) => self.affine(lo, hi),
            (NumberFormat::Int { .. }, _) => self.integer(lo, hi),
            _ => self.floating(lo.abs().max(hi.abs())),
        }
    }

    fn affine(&self, lo: f32, hi: f32) -> Params {
        if lo == hi {
            // One value: code 0 stands for it, whatever the step.
            return self.with_zero(1.0, -lo);
        }
        let scale = self.stored((hi - lo) / self.top);
        self.with_zero(scale, -lo / self.step(scale))
    }

    fn integer(&self, lo: f32, hi: f32) -> Params {
        let released = self.rules.fidelity == Fidelity::Released;
        let symmetric = self.scheme.zero == ZeroPoint::Symmetric;
        if self.rules.family == Family::Awq {
            if lo == 0.0 && hi == 0.0 && !released {
                return self.with_zero(1.0, if symmetric { self.middle } else { 0.0 });
            }
            if symmetric {
                let absmax = lo.abs().max(hi.abs()).max(1e-5);
                return self.with_zero(self.stored(absmax / (self.middle - 1.0)), self.middle);
            }
            let scale = self.stored((hi - lo).max(1e-5) / self.top);
            let zero = (-(lo / self.step(scale)).round_ties_even()).clamp(0.0, self.top);
            return self.with_zero(scale, zero);
        }
        let (mut lo, mut hi) = (lo.min(0.0), hi.max(0.0));
        if symmetric {
            hi = hi.max(-lo);
            // The released code of GPTQ leaves `lo` at 0 in a group without negative weights, and
            // halves them.
            if lo < 0.0 || !(released && self.rules.family == Family::Gptq) {
                lo = -hi;
            }
        }
        if lo == 0.0 && hi == 0.0 {
            if !released {
                return self.with_zero(1.0, if symmetric { self.middle } else { 0.0 });
            }
            (lo, hi) = (-1.0, 1.0);
        }
        let scale = self.stored((hi - lo) / self.top);
        let zero = match symmetric {
            true => self.middle,
            false => (-lo / self.step(scale)).round_ties_even().clamp(0.0, self.top),
        };
        self.with_zero(scale, zero)
    }

    fn floating(&self, absmax: f32) -> Params {
        let largest = match self.scheme.number {
            NumberFormat::Fp4 => 6.0,
            NumberFormat::Fp8E4M3 => 448.0,
            NumberFormat::Fp8E5M2 => 57344.0,
            _ => 1.0,
        };
        let scale = match (self.scheme.scale, self.global) {
            _ if absmax == 0.0 => 1.0,
            (ScaleFormat::E8M0, _) => {
                let power = shared_power(absmax, largest, self.rules.mx_scale);
                // No code of NF4 is beyond its scale, so that what is would be lost.
                let lost = self.scheme.number == NumberFormat::Nf4 && power < absmax;
                if lost { 2.0 * power } else { power }
            }
            (format, Some(global)) => {
                let scale = format.round(global * absmax / largest);
                match (scale == 0.0, self.rules.fidelity) {
                    (false, _) => scale,
                    (true, Fidelity::Released) => 0.125,
                    (true, _) => format.smallest(),
                }
            }
            (_, None) => self.stored(absmax / largest),
        };
        self.with_zero(scale, 0.0)
    }

    /// The scale that the scheme stores for a step of this size, never 0.
    fn stored(&self, step: f32) -> f32 {
        let format = self.scheme.scale;
        format.round(self.global.map_or(step, |g| g * step)).max(format.smallest())
    }

    /// What a step of codes is worth under a stored scale.
    fn step(&self, scale: f32) -> f32 {
        self.global.map_or(scale, |g| scale / g)
    }

    fn with_zero(&self, scale: f32, zero: f32) -> Params {
        let zero = match self.scheme.zero {
            ZeroPoint::Float => self.scheme.scale.round(zero),
            _ => zero,
        };
        let step = self.step(scale);
        Params { scale, zero, step, offset: -zero * step }
    }

    /// The same group with another float zero point, which is rounded as it will be stored.
    pub(crate) fn with_scale_and_zero(&self, scale: f32, zero: f32) -> Params {
        self.with_zero(self.stored(scale), zero)
    }

    /// The same group with a scale that was read back from storage.
    pub(crate) fn with_scale(&self, p: &Params, scale: f32) -> Params {
        self.with_zero(scale, p.zero)
    }

    /// The code of `x`.
    #[inline(always)]
    pub(crate) fn code(&self, p: &Params, x: f32) -> u8 {
        match self.scheme.number {
            NumberFormat::Int { .. } => {
                let code = match (self.scheme.zero, self.rules.family) {
                    (ZeroPoint::Float, _) => ((x - p.offset) / p.step).round_ties_even(),
                    (_, Family::CompressedTensors) => {
                        // On the signed grid, as the reference computes it: the sum is rounded to
                        // f32 there.
                        let sum = (x / p.step) + (p.zero - self.middle);
                        sum.clamp(-self.middle, self.middle - 1.0).round_ties_even() + self.middle
                    }
                    _ => (x / p.step).round_ties_even() + p.zero,
                };
                code.clamp(0.0, self.top) as u8
            }
            NumberFormat::Nf4 => {
                let y = (x / p.step).clamp(-1.0, 1.0);
                self.nf4_midpoints.iter().map(|m| u8::from(y > *m)).sum()
            }
            NumberFormat::Fp4 => encode_e2m1(x / p.step),
            NumberFormat::Fp8E5M2 => encode_e5m2(x / p.step),
            _ => encode_e4m3(x / p.step),
        }
    }

    /// The weight that `code` stands for.
    #[inline(always)]
    pub(crate) fn value(&self, p: &Params, code: u8) -> f32 {
        (self.scheme.number.level(code) - p.zero) * p.step
    }

    /// The weight nearest to `x` that has a code.
    #[inline]
    pub(crate) fn nearest(&self, p: &Params, x: f32) -> f32 {
        self.value(p, self.code(p, x))
    }

    /// The code of exactly 0.
    pub(crate) fn zero_code(&self, p: &Params) -> u8 {
        match self.scheme.number {
            NumberFormat::Int { .. } => p.zero as u8,
            NumberFormat::Nf4 => 7,
            _ => 0,
        }
    }
}

fn check_range(range: &Range) -> Result<()> {
    let bad = |what: &str, found: f64, expected: &str| {
        Err(Error::OutOfRange {
            what: what.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        })
    };
    match range {
        Range::MinMax => Ok(()),
        Range::Percentile(p) if *p > 0.0 && *p <= 1.0 => Ok(()),
        Range::Percentile(p) => bad("percentile of a range", *p, "above 0 and at most 1"),
        Range::Mse(MseSearch { grid: 0, .. }) => bad("grid of a range search", 0.0, "at least 1"),
        Range::Mse(s) if !(s.shrink > 0.0 && s.shrink <= 1.0) => {
            bad("shrink of a range search", s.shrink, "above 0 and at most 1")
        }
        Range::Mse(s) if !(s.norm > 0.0 && s.norm.is_finite()) => {
            bad("norm of a range search", s.norm, "above 0 and finite")
        }
        Range::Mse(_) => Ok(()),
    }
}

/// The smallest and largest value, or the quantiles around the central part.
fn bounds(range: &Range, group: &[f32]) -> (f32, f32) {
    if let Range::Percentile(part) = range
        && group.len() > 1
        && *part < 1.0
    {
        let mut sorted = group.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let quantile = |q: f64| {
            let at = q * (sorted.len() - 1) as f64;
            let (low, high) =
                (sorted[at as usize], sorted[(at as usize + 1).min(sorted.len() - 1)]);
            (f64::from(low) + at.fract() * (f64::from(high) - f64::from(low))) as f32
        };
        return (quantile((1.0 - part) / 2.0), quantile((1.0 + part) / 2.0));
    }
    let mut values = group.iter().copied();
    let first = values.next().unwrap_or(0.0);
    values.fold((first, first), |(lo, hi), x| (lo.min(x), hi.max(x)))
}

/// The divisor of all scales: the largest weight gets the largest scale and the largest code.
fn global_scale(scheme: QuantScheme, absmax: f32) -> f32 {
    let largest = match scheme.number {
        NumberFormat::Fp4 => 6.0,
        _ => 1.0,
    };
    let global = 448.0 * largest / absmax;
    if global.is_finite() { global } else { 1.0 }
}

/// The power of two that MXFP4 shares, from the largest magnitude.
fn shared_power(absmax: f32, largest: f32, rule: MxScale) -> f32 {
    let bits = absmax.to_bits();
    let bits = match rule {
        MxScale::Floor => bits,
        // A quarter of the distance to the next power of two: 1.75 carries.
        MxScale::RoundUp => bits.saturating_add(1 << 21),
    };
    let exponent = (bits >> 23) as i32;
    let shift = (largest.to_bits() >> 23) as i32 - 127;
    decode_e8m0((exponent - shift).clamp(0, 254) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn coder(scheme: &str, family: Family, fidelity: Fidelity) -> Coder {
        let rules = Rules { family, fidelity, ..Rules::default() };
        Coder::new(scheme.parse().unwrap(), rules, 0.0).unwrap()
    }

    fn round(coder: &Coder, group: &[f32]) -> Vec<f32> {
        let p = coder.params(group);
        group.iter().map(|x| coder.nearest(&p, *x)).collect()
    }

    #[test]
    fn symmetric_groups_of_one_sign_keep_their_size_except_in_the_released_code() {
        let group = [1.0, 1.1, 1.2, 1.3];
        let released = coder("int4 f32", Family::Gptq, Fidelity::Released);
        for x in round(&released, &group) {
            assert!((x - 0.606_667).abs() < 1e-5, "{x}");
        }
        let exact = coder("int4 f32", Family::Gptq, Fidelity::Exact);
        for (x, y) in group.iter().zip(round(&exact, &group)) {
            assert!((x - y).abs() < 0.1, "{x} {y}");
        }
    }

    #[test]
    fn awq_loses_groups_of_one_sign() {
        let awq = coder("int4 asym f32", Family::Awq, Fidelity::Exact);
        for x in round(&awq, &[1.0, 1.1, 1.2, 1.3]) {
            assert!((x - 0.3).abs() < 1e-6, "{x}");
        }
        for x in round(&awq, &[0.3; 4]) {
            assert!((x - 1.0e-5).abs() < 1e-9, "{x}");
        }
    }

    #[test]
    fn ties_differ_between_families_where_the_zero_point_is_odd() {
        // x / scale = 2.5 with a zero point of −3 on the signed grid.
        let p = Params { scale: 1.0, zero: 5.0, step: 1.0, offset: -5.0 };
        let gptq = coder("int4 asym f32", Family::Gptq, Fidelity::Exact);
        assert_eq!(f32::from(gptq.code(&p, 2.5)) - 8.0, -1.0);
        let ct = coder("int4 asym f32", Family::CompressedTensors, Fidelity::Exact);
        assert_eq!(f32::from(ct.code(&p, 2.5)) - 8.0, 0.0);
    }

    #[test]
    fn groups_of_zeros_and_constants_have_finite_parameters() {
        for family in [Family::CompressedTensors, Family::Gptq, Family::Awq] {
            for scheme in ["int4", "int4 asym", "int2 asym f32", "int4 float", "int8"] {
                let c = coder(scheme, family, Fidelity::Exact);
                let p = c.params(&[0.0; 8]);
                assert_eq!(p.scale, 1.0, "{scheme} {family:?}");
                assert_eq!(c.nearest(&p, 0.0), 0.0);
                assert_eq!(c.value(&p, c.zero_code(&p)), 0.0);
                assert_eq!(c.params(&[]), p);
            }
        }
        let affine = coder("int4 float f32", Family::Gptq, Fidelity::Exact);
        assert_eq!(round(&affine, &[0.3; 4]), [0.3; 4]);
        let exact = coder("int4 asym f32", Family::CompressedTensors, Fidelity::Exact);
        for x in round(&exact, &[0.3; 4]) {
            assert!((x - 0.3).abs() < 1e-6);
        }
        // The symmetric grid ends half a step before its range: 7 of 7.5 steps.
        let sym = coder("int4 f32", Family::CompressedTensors, Fidelity::Exact);
        for x in round(&sym, &[0.3; 4]) {
            assert!((x - 0.3 * 7.0 / 7.5).abs() < 1e-6);
        }
    }

    #[test]
    fn tiny_groups_do_not_lose_their_scale_to_f16() {
        let c = coder("int4 g4 f16", Family::CompressedTensors, Fidelity::Exact);
        let p = c.params(&[1e-9, -1e-9]);
        assert!(p.scale > 0.0);
    }

    #[test]
    fn searching_the_range_helps_with_outliers() {
        let group = [0.1, -0.2, 0.15, 0.05, -0.1, 0.12, -0.07, 3.0];
        let l2 = |c: &Coder| {
            let d = round(c, &group).into_iter().zip(group).map(|(a, b)| f64::from(a - b).powi(2));
            d.sum::<f64>()
        };
        let plain = coder("int3 asym f32", Family::Gptq, Fidelity::Exact);
        let p = plain.params(&group);
        assert!((p.scale - 0.457_143).abs() < 1e-6 && p.zero == 0.0);
        assert!((l2(&plain) - 0.1443).abs() < 1e-4);
        let rules = Rules {
            family: Family::Gptq,
            range: Range::Mse(MseSearch::default()),
            ..Rules::default()
        };
        let clipped = Coder::new("int3 asym f32".parse().unwrap(), rules, 0.0).unwrap();
        assert!((clipped.params(&group).scale - 0.429_714).abs() < 1e-6);
        assert!((l2(&clipped) - 0.104_364).abs() < 1e-5);
    }

    /// Computed in Python from the formulas of the Open Compute Project and compressed-tensors.
    #[test]
    fn shared_powers_carry_at_seven_eighths_where_they_are_rounded_up() {
        for (absmax, floor, up) in [
            (3.4999, 0.5, 0.5),
            (3.5, 0.5, 1.0),
            (3.9999, 0.5, 1.0),
            (4.0, 1.0, 1.0),
            (6.9999, 1.0, 1.0),
            (7.0, 1.0, 2.0),
        ] {
            assert_eq!(shared_power(absmax, 6.0, MxScale::Floor), floor, "{absmax}");
            assert_eq!(shared_power(absmax, 6.0, MxScale::RoundUp), up, "{absmax}");
        }
        // Clamped at both ends.
        assert_eq!(shared_power(f32::MIN_POSITIVE, 6.0, MxScale::Floor), decode_e8m0(0));
        assert_eq!(shared_power(f32::MAX, 6.0, MxScale::RoundUp), 2f32.powi(126));
    }

    /// bitsandbytes, to six digits.
    #[test]
    fn nf4_rounds_at_the_midpoints_and_ties_down() {
        let c = coder("nf4 flat16 f32", Family::default(), Fidelity::Exact);
        let want = [
            -0.848_096, -0.610_633, -0.459_995, -0.339_679, -0.234_607, -0.137_912, -0.045_525,
            0.039_790, 0.120_255, 0.203_521, 0.292_014, 0.389_313, 0.501_663, 0.642_787, 0.861_478,
        ];
        let p = c.params(&[1.0, -1.0]);
        assert_eq!(p.scale, 1.0);
        for (code, (middle, want)) in c.nf4_midpoints.into_iter().zip(want).enumerate() {
            assert!((middle - want).abs() < 6e-7, "{middle} {want}");
            let code = code as u8;
            assert_eq!(c.code(&p, middle), code);
            assert_eq!(c.code(&p, middle.next_up()), code + 1);
            assert_eq!(c.code(&p, middle.next_down()), code);
        }
    }

    #[test]
    fn percentiles_interpolate() {
        let values: Vec<f32> = (0..=100).map(|i| i as f32).collect();
        assert_eq!(bounds(&Range::Percentile(0.9), &values), (5.0, 95.0));
        assert_eq!(bounds(&Range::Percentile(1.0), &values), (0.0, 100.0));
        assert_eq!(bounds(&Range::Percentile(0.5), &[0.0, 1.0]), (0.25, 0.75));
    }

    #[test]
    fn nonsense_ranges_are_refused() {
        let new =
            |range| Coder::new("int4".parse().unwrap(), Rules { range, ..Rules::default() }, 1.0);
        assert!(new(Range::Percentile(0.0)).is_err());
        assert!(new(Range::Percentile(f64::NAN)).is_err());
        assert!(new(Range::Mse(MseSearch { grid: 0, ..MseSearch::default() })).is_err());
        assert!(new(Range::Mse(MseSearch { shrink: 1.5, ..MseSearch::default() })).is_err());
        assert!(new(Range::Mse(MseSearch { norm: f64::NAN, ..MseSearch::default() })).is_err());
    }
}
