use ndarray::ArrayView2;
use prune_core::{Error, Result};

use super::floats::Floats;
use super::packing::{pack, packed_len, unpack};
use super::range::Range;
use super::{BlockReader, Grouping, KvBits, KvShape, StoredFloat};

/// Tokens that a reader is shown together, at most.
const READ: usize = 128;
/// Tokens of a block that fills a token at a time.
const BLOCK: usize = 64;

/// One side of one layer: sealed blocks of quantised tokens, then the residual window.
#[derive(Debug, Clone)]
pub(crate) struct SideCache {
    codec: Codec,
    blocks: Vec<Block>,
    sealed: usize,
    window: Window,
    /// Largest scale so far, and largest magnitude.
    largest: (f32, f32),
}

/// What turns tokens into blocks and back.
#[derive(Debug, Clone, Copy)]
struct Codec {
    width: usize,
    bits: KvBits,
    groups: Groups,
    numbers: StoredFloat,
    /// Tokens of a block.
    tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Groups {
    Channels(usize),
    Tokens(usize),
}

/// Storage of [`Codec::tokens`] tokens, allocated whole.
#[derive(Debug, Clone)]
enum Block {
    /// Codes token by token; scales and offsets by channel inside a group of tokens, or group by
    /// group inside a token.
    Quantized {
        codes: Box<[u8]>,
        scales: Floats,
        offsets: Floats,
    },
    Half(Floats),
}

/// The newest tokens, a ring.
#[derive(Debug, Clone)]
struct Window {
    rows: Floats,
    capacity: usize,
    start: usize,
    held: usize,
}

impl SideCache {
    pub(crate) fn new(
        shape: KvShape,
        bits: KvBits,
        grouping: Grouping,
        residual: usize,
        numbers: StoredFloat,
    ) -> Self {
        let width = shape.width();
        let (groups, tokens) = match grouping {
            Grouping::PerToken { channels } => {
                (Groups::Channels(channels.unwrap_or(shape.head_dim)), BLOCK)
            }
            Grouping::PerChannel { tokens } => (Groups::Tokens(tokens), residual),
        };
        let rows = Floats::zeros(numbers, residual * width);
        Self {
            codec: Codec { width, bits, groups, numbers, tokens },
            blocks: Vec::new(),
            sealed: 0,
            window: Window { rows, capacity: residual, start: 0, held: 0 },
            largest: (0.0, 0.0),
        }
    }

    pub(crate) fn tokens(&self) -> usize {
        self.sealed + self.window.held
    }

    /// Tokens that are quantised.
    pub(crate) fn sealed(&self) -> usize {
        self.sealed
    }

    /// Bytes on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::bytes).sum();
        self.blocks.capacity() * size_of::<Block>() + blocks + self.window.rows.bytes()
    }

    /// No number differs by more from what was appended.
    pub(crate) fn error_bound(&self) -> f32 {
        let (scale, magnitude) = self.largest;
        let halved = match (self.codec.numbers, self.codec.bits) {
            (StoredFloat::F32, KvBits::Two | KvBits::Four | KvBits::Eight) => 0.0,
            _ => magnitude * 2f32.powi(-11) + 2f32.powi(-24),
        };
        // The last term is for the f32 arithmetic of restoring.
        scale / 2.0 + halved + magnitude * 2f32.powi(-21)
    }

    pub(crate) fn push(&mut self, row: &[f32]) {
        let width = self.codec.width;
        self.largest.1 = row.iter().fold(self.largest.1, |m, x| m.max(x.abs()));
        let Window { capacity, start, held, .. } = self.window;
        if capacity == 0 {
            self.seal(row);
            return;
        }
        match self.codec.groups {
            Groups::Channels(_) if held == capacity => {
                let mut oldest = vec![0.0; width];
                self.window.rows.get(start * width, &mut oldest);
                self.seal(&oldest);
                self.window.rows.put(start * width, row);
                self.window.start = (start + 1) % capacity;
            }
            Groups::Channels(_) => {
                self.window.rows.put((start + held) % capacity * width, row);
                self.window.held += 1;
            }
            Groups::Tokens(_) => {
                self.window.rows.put(held * width, row);
                self.window.held += 1;
                if self.window.held == capacity {
                    let mut all = vec![0.0; capacity * width];
                    self.window.rows.get(0, &mut all);
                    self.seal(&all);
                    self.window.held = 0;
                }
            }
        }
    }

