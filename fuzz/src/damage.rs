//! Ways to damage valid bytes, for the property tests; libFuzzer has its own.

/// One change: where, of which kind, and with which value.
pub type Edit = (u32, u8, u8);

/// Numbers at which sizes, offsets and their products go wrong.
pub const NUMBERS: [u64; 28] = [
    0,
    1,
    2,
    3,
    7,
    8,
    31,
    32,
    33,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    (1 << 31) - 1,
    1 << 31,
    u32::MAX as u64,
    1 << 32,
    1 << 40,
    1 << 53,
    1 << 61,
    1 << 62,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 31,
    u64::MAX - 7,
    u64::MAX,
];

/// One of [`NUMBERS`].
pub fn number(value: u8) -> u64 {
    NUMBERS[usize::from(value) % NUMBERS.len()]
}

/// A place of `at` below `len`, 0 for an empty range.
pub fn place(at: u32, len: usize) -> usize {
    (at as usize).checked_rem(len).unwrap_or(0)
}

/// Overwrites, inserts, removes, repeats, moves and cuts off bytes.
pub fn bytes(mut input: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for &(at, kind, value) in edits {
        let start = place(at, input.len());
        let mut overwrite = |bytes: &[u8]| {
            for (slot, byte) in input[start..].iter_mut().zip(bytes) {
                *slot = *byte;
            }
        };
        match kind % 12 {
            0 => overwrite(&[value]),
            1 => overwrite(&number(value).to_le_bytes()),
            2 => overwrite(&(number(value) as u32).to_le_bytes()),
            3 if start < input.len() => input[start] ^= 1 << (value % 8),
            4 => input.insert(start, value),
            5 if start < input.len() => drop(input.remove(start)),
            6 => input.truncate(start),
            7 => drop(input.splice(start..start, number(value).to_le_bytes())),
            // A run of one byte: brackets nest, digits grow.
            8 => drop(input.splice(
                start..start,
                vec![b"[{(\"0-9a \xff"[usize::from(value) % 10]; 1 << (value % 9)],
            )),
            9 => {
                let end = (start + usize::from(value)).min(input.len());
                let part = input[start..end].to_vec();
                drop(input.splice(start..start, part));
            }
            10 => {
                let end = (start + usize::from(value)).min(input.len());
                input.drain(start..end);
            }
            11 => {
                let half = (input.len() - start) / 2;
                let (a, b) = input[start..].split_at_mut(half);
                a.swap_with_slice(&mut b[..half]);
            }
            _ => {}
        }
    }
    input
}
