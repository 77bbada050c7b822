//! Convolutions as products of matrices, several images side by side.
//!
//! candle's own `conv2d` has a backward pass through a transposed convolution. Here images become columns (im2col), a tile of them at a
//! time, small enough for the cache; products run on one thread each, tiles side by side, in groups
//! that do not depend on the number of threads.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::Size;

/// The shapes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conv {
    pub(super) from: Size,
    pub(super) to: Size,
    pub(super) kernel: usize,
    pub(super) stride: usize,
}

/// Scratch of one thread.
#[derive(Default)]
struct Columns {
    values: Vec<f32>,
    /// An image with its border, which is zero.
    padded: Vec<f32>,
    /// What is added up to an image, and what falls on its border.
    sums: Vec<f32>,
}

/// From a padded image to columns, rows so far apart.
type CopyRows = fn(&Conv, &[f32], &mut [f32], usize);
/// From columns, rows so far apart, to a padded image.
type AddRows = fn(&Conv, &[f32], &mut [f32], usize);

/// Columns of a tile that products are fast with and caches hold.
const COLUMNS: usize = 256;
/// Images of a tile at most, so that small batches still occupy many threads.
const IMAGES: usize = 16;
/// Parts that the gradient of a weight is summed in.
const PARTS: usize = 16;

impl Conv {
    fn taps(&self) -> usize {
        self.from.channels * self.kernel * self.kernel
    }

    fn tile(&self) -> usize {
        (COLUMNS / self.to.places()).clamp(1, IMAGES)
    }

    /// Whether the columns are the image itself.
    fn is_plain(&self) -> bool {
        self.kernel == 1 && self.stride == 1
    }

    /// The output of all images of `x`.
    pub(super) fn forward(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let (tile, places) = (self.tile(), self.to.places());
        let (m, k) = (self.to.channels, self.taps());
        let w = MatRef::from_row_major_slice(weight, m, k);
        out.par_chunks_mut(tile * self.to.len())
            .zip(x.par_chunks(tile * self.from.len()))
            .for_each_init(
                || (Columns::default(), Vec::new()),
                |(columns, wide), (out, x)| {
                    let images = out.len() / self.to.len();
                    let n = images * places;
                    let columns = self.columns(x, images, columns);
                    let columns = MatRef::from_row_major_slice(columns, k, n);
                    if images == 1 {
                        let out = MatMut::from_row_major_slice_mut(out, m, n);
                        matmul(out, Accum::Replace, w, columns, 1.0, Par::Seq);
                        return;
                    }
                    wide.resize(m * n, 0.0);
                    let product = MatMut::from_row_major_slice_mut(&mut wide[..m * n], m, n);
                    matmul(product, Accum::Replace, w, columns, 1.0, Par::Seq);
                    for (i, image) in out.chunks_mut(m * places).enumerate() {
                        for (c, channel) in image.chunks_mut(places).enumerate() {
                            let at = c * n + i * places;
                            channel.copy_from_slice(&wide[at..at + places]);
                        }
                    }
                },
            );
    }

    /// The gradient by the weight; and by the images into `dx`, unless that is empty.
    pub(super) fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Vec<f32> {
        let tile = self.tile();
        let images = x.len() / self.from.len();
        let part = images.div_ceil(PARTS).next_multiple_of(tile);
        let input = !dx.is_empty();
        // Without a gradient for the images, empty slices stand in its place.
        let len = if input { part * self.from.len() } else { 0 };
        let parts: Vec<&mut [f32]> = match input {
            true => dx.chunks_mut(len).collect(),
            false => (0..images.div_ceil(part)).map(|_| &mut [][..]).collect(),
        };
        let sums: Vec<Vec<f32>> = parts
            .into_par_iter()
            .zip(x.par_chunks(part * self.from.len()))
            .zip(dy.par_chunks(part * self.to.len()))
            .map(|((dx, x), dy)| self.part(x, weight, dy, dx))
            .collect();
        sum_of(sums)
    }

