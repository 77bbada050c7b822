//! Every operation of every instruction set against the portable one, on random lanes.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{Job, KernelPath, Selected, Simd};

#[derive(Debug, Clone)]
struct Lanes {
    a: [f32; 16],
    b: [f32; 16],
    c: [f32; 16],
    i: [i32; 8],
    j: [i32; 8],
    counts: [i32; 8],
    bytes: [u8; 32],
    others: [u8; 32],
    /// Not −128.
    signed: [i8; 32],
    words: [i16; 16],
    factors: [i16; 16],
    lanes: u32,
}

fn lanes() -> impl Strategy<Value = Lanes> {
    let float = || prop::array::uniform16(-1e3f32..1e3);
    (
        (float(), float(), float()),
        prop::array::uniform8(any::<i32>()),
        prop::array::uniform8(any::<i32>()),
        prop::array::uniform8(0i32..32),
        prop::array::uniform32(any::<u8>()),
        prop::array::uniform32(any::<u8>()),
        prop::array::uniform32(-127i8..=127),
        (prop::array::uniform16(any::<i16>()), prop::array::uniform16(-128i16..128)),
        any::<u32>(),
    )
        .prop_map(
            |((a, b, c), i, j, counts, bytes, others, signed, (words, factors), lanes)| Lanes {
                a,
                b,
                c,
                i,
                j,
                counts,
                bytes,
                others,
                signed,
                words,
                factors,
                lanes,
            },
        )
}

/// What an instruction set makes of lanes: floats that may differ in the last bit, floats that may
/// not, and integers.
#[derive(Debug, Default)]
struct Results {
    rounded: Vec<f32>,
    exact: Vec<f32>,
    integers: Vec<i64>,
}

struct All<'a>(&'a Lanes);