    /// Quantises whole rows after those that are sealed: one row by token, one block by channel.
    fn seal(&mut self, rows: &[f32]) {
        let at = self.sealed % self.codec.tokens;
        if at == 0 {
            self.blocks.push(Block::new(&self.codec));
        }
        if let Some(block) = self.blocks.last_mut() {
            let scale = self.codec.encode(block, at, rows);
            self.largest.0 = self.largest.0.max(scale);
        }
        self.sealed += rows.len() / self.codec.width;
    }

    pub(crate) fn read(&self, reader: &mut BlockReader<'_>) -> Result<()> {
        let width = self.codec.width;
        let total = self.tokens();
        let mut rows = vec![0.0; READ.min(total) * width];
        let mut scratch = Scratch::new(width);
        for first in (0..total).step_by(READ) {
            let end = (first + READ).min(total);
            for (token, row) in (first..end).zip(rows.chunks_exact_mut(width)) {
                if token < self.sealed {
                    let block = &self.blocks[token / self.codec.tokens];
                    let at = token % self.codec.tokens;
                    self.codec.decode(block, at, at == 0 || token == first, &mut scratch, row);
                } else {
                    let Window { start, capacity, .. } = self.window;
                    let slot = (start + token - self.sealed) % capacity;
                    self.window.rows.get(slot * width, row);
                }
            }
            let shown =
                ArrayView2::from_shape((end - first, width), &rows[..(end - first) * width])
                    .map_err(|e| Error::external("cached block", e))?;
            reader(first, shown)?;
        }
        Ok(())
    }
}

impl Block {
    fn new(codec: &Codec) -> Self {
        let numbers = codec.tokens * codec.width;
        if codec.bits == KvBits::Sixteen {
            return Block::Half(Floats::zeros(StoredFloat::F16, numbers));
        }
        let codes = vec![0; codec.tokens * packed_len(codec.width, codec.bits)].into();
        let ranges = match codec.groups {
            Groups::Channels(group) | Groups::Tokens(group) => numbers / group,
        };
        let zeros = || Floats::zeros(codec.numbers, ranges);
        Block::Quantized { codes, scales: zeros(), offsets: zeros() }
    }

    fn bytes(&self) -> usize {
        match self {
            Block::Quantized { codes, scales, offsets } => {
                codes.len() + scales.bytes() + offsets.bytes()
            }
            Block::Half(rows) => rows.bytes(),
        }
    }
}

/// Buffers of one row, and the ranges of the group by channel that was decoded last.
struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

impl Scratch {
    fn new(width: usize) -> Self {
        Self { codes: vec![0; width], scales: vec![0.0; width], offsets: vec![0.0; width] }
    }
}

impl Codec {
    fn range(&self, min: f32, max: f32) -> Range<f32> {
        match self.numbers {
            StoredFloat::F16 => Range::half(min, max, self.bits),
            StoredFloat::F32 => Range::full(min, max, self.bits),
        }
    }