    /// [`Conv::backward`] of some images, one tile after the other.
    fn part(&self, x: &[f32], weight: &[f32], dy: &[f32], dx: &mut [f32]) -> Vec<f32> {
        let (tile, places) = (self.tile(), self.to.places());
        let (m, k) = (self.to.channels, self.taps());
        let w = MatRef::from_row_major_slice(weight, m, k);
        let mut dw = vec![0.0; m * k];
        let (mut columns, mut wide) = (Columns::default(), Vec::new());
        let from = tile * self.from.len();
        let tiles = x.chunks(from).zip(dy.chunks(tile * self.to.len()));
        for (t, (x, dy)) in tiles.enumerate() {
            let images = x.len() / self.from.len();
            let n = images * places;
            let dy = if images == 1 {
                dy
            } else {
                wide.resize(m * n, 0.0);
                for (i, image) in dy.chunks(m * places).enumerate() {
                    for (c, channel) in image.chunks(places).enumerate() {
                        let at = c * n + i * places;
                        wide[at..at + places].copy_from_slice(channel);
                    }
                }
                &wide[..m * n]
            };
            let dy = MatRef::from_row_major_slice(dy, m, n);
            {
                let columns = self.columns(x, images, &mut columns);
                let columns = MatRef::from_row_major_slice(columns, k, n).transpose();
                let dw = MatMut::from_row_major_slice_mut(&mut dw, m, k);
                matmul(dw, Accum::Add, dy, columns, 1.0, Par::Seq);
            }
            if dx.is_empty() {
                continue;
            }
            let dx = &mut dx[t * from..][..x.len()];
            if self.is_plain() && images == 1 {
                let dx = MatMut::from_row_major_slice_mut(dx, k, n);
                matmul(dx, Accum::Replace, w.transpose(), dy, 1.0, Par::Seq);
                continue;
            }
            let Columns { values, sums, .. } = &mut columns;
            values.resize(k * n, 0.0);
            let product = MatMut::from_row_major_slice_mut(&mut values[..k * n], k, n);
            matmul(product, Accum::Replace, w.transpose(), dy, 1.0, Par::Seq);
            self.images(&values[..k * n], images, sums, dx);
        }
        dw
    }

    /// The columns `(channels · kernel², images · places)` of some images.
    fn columns<'a>(&self, x: &'a [f32], images: usize, columns: &'a mut Columns) -> &'a [f32] {
        if self.is_plain() && images == 1 {
            return x;
        }
        let n = images * self.to.places();
        let Columns { values, padded, .. } = columns;
        values.resize(self.taps() * n, 0.0);
        let values = &mut values[..self.taps() * n];
        let copy = self.of_fixed_width().map(|(copy, _)| copy);
        for (i, image) in x.chunks(self.from.len()).enumerate() {
            let at = i * self.to.places();
            match copy {
                Some(copy) => {
                    self.pad(image, padded);
                    copy(self, padded, &mut values[at..], n);
                }
                None => self.copy_any(image, &mut values[at..], n),
            }
        }
        values
    }

    /// Adds columns up to images.
    fn images(&self, columns: &[f32], images: usize, sums: &mut Vec<f32>, dx: &mut [f32]) {
        let n = images * self.to.places();
        let add = self.of_fixed_width().map(|(_, add)| add);
        for (i, image) in dx.chunks_mut(self.from.len()).enumerate() {
            let columns = &columns[i * self.to.places()..];
            match add {
                Some(add) => {
                    sums.clear();
                    sums.resize(self.padded_len(), 0.0);
                    add(self, columns, sums, n);
                    self.unpad(sums, image);
                }
                None => {
                    image.fill(0.0);
                    self.add_any(columns, image, n);
                }
            }
        }
    }

    /// [`Conv::copy`] and [`Conv::add`] for the width and the stride, where they are usual ones.
    fn of_fixed_width(&self) -> Option<(CopyRows, AddRows)> {
        Some(match (self.to.width, self.stride) {
            (32, 1) => (Self::copy::<32, 1>, Self::add::<32, 1>),
            (16, 1) => (Self::copy::<16, 1>, Self::add::<16, 1>),
            (8, 1) => (Self::copy::<8, 1>, Self::add::<8, 1>),
            (4, 1) => (Self::copy::<4, 1>, Self::add::<4, 1>),
            (16, 2) => (Self::copy::<16, 2>, Self::add::<16, 2>),
            (8, 2) => (Self::copy::<8, 2>, Self::add::<8, 2>),
            (4, 2) => (Self::copy::<4, 2>, Self::add::<4, 2>),
            _ => return None,
        })
    }

    /// Height and width of a channel with its border of zeros.
    fn padded_size(&self) -> (usize, usize) {
        let border = self.kernel / 2 * 2;
        (self.from.height + border, self.from.width + border)
    }

    fn padded_len(&self) -> usize {
        let (height, width) = self.padded_size();
        self.from.channels * height * width
    }

    /// Calls `visit` with the places of each row of an image: in it, and in the padded one.
    fn each_padded_row(&self, mut visit: impl FnMut(usize, usize)) {
        let ((height, width), pad) = (self.padded_size(), self.kernel / 2);
        for c in 0..self.from.channels {
            for y in 0..self.from.height {
                let inside = (c * self.from.height + y) * self.from.width;
                visit(inside, (c * height + y + pad) * width + pad);
            }
        }
    }

