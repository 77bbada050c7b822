use half::bf16;

/// Takes the numbers of an input one after the other; zeros after its end.
pub struct Parts<'a>(pub &'a [u8]);

impl Parts<'_> {
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let (now, later) = self.0.split_at(self.0.len().min(N));
        self.0 = later;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }

    pub fn size(&mut self) -> usize {
        u64::from_le_bytes(self.array()) as usize
    }

    /// The length of a list: small, since the input has to hold it.
    fn len(&mut self) -> usize {
        usize::from(u16::from_le_bytes(self.array())).min(self.0.len())
    }

    pub fn sizes(&mut self) -> Vec<usize> {
        (0..self.len()).map(|_| self.size()).collect()
    }

    pub fn indices(&mut self) -> Vec<u32> {
        (0..self.len()).map(|_| u32::from_le_bytes(self.array())).collect()
    }

    pub fn bytes(&mut self) -> Vec<u8> {
        (0..self.len()).map(|_| self.array::<1>()[0]).collect()
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| f32::from_le_bytes(self.array())).collect()
    }

    /// The rest.
    pub fn data(&mut self) -> Vec<bf16> {
        let value = |b: &[u8]| bf16::from_le_bytes([b[0], b.get(1).copied().unwrap_or(0)]);
        self.0.chunks(2).map(value).collect()
    }
}
