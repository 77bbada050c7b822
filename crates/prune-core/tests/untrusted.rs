//! Sparse and quantised matrices from damaged and hostile parts: an error or a sound matrix, never a panic, and
//! no more memory than the parts justify. The functions under test are the fuzz targets of `fuzz/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, dead_code)]

#[path = "../../../fuzz/src/bounded.rs"]
mod bounded;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/damage.rs"]
mod damage;
#[path = "../../../fuzz/src/parts.rs"]
mod parts;
#[path = "../../../fuzz/src/quantized.rs"]
mod quantized;
#[path = "../../../fuzz/src/sparse.rs"]
mod sparse;

use bounded::Outcome;
use damage::{Edit, number, place};
use half::bf16;
use ndarray::Array2;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Bitmask, BlockDiagonal, Bsr, Csr, NmPacked, Seed, pack_dense};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// The numbers of an input as the targets take them, each with its width in bytes.
#[derive(Default)]
struct Parts(Vec<Vec<u8>>);

impl Parts {
    fn size(mut self, value: usize) -> Self {
        self.0.push((value as u64).to_le_bytes().to_vec());
        self
    }

    fn byte(mut self, value: usize) -> Self {
        self.0.push(vec![value as u8]);
        self
    }

    fn list<const N: usize>(mut self, values: impl ExactSizeIterator<Item = [u8; N]>) -> Self {
        self.0.push((values.len() as u16).to_le_bytes().to_vec());
        self.0.extend(values.map(|v| v.to_vec()));
        self
    }

    fn sizes(self, values: &[usize]) -> Self {
        self.list(values.iter().map(|v| (*v as u64).to_le_bytes()))
    }

    fn indices(self, values: &[u32]) -> Self {
        self.list(values.iter().map(|v| v.to_le_bytes()))
    }

    fn data<'a>(mut self, values: impl IntoIterator<Item = &'a bf16>) -> Self {
        self.0.extend(values.into_iter().map(|v| v.to_le_bytes().to_vec()));
        self
    }

    /// Replaces, repeats, removes and swaps whole numbers.
    fn damage(mut self, edits: &[Edit]) -> Self {
        for &(at, kind, value) in edits {
            let (i, j) = (place(at, self.0.len()), place(at.rotate_left(16), self.0.len()));
            match kind % 5 {
                0 | 1 => {
                    let width = self.0[i].len();
                    self.0[i] = number(value).to_le_bytes()[..width].to_vec();
                }
                2 => self.0.swap(i, j),
                3 => self.0.insert(i, self.0[j].clone()),
                _ if self.0.len() > 1 => drop(self.0.remove(i)),
                _ => {}
            }
        }
        self
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.concat()
    }
}

/// A matrix whose rows and columns divide by 4, at most two nonzeros in every four columns.
fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<bf16> {
    let mut stream = Seed::new(seed).stream("matrix");
    let mut dense = Array2::from_elem((4 * rows, 4 * cols), bf16::ZERO);
    for value in &mut dense {
        *value = bf16::from_f32(stream.uniform() as f32 - 0.5);
    }
    for mut row in dense.outer_iter_mut() {
        for group in 0..cols {
            let first = stream.below(4) as usize;
            row[4 * group + first] = bf16::ZERO;
            row[4 * group + (first + 1 + stream.below(3) as usize) % 4] = bf16::ZERO;
        }
    }
    dense
}

fn csr(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let (indptr, indices, data) = Csr::from_dense(dense.view()).unwrap().into_parts();
    Parts::default().size(rows).size(cols).sizes(&indptr).indices(&indices).data(&data)
}

fn bsr(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let (indptr, indices, data) = Bsr::from_dense(dense.view(), 2, 4).unwrap().into_parts();
    let parts = Parts::default().size(rows).size(cols).byte(2).byte(4);
    parts.sizes(&indptr).indices(&indices).data(&data)
}

/// 2:4, whose indices are nibbles.
fn two_of_four(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let (indices, data) = NmPacked::from_dense(dense.view(), 2, 4).unwrap().into_parts();
    let parts = Parts::default().size(cols).byte(2).byte(4).byte(rows);
    parts.list(indices.iter().map(|b| [*b])).data(&data)
}

/// 1:2, whose indices are bits.
fn one_of_two(dense: &Array2<bf16>) -> Parts {
    let mut dense = dense.clone();
    dense
        .indexed_iter_mut()
        .filter(|((r, c), _)| (r + c) % 2 == 0)
        .for_each(|(_, v)| *v = bf16::ZERO);
    let (rows, cols) = dense.dim();
    let (indices, data) = NmPacked::from_dense(dense.view(), 1, 2).unwrap().into_parts();
    let parts = Parts::default().size(cols).byte(1).byte(2).byte(rows);
    parts.list(indices.iter().map(|b| [*b])).data(&data)
}

fn bitmask(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let (bits, offsets, data) = Bitmask::from_dense(dense.view()).unwrap().into_parts();
    let parts = Parts::default().size(rows).size(cols).list(bits.iter().map(|b| [*b]));
    parts.sizes(&offsets).data(&data)
}

/// Blocks of three, the last cut off by the end of the matrix.
fn block_diagonal(dense: &Array2<bf16>) -> Parts {
    let size = dense.nrows().max(1);
    let mut data = BlockDiagonal::identity(size, 3).unwrap().into_data();
    data.iter_mut().zip(dense).filter(|(d, _)| **d != bf16::ZERO).for_each(|(d, v)| *d = *v);
    let (_, block, _) = data.dim();
    Parts::default().size(size).byte(block).byte(block).data(&data)
}