    /// Puts rows into a block from token `at` on; returns the largest scale.
    fn encode(&self, block: &mut Block, at: usize, rows: &[f32]) -> f32 {
        let width = self.width;
        let (codes, scales, offsets) = match block {
            Block::Half(all) => {
                all.put(at * width, rows);
                return 0.0;
            }
            Block::Quantized { codes, scales, offsets } => (codes, scales, offsets),
        };
        let packed = packed_len(width, self.bits);
        let levels = self.bits.levels() as f32;
        let mut scratch = Scratch::new(width);
        let mut largest = 0f32;
        match self.groups {
            Groups::Channels(group) => {
                let ranges = width / group;
                for (token, row) in (at..).zip(rows.chunks_exact(width)) {
                    let groups = row.chunks_exact(group).zip(scratch.codes.chunks_exact_mut(group));
                    for (i, (row, codes)) in groups.enumerate() {
                        let (min, max) =
                            row.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| {
                                (min.min(*x), max.max(*x))
                            });
                        let range = self.range(min, max);
                        (scratch.scales[i], scratch.offsets[i]) = (range.scale, range.offset);
                        largest = largest.max(range.scale);
                        for (code, x) in codes.iter_mut().zip(row) {
                            *code = nearest_code(*x, range.scale, range.offset, levels);
                        }
                    }
                    scales.put(token * ranges, &scratch.scales[..ranges]);
                    offsets.put(token * ranges, &scratch.offsets[..ranges]);
                    pack(&scratch.codes, self.bits, &mut codes[token * packed..][..packed]);
                }
            }
            Groups::Tokens(group) => {
                for (g, rows) in rows.chunks_exact(group * width).enumerate() {
                    let mut min = rows[..width].to_vec();
                    let mut max = min.clone();
                    for row in rows.chunks_exact(width).skip(1) {
                        for ((min, max), x) in min.iter_mut().zip(&mut max).zip(row) {
                            *min = min.min(*x);
                            *max = max.max(*x);
                        }
                    }
                    for (c, (min, max)) in min.into_iter().zip(max).enumerate() {
                        let range = self.range(min, max);
                        (scratch.scales[c], scratch.offsets[c]) = (range.scale, range.offset);
                        largest = largest.max(range.scale);
                    }
                    let first = at / group + g;
                    scales.put(first * width, &scratch.scales);
                    offsets.put(first * width, &scratch.offsets);
                    for (token, row) in (at + g * group..).zip(rows.chunks_exact(width)) {
                        let ranges = scratch.scales.iter().zip(&scratch.offsets);
                        for ((code, x), (scale, offset)) in
                            scratch.codes.iter_mut().zip(row).zip(ranges)
                        {
                            *code = nearest_code(*x, *scale, *offset, levels);
                        }
                        pack(&scratch.codes, self.bits, &mut codes[token * packed..][..packed]);
                    }
                }
            }
        }
        largest
    }

    /// Restores token `at` of a block. `jump` says that the ranges in `scratch` are of another
    /// group.
    fn decode(&self, block: &Block, at: usize, jump: bool, scratch: &mut Scratch, row: &mut [f32]) {
        let width = self.width;
        let (codes, scales, offsets) = match block {
            Block::Half(all) => return all.get(at * width, row),
            Block::Quantized { codes, scales, offsets } => (codes, scales, offsets),
        };
        let packed = packed_len(width, self.bits);
        unpack(&codes[at * packed..][..packed], self.bits, &mut scratch.codes);
        match self.groups {
            Groups::Channels(group) => {
                let ranges = width / group;
                scales.get(at * ranges, &mut scratch.scales[..ranges]);
                offsets.get(at * ranges, &mut scratch.offsets[..ranges]);
                let ranges = scratch.scales.iter().zip(&scratch.offsets);
                let groups = row.chunks_exact_mut(group).zip(scratch.codes.chunks_exact(group));
                for ((row, codes), (scale, offset)) in groups.zip(ranges) {
                    for (x, code) in row.iter_mut().zip(codes) {
                        *x = f32::from(*code) * scale + offset;
                    }
                }
            }
            Groups::Tokens(group) => {
                if jump || at.is_multiple_of(group) {
                    scales.get(at / group * width, &mut scratch.scales);
                    offsets.get(at / group * width, &mut scratch.offsets);
                }
                let ranges = scratch.scales.iter().zip(&scratch.offsets);
                for ((x, code), (scale, offset)) in row.iter_mut().zip(&scratch.codes).zip(ranges) {
                    *x = f32::from(*code) * scale + offset;
                }
            }
        }
    }
}

/// `rne((x − offset)/scale)` inside `0..=levels`.
fn nearest_code(x: f32, scale: f32, offset: f32, levels: f32) -> u8 {
    // Adding 1.5 · 2^23 leaves the rounded integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    (((x - offset) / scale).clamp(0.0, levels) + ROUND).to_bits() as u8
}
