//! Sparse matrices from damaged and hostile parts: an error or a sound matrix, never a panic, and
//! no more memory than the parts justify. The functions under test are the fuzz targets of `fuzz/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, dead_code)]

#[path = "../../../fuzz/src/bounded.rs"]
mod bounded;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/damage.rs"]
mod damage;
#[path = "../../../fuzz/src/sparse.rs"]
mod sparse;

use bounded::Outcome;
use damage::{Edit, number, place};
use half::bf16;
use ndarray::Array2;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_core::{Bitmask, Bsr, Csr, NmPacked, Seed};

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

type Target = fn(&[u8]) -> Outcome;
type Encoder = fn(&Array2<bf16>) -> Parts;

const TARGETS: [(&str, Target, &[Encoder]); 4] = [
    ("csr", sparse::csr, &[csr]),
    ("bsr", sparse::bsr, &[bsr]),
    ("nm_packed", sparse::nm_packed, &[two_of_four, one_of_two]),
    ("bitmask", sparse::bitmask, &[bitmask]),
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