/// Four bits in groups of two with whole zero points, and for every other matrix an order of
/// groups and column scales.
fn int4(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let (groups, more) = (cols / 2, rows % 8 == 4);
    let head = [0, 4, 2, 1, 1].into_iter().fold(Parts::default(), Parts::byte).size(2);
    let present = if more { 1 | 4 | 8 } else { 1 };
    let mut parts = [rows, cols, rows, groups, present].into_iter().fold(head, Parts::byte);
    let float = |v: f32| v.to_le_bytes().to_vec();
    parts.0.extend(dense.iter().map(|v| vec![(v.to_f32().abs() * 15.0) as u8]));
    parts.0.extend((0..rows * groups).map(|i| float(0.5 + i as f32)));
    parts.0.extend((0..rows * groups).map(|i| float((i % 16) as f32)));
    if more {
        let index: Vec<u32> = (0..cols as u32).map(|c| c % groups as u32).collect();
        parts = parts.indices(&index);
        parts.0.extend((0..cols).map(|c| float(1.0 + c as f32)));
    }
    parts
}

/// NVFP4: groups of 16, one scale for all.
fn nvfp4(dense: &Array2<bf16>) -> Parts {
    let (rows, cols) = dense.dim();
    let groups = cols.div_ceil(16);
    let head = [2, 0, 2, 0, 3].into_iter().fold(Parts::default(), Parts::byte).size(16);
    let mut parts = [rows, cols, rows, groups, 2].into_iter().fold(head, Parts::byte);
    parts.0.extend(dense.iter().map(|v| vec![(v.to_f32().abs() * 15.0) as u8]));
    parts.0.extend((0..=rows * groups).map(|i| (1.0 + i as f32).to_le_bytes().to_vec()));
    parts
}

fn packed_codes(dense: &Array2<bf16>) -> Parts {
    let codes: Vec<u8> = dense.iter().map(|v| (v.to_f32().abs() * 7.0) as u8).collect();
    let words = pack_dense(&codes, 3);
    let mut parts = Parts::default().byte(0).byte(3).size(codes.len());
    parts.0.extend(words.iter().map(|w| w.to_le_bytes().to_vec()));
    parts
}

type Target = fn(&[u8]) -> Outcome;
type Encoder = fn(&Array2<bf16>) -> Parts;

const TARGETS: [(&str, Target, &[Encoder]); 7] = [
    ("csr", sparse::csr, &[csr]),
    ("bsr", sparse::bsr, &[bsr]),
    ("nm_packed", sparse::nm_packed, &[two_of_four, one_of_two]),
    ("bitmask", sparse::bitmask, &[bitmask]),
    ("block_diagonal", sparse::block_diagonal, &[block_diagonal]),
    ("quantized", quantized::quantized, &[int4, nvfp4]),
    ("packed_codes", quantized::packed_codes, &[packed_codes]),
];

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    vec(any::<Edit>(), 0..most)
}

/// Runs a target on a valid matrix with damaged numbers, then damaged bytes.
fn damaged(target: usize, shape: (usize, usize), seed: u64, numbers: &[Edit], bytes: &[Edit]) {
    let (_, run, encoders) = TARGETS[target];
    let encode = encoders[seed as usize % encoders.len()];
    let parts = encode(&matrix(shape.0, shape.1, seed)).damage(numbers);
    run(&damage::bytes(parts.bytes(), bytes));
}

macro_rules! properties {
    ($($target:literal: $name:ident, $noise:ident;)*) => {
        proptest! {
            #![proptest_config(ProptestConfig {
                failure_persistence: None, ..ProptestConfig::default()
            })]
            $(
                #[test]
                fn $name(
                    shape in (0usize..4, 1usize..6),
                    seed in any::<u64>(),
                    numbers in edits(4),
                    bytes in edits(3),
                ) {
                    damaged($target, shape, seed, &numbers, &bytes);
                }

                #[test]
                fn $noise(bytes in vec(any::<u8>(), 0..200)) {
                    TARGETS[$target].1(&bytes);
                }
            )*
        }
    };
}

properties! {
    0: damaged_csr_parts_are_refused_or_sound, any_bytes_as_csr_parts_are_refused_or_sound;
    1: damaged_bsr_parts_are_refused_or_sound, any_bytes_as_bsr_parts_are_refused_or_sound;
    2: damaged_nm_parts_are_refused_or_sound, any_bytes_as_nm_parts_are_refused_or_sound;
    3: damaged_bitmask_parts_are_refused_or_sound, any_bytes_as_bitmask_parts_are_refused_or_sound;
    4: damaged_diagonal_parts_are_refused_or_sound, any_bytes_as_diagonal_parts_are_refused_or_sound;
    5: damaged_quantised_parts_are_refused_or_sound,
        any_bytes_as_quantised_parts_are_refused_or_sound;
    6: damaged_packed_codes_are_refused_or_sound, any_bytes_as_packed_codes_are_refused_or_sound;
}

#[test]
fn every_seed_is_accepted_or_refused_as_its_name_says() {
    for (name, run, _) in TARGETS {
        corpus::check(HERE, name, run);
    }
}

#[test]
#[ignore = "writes the seed corpus"]
fn write_seeds() {
    for (name, _, encoders) in TARGETS {
        for (i, encode) in encoders.iter().enumerate() {
            for (kind, rows, cols) in [("edge", 0, 1), ("valid", 1, 1), ("valid", 2, 3)] {
                let parts = encode(&matrix(rows, cols, 1));
                let file = format!("{kind}-{i}-{rows}x{cols}");
                corpus::write(HERE, name, &file, &parts.bytes());
            }
        }
    }
}