impl Job for All<'_> {
    type Output = Results;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Results {
        let Lanes { a, b, c, i, j, counts, bytes, others, signed, words, factors, lanes } = self.0;
        let mut out = Results::default();
        let (eight_a, eight_b) = (a.first_chunk().unwrap(), b.first_chunk().unwrap());
        let (fa, fb) = (simd.load(eight_a), simd.load(eight_b));
        let fc = simd.load(c.first_chunk().unwrap());
        let (ia, ib) = (simd.load_i32(i), simd.load_i32(j));
        let counts = simd.load_i32(counts);

        // Floats.
        let mut floats = |v: S::F| {
            let mut to = [0.0; 8];
            simd.store(v, &mut to);
            out.exact.extend(to);
        };
        floats(fa);
        floats(simd.splat(a[3]));
        floats(simd.halves(a[3], a[4]));
        floats(simd.load_f16(&a.map(f16::from_f32)[..8].try_into().unwrap()));
        floats(simd.load_bf16(&a.map(bf16::from_f32)[..8].try_into().unwrap()));
        floats(simd.add(fa, fb));
        floats(simd.mul(fa, fb));
        floats(simd.repeat4(a.first_chunk().unwrap()));
        floats(simd.permute4(fa, ia));
        floats(simd.expand(fa, *lanes as u8));
        floats(simd.to_f32(ia));
        let index = simd.and_i32(ia, simd.splat_i32(15));
        // SAFETY: indices are below 16.
        #[allow(unsafe_code)]
        floats(unsafe { simd.gather(a, index) });
        for f in simd.i8_to_f32(simd.load_u8(bytes)) {
            floats(f);
        }
        out.exact.push(simd.sum(fa));
        out.exact.push(simd.half(f16::from_f32(a[0]).to_bits()));
        let mut to = [0.0; 8];
        simd.store(simd.mul_add(fa, fb, fc), &mut to);
        out.rounded.extend(to);

        // Wide floats.
        let (wa, wb) = (simd.wide_load(a), simd.wide_load(b));
        let mut to = [0.0; 16];
        let both = std::array::from_fn(|lane| if lane < 8 { i[lane] } else { j[lane - 8] } as u32);
        let codes = simd.wide_load_u32(&both);
        let wide = [
            wa,
            simd.wide_splat(a[3]),
            simd.wide_load_f16(&a.map(f16::from_f32)),
            simd.wide_load_bf16(&a.map(bf16::from_f32)),
            simd.wide_add(wa, wb),
            simd.wide_to_f32(codes),
            simd.wide_to_f32(simd.wide_and_i32(codes, simd.wide_splat_i32(0x00ff_0ff0))),
            simd.wide_to_f32(simd.wide_shift_right(codes, 28)),
            simd.wide_to_f32(simd.wide_shift_right(codes, j[0] & 31)),
        ];
        for w in wide {
            simd.wide_store(w, &mut to);
            out.exact.extend(to);
        }
        let mut folded = [0.0; 8];
        simd.store(simd.wide_fold(wa), &mut folded);
        out.exact.extend(folded);
        simd.wide_store(simd.wide_mul_add(wa, wb, simd.wide_load(c)), &mut to);
        out.rounded.extend(to);

        // Integers, through bytes where there is no store: what `sum_of` cannot see, `bytes` can.
        let mut integers = |v: S::I| {
            // Two halves that f32 holds exactly.
            for mask in [0xffff, 0x7fff_0000] {
                let mut to = [0.0; 8];
                simd.store(simd.to_f32(simd.and_i32(v, simd.splat_i32(mask))), &mut to);
                out.integers.extend(to.map(|v| v as i64));
            }
            let mut to = [0.0; 8];
            simd.store(simd.to_f32(simd.shift_right_each(v, simd.splat_i32(31))), &mut to);
            out.integers.extend(to.map(|v| v as i64));
        };
        integers(ia);
        integers(simd.load_u32(&i.map(|v| v as u32)));
        integers(simd.halves_i32(i[0], i[1]));
        integers(simd.add_i32(ia, ib));
        integers(simd.sub_i32(ia, ib));
        integers(simd.mul_i32(ia, ib));
        integers(simd.and_i32(ia, ib));
        integers(simd.shift_right_each(ia, counts));
        let h = simd.load_i16(words);
        let few = simd.load_i16(factors);
        integers(simd.pairs_i16(h, few));
        integers(simd.pairs_i16(simd.add_i16(h, few), simd.halves_i16(factors[0], factors[1])));
        let s = simd.load_i8(signed);
        let ones = simd.halves_i16(1, 1);
        let (x, y) = (simd.load_u8(bytes), simd.load_u8(others));
        integers(simd.pairs_i16(simd.pairs_i8(x, s), ones));
        let x7 = simd.and(x, simd.splat_u8(127));
        integers(simd.pairs_i16(simd.pairs_u7(x7, s), ones));

        let mut each_byte = |v: S::B| {
            for f in simd.i8_to_f32(v) {
                let mut to = [0.0; 8];
                simd.store(f, &mut to);
                out.integers.extend(to.map(|v| v as i64));
            }
        };
        each_byte(x);
        each_byte(simd.bytes(ia));
        each_byte(simd.splat_u8(bytes[0]));
        each_byte(simd.nibbles(bytes.first_chunk().unwrap()));
        each_byte(simd.and(x, y));
        each_byte(simd.or(x, y));
        each_byte(simd.xor(x, y));
        each_byte(simd.sub_u8(x, y));
        each_byte(simd.shift_right::<0>(x));
        each_byte(simd.shift_right::<3>(x));
        each_byte(simd.shift_right::<7>(x));
        each_byte(simd.shift_left::<0>(x));
        each_byte(simd.shift_left::<4>(x));
        each_byte(simd.select_u8(*lanes, 16));
        out
    }
}

#[test]
fn every_operation_agrees_with_the_portable_one() {
    let mut runner = TestRunner::default();
    let test = |lanes: Lanes| {
        let expected = Selected::portable().run(All(&lanes));
        for path in KernelPath::available() {
            let found = Selected::new(path).unwrap().run(All(&lanes));
            prop_assert_eq!(&found.exact, &expected.exact, "{}", path);
            prop_assert_eq!(&found.integers, &expected.integers, "{}", path);
            for (found, expected) in found.rounded.iter().zip(&expected.rounded) {
                prop_assert!((found - expected).abs() <= 0.25, "{path}: {found} {expected}");
            }
        }
        Ok(())
    };
    runner.run(&lanes(), test).unwrap();
}

#[test]
fn codes_of_minus_128_multiply_exactly() {
    struct Extreme;
    impl Job for Extreme {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let ones = simd.halves_i16(1, 1);
            let mut out = Vec::new();
            for x in [127i8, -127] {
                let pairs = simd.pairs_i8(simd.splat_u8(0x80), simd.load_i8(&[x; 32]));
                let mut to = [0.0; 8];
                simd.store(simd.to_f32(simd.pairs_i16(pairs, ones)), &mut to);
                out.extend(to);
            }
            out
        }
    }
    for path in KernelPath::available() {
        let out = Selected::new(path).unwrap().run(Extreme);
        assert_eq!(out[..8], [-4.0 * 128.0 * 127.0; 8]);
        assert_eq!(out[8..], [4.0 * 128.0 * 127.0; 8]);
    }
}
