//! Memory for what a product reads once and in order.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

/// Elements in memory that begins on a boundary of 2 MiB and is, on Linux, asked to be in pages of
/// that size: finding small pages can take a third of the time in which a product reads a matrix.
/// What is smaller than such a page lies in a [`Vec`].
pub(crate) struct Pages<T> {
    memory: Memory<T>,
}

enum Memory<T> {
    Small(Vec<T>),
    /// The first `len` elements in the capacity of a vector that stays empty.
    Large {
        pages: Vec<Page>,
        len: usize,
        element: PhantomData<T>,
    },
}

const PAGE: usize = 2 << 20;

#[repr(align(2097152))]
struct Page {
    _bytes: [u8; PAGE],
}

impl<T> From<Vec<T>> for Pages<T> {
    fn from(values: Vec<T>) -> Self {
        let (len, bytes) = (values.len(), size_of_val(&values[..]));
        if bytes < PAGE || align_of::<T>() > PAGE || std::mem::needs_drop::<T>() {
            return Self { memory: Memory::Small(values) };
        }
        let mut pages: Vec<Page> = Vec::with_capacity(bytes.div_ceil(PAGE));
        // The last, partial one stays in small pages: nothing is held that is not used.
        advise(&mut pages, bytes / PAGE);
        // SAFETY: the source has `len` elements, and the capacity of `pages` at least as many
        // bytes, aligned for any `T` here; a fresh allocation does not overlap. The elements are
        // moved: the vector only gives its memory back, for they need no drop.
        #[allow(unsafe_code)]
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), pages.as_mut_ptr().cast::<T>(), len);
        }
        Self { memory: Memory::Large { pages, len, element: PhantomData } }
    }
}

/// Asks for the first `count` pages of the capacity to be huge. Whether they are changes nothing
/// but the speed, so that a refusal is ignored.
#[cfg(target_os = "linux")]
fn advise(pages: &mut Vec<Page>, count: usize) {
    let count = count.min(pages.capacity());
    // SAFETY: the range is inside of an allocation that is ours alone, and begins on a boundary
    // of pages; the advice leaves its contents as they are.
    #[allow(unsafe_code)]
    unsafe {
        libc::madvise(pages.as_mut_ptr().cast(), count * PAGE, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &mut Vec<Page>, _: usize) {}

impl<T> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.memory {
            Memory::Small(values) => values,
            Memory::Large { pages, len, .. } => {
                // SAFETY: `From` wrote `len` elements to the start of this capacity, which is
                // aligned for them, and nothing writes to it after that.
                #[allow(unsafe_code)]
                unsafe {
                    std::slice::from_raw_parts(pages.as_ptr().cast::<T>(), *len)
                }
            }
        }
    }
}

impl<T: Clone> Clone for Pages<T> {
    fn clone(&self) -> Self {
        Self::from(self.to_vec())
    }
}

impl<T: PartialEq> PartialEq for Pages<T> {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl<T: fmt::Debug> fmt::Debug for Pages<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self[..].fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_those_of_the_vector_at_every_size_about_a_page() {
        for bytes in [0, 3, PAGE - 3, PAGE, PAGE + 3, 2 * PAGE, 2 * PAGE + 3 * 1000] {
            let values: Vec<[u8; 3]> =
                (0..bytes / 3).map(|i| [i as u8, (i >> 8) as u8, (i >> 16) as u8]).collect();
            let pages = Pages::from(values.clone());
            assert_eq!(pages[..], values[..]);
            let copy = pages.clone();
            assert_eq!(copy, pages);
            drop(pages);
            assert_eq!(copy[..], values[..]);
            assert!(size_of_val(&copy[..]) < PAGE || copy.as_ptr().addr().is_multiple_of(PAGE));
        }
    }
}