    /// The image within its border, which stays zero from call to call.
    fn pad(&self, image: &[f32], padded: &mut Vec<f32>) {
        if padded.len() != self.padded_len() {
            padded.clear();
            padded.resize(self.padded_len(), 0.0);
        }
        let width = self.from.width;
        self.each_padded_row(|at, to| {
            padded[to..to + width].copy_from_slice(&image[at..at + width]);
        });
    }

    fn unpad(&self, padded: &[f32], image: &mut [f32]) {
        let width = self.from.width;
        self.each_padded_row(|to, at| {
            image[to..to + width].copy_from_slice(&padded[at..at + width]);
        });
    }

    /// Calls `visit` for each row of the columns, with where it starts in a padded image.
    #[inline(always)]
    fn each_tap_of_padded(&self, mut visit: impl FnMut(usize, usize)) {
        let (height, width) = self.padded_size();
        for c in 0..self.from.channels {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let row = (c * self.kernel + ky) * self.kernel + kx;
                    visit(row, (c * height + ky) * width + kx);
                }
            }
        }
    }

    /// The columns of one padded image, rows `n` apart. With width and stride known, a row is a few
    /// vector instructions.
    fn copy<const WIDTH: usize, const STRIDE: usize>(
        &self,
        padded: &[f32],
        columns: &mut [f32],
        n: usize,
    ) {
        let step = STRIDE * self.padded_size().1;
        self.each_tap_of_padded(|row, at| {
            let columns = &mut columns[row * n..][..self.to.places()];
            for (y, target) in columns.as_chunks_mut::<WIDTH>().0.iter_mut().enumerate() {
                let source = &padded[at + y * step..][..(WIDTH - 1) * STRIDE + 1];
                for (x, target) in target.iter_mut().enumerate() {
                    *target = source[x * STRIDE];
                }
            }
        });
    }

    /// Adds columns up to a padded image; the reverse of [`Conv::copy`].
    fn add<const WIDTH: usize, const STRIDE: usize>(
        &self,
        columns: &[f32],
        padded: &mut [f32],
        n: usize,
    ) {
        let step = STRIDE * self.padded_size().1;
        self.each_tap_of_padded(|row, at| {
            let columns = &columns[row * n..][..self.to.places()];
            for (y, source) in columns.as_chunks::<WIDTH>().0.iter().enumerate() {
                let target = &mut padded[at + y * step..][..(WIDTH - 1) * STRIDE + 1];
                for (x, source) in source.iter().enumerate() {
                    target[x * STRIDE] += source;
                }
            }
        });
    }

    /// [`Conv::copy`] for any width and stride, from an image without border.
    fn copy_any(&self, image: &[f32], columns: &mut [f32], n: usize) {
        self.each_row(|row, y, source, range| {
            let target = &mut columns[row * n + y * self.to.width..][..self.to.width];
            let Some(source) = source else {
                target.fill(0.0);
                return;
            };
            target[..range.start].fill(0.0);
            target[range.end..].fill(0.0);
            let source = image[source..].iter().step_by(self.stride);
            target[range].iter_mut().zip(source).for_each(|(t, s)| *t = *s);
        });
    }

    /// [`Conv::add`] for any width and stride, to an image without border.
    fn add_any(&self, columns: &[f32], image: &mut [f32], n: usize) {
        self.each_row(|row, y, target, range| {
            let Some(target) = target else { return };
            let source = &columns[row * n + y * self.to.width..][..self.to.width][range];
            let target = image[target..].iter_mut().step_by(self.stride);
            target.zip(source).for_each(|(t, s)| *t += s);
        });
    }

    /// Calls `visit` for every row of the columns and row of the output: with both, with where the
    /// pixels start that it reads (none outside of the image) and which places read one.
    #[inline(always)]
    fn each_row(&self, mut visit: impl FnMut(usize, usize, Option<usize>, std::ops::Range<usize>)) {
        let pad = self.kernel / 2;
        let (height, width) = (self.from.height, self.from.width);
        for c in 0..self.from.channels {
            for ky in 0..self.kernel {
                for kx in 0..self.kernel {
                    let row = (c * self.kernel + ky) * self.kernel + kx;
                    // Places x with 0 <= x stride + kx - pad < width.
                    let start = pad.saturating_sub(kx).div_ceil(self.stride);
                    let end = (width + pad).saturating_sub(kx).div_ceil(self.stride);
                    let end = end.min(self.to.width).max(start);
                    for y in 0..self.to.height {
                        let above = y * self.stride + ky;
                        let inside = above >= pad && above - pad < height && start < end;
                        let source = inside.then(|| {
                            (c * height + above - pad) * width + start * self.stride + kx - pad
                        });
                        visit(row, y, source, start..end);
                    }
                }
            }
        }
    }

    /// The output where every channel is filtered by itself.
    pub(super) fn depthwise(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        out.par_chunks_mut(self.to.len()).zip(x.par_chunks(self.from.len())).for_each(
            |(out, x)| {
                out.fill(0.0);
                self.one_channel().each_tap(self.to.channels, |c, tap, target, source, count| {
                    let w = weight[c * self.kernel * self.kernel + tap];
                    let target = &mut out[c * self.to.places() + target..][..count];
                    let source = &x[c * self.from.places() + source..];
                    if self.stride == 1 {
                        target.iter_mut().zip(&source[..count]).for_each(|(t, s)| *t += w * s);
                    } else {
                        let source = source.iter().step_by(self.stride);
                        target.iter_mut().zip(source).for_each(|(t, s)| *t += w * s);
                    }
                });
            },
        );
    }

    /// [`Conv::backward`] where every channel is filtered by itself.
    pub(super) fn depthwise_backward(
        &self,
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Vec<f32> {
        let taps = self.kernel * self.kernel;
        let gradients = dx
            .par_chunks_mut(self.from.len())
            .zip(x.par_chunks(self.from.len()))
            .zip(dy.par_chunks(self.to.len()));
        let images: Vec<Vec<f32>> = gradients
            .map(|((dx, x), dy)| {
                dx.fill(0.0);
                let mut dw = vec![0.0; self.to.channels * taps];
                self.one_channel().each_tap(self.to.channels, |c, tap, target, source, count| {
                    let w = weight[c * taps + tap];
                    let dy = &dy[c * self.to.places() + target..][..count];
                    let from = c * self.from.places() + source;
                    let (x, dx) = (&x[from..], &mut dx[from..]);
                    let mut sum = 0.0;
                    let pixels = dx.iter_mut().zip(x).step_by(self.stride);
                    for ((dx, x), dy) in pixels.zip(dy) {
                        sum += dy * x;
                        *dx += w * dy;
                    }
                    dw[c * taps + tap] += sum;
                });
                dw
            })
            .collect();
        sum_of(images)
    }

    fn one_channel(&self) -> Self {
        let one = |size: Size| Size { channels: 1, ..size };
        Self { from: one(self.from), to: one(self.to), ..*self }
    }

    /// Calls `visit` with channel, tap, first place of the output, first pixel and how many places
    /// of a row there are, for each of `channels` channels.
    #[inline(always)]
    fn each_tap(&self, channels: usize, mut visit: impl FnMut(usize, usize, usize, usize, usize)) {
        for c in 0..channels {
            self.each_row(|tap, y, source, range| {
                if let Some(source) = source {
                    visit(c, tap, y * self.to.width + range.start, source, range.len());
                }
            });
        }
    }
}

/// The sum of equally long lists, in their order.
pub(super) fn sum_of(lists: Vec<Vec<f32>>) -> Vec<f32> {
    let mut lists = lists.into_iter();
    let mut sum = lists.next().unwrap_or_default();
    for list in lists {
        sum.iter_mut().zip(list).for_each(|(s, v)| *s += v);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_widths_have_the_columns_and_images_of_any_width() {
        for (kernel, stride) in [(1, 1), (3, 1), (5, 1), (1, 2), (3, 2)] {
            for (channels, height, width) in
                [(1, 32, 32), (3, 16, 16), (2, 8, 8), (5, 7, 8), (2, 4, 4)]
            {
                let from = Size { channels, height, width };
                let out = |size: usize| (size - 1) / stride + 1;
                let to = Size { channels: 1, height: out(height), width: out(width) };
                let conv = Conv { from, to, kernel, stride };
                let Some((copy, add)) = conv.of_fixed_width() else { continue };
                let image: Vec<f32> = (0..from.len()).map(|i| ((i * i) as f32).sin()).collect();
                let n = to.places() + 3;
                let (mut padded, mut found) = (Vec::new(), vec![7.0; conv.taps() * n]);
                let mut want = found.clone();
                conv.pad(&image, &mut padded);
                copy(&conv, &padded, &mut found, n);
                conv.copy_any(&image, &mut want, n);
                assert_eq!(found, want, "{conv:?}");

                padded.fill(0.0);
                add(&conv, &found, &mut padded, n);
                let (mut found, mut sum) = (vec![1.0; from.len()], vec![0.0; from.len()]);
                conv.unpad(&padded, &mut found);
                conv.add_any(&want, &mut sum, n);
                assert_eq!(found, sum, "{conv:?}");

                // What was added up to an image does not show in the columns of the next.
                let mut scratch = Columns::default();
                let mut dx = vec![1.0; from.len()];
                let first = conv.columns(&image, 1, &mut scratch).to_vec();
                conv.images(&first, 1, &mut scratch.sums, &mut dx);
                assert_eq!(conv.columns(&image, 1, &mut scratch), first, "{conv:?}");
            }
        }
    }
}
