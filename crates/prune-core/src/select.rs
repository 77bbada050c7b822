//! Exact selection of the weights to remove.

mod global;
mod group;
mod layer;
mod order;
mod radix;
mod row;
mod whole;

pub use global::{GlobalSelection, GlobalSelector};
pub use whole::k_smallest;

use crate::{Error, LayerId, Mask, Pattern, Result, Scope, Target};

/// How many of `total` weights a sparsity removes: `⌊total · sparsity + 10⁻⁹⌋`.
///
/// The small term undoes rounding in the sparsity: `1 - 0.9` in f64 is a little less than a
/// tenth, yet of 1000 weights it removes 100.
///
/// # Errors
/// [`Error::OutOfRange`] unless `0 <= sparsity < 1`.
///
/// ```
/// use prune_core::count_to_remove;
/// assert_eq!(count_to_remove(1000, 1.0 - 0.9)?, 100);
/// assert_eq!(count_to_remove(7, 0.5)?, 3);
/// assert!(count_to_remove(7, 1.0).is_err());
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn count_to_remove(total: usize, sparsity: f64) -> Result<usize> {
    if !(0.0..1.0).contains(&sparsity) {
        return Err(Error::out_of_range("sparsity", sparsity, "0 <= sparsity < 1"));
    }
    // The cast saturates and drops the fraction.
    Ok(((total as f64 * sparsity + 1e-9) as usize).min(total))
}

/// How many of `remove` weights row `row` of `rows` gives up:
/// `⌊(row+1)·remove/rows⌋ − ⌊row·remove/rows⌋`, so that rows differ by at most one and their sum
/// is `remove`. 0 for a row outside the matrix.
///
/// ```
/// use prune_core::row_share;
/// let shares: Vec<usize> = (0..4).map(|r| row_share(4, 10, r)).collect();
/// assert_eq!(shares, [2, 3, 2, 3]);
/// ```
pub fn row_share(rows: usize, remove: usize, row: usize) -> usize {
    if row >= rows {
        return 0;
    }
    let (rows, remove, row) = (rows as u128, remove as u128, row as u128);
    ((row + 1) * remove / rows - row * remove / rows) as usize
}

/// The most weights, at most `requested`, that `pattern` can remove from a `rows x cols` matrix
/// named `what`: a whole number of blocks or columns. N:M removes `(m - n) / m` of the weights
/// whatever is requested.
///
/// # Errors
/// [`Error::PatternShape`] when the pattern does not divide the shape; [`Error::OutOfRange`] for a
/// pattern that is none (a block of 0 rows) and for shapes whose product overflows.
///
/// ```
/// use prune_core::{Pattern, round_to_pattern};
/// let blocks = Pattern::Block { rows: 4, cols: 4 };
/// assert_eq!(round_to_pattern("w", blocks, 8, 8, 40)?, 32);
/// assert_eq!(round_to_pattern("w", Pattern::Channels, 8, 8, 40)?, 40);
/// assert_eq!(round_to_pattern("w", Pattern::NM { n: 1, m: 4 }, 8, 8, 40)?, 48);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn round_to_pattern(
    what: &str,
    pattern: Pattern,
    rows: usize,
    cols: usize,
    requested: usize,
) -> Result<usize> {
    let (total, unit) = check_pattern(what, pattern, rows, cols)?;
    Ok(match pattern {
        Pattern::NM { n, m } => total / m * (m - n),
        _ => match unit {
            0 => 0,
            unit => requested.min(total) / unit * unit,
        },
    })
}

/// The number of weights and how many of them go at once.
fn check_pattern(what: &str, pattern: Pattern, rows: usize, cols: usize) -> Result<(usize, usize)> {
    match pattern {
        Pattern::NM { n, m } => Pattern::nm(n, m)?,
        Pattern::Block { rows, cols } => Pattern::block(rows, cols)?,
        other => other,
    };
    pattern.check_shape(what, rows, cols)?;
    let product = |a: usize, b: usize| {
        a.checked_mul(b).ok_or_else(|| {
            Error::out_of_range(
                format!("{what} (size)"),
                format!("{a} x {b}"),
                "a product that fits the address space",
            )
        })
    };
    let unit = match pattern {
        Pattern::Unstructured | Pattern::NM { .. } => 1,
        Pattern::Block { rows, cols } => product(rows, cols)?,
        Pattern::Channels => rows,
    };
    Ok((product(rows, cols)?, unit))
}

/// Whether [`select`] can lay `pattern` at `scope`; `method` is who asks, for the error.
///
/// Unstructured and block patterns go by row (of blocks) or by layer, N:M by either since its
/// groups fix every count, channels by layer.
///
/// # Errors
/// [`Error::Unsupported`] saying what to use instead.
///
/// ```
/// use prune_core::{Pattern, Scope, selectable};
/// assert!(selectable("wanda", Pattern::Unstructured, Scope::PerRow).is_ok());
/// assert!(selectable("wanda", Pattern::Unstructured, Scope::Global).is_err());
/// assert!(selectable("wanda", Pattern::Channels, Scope::PerRow).is_err());
/// ```
pub fn selectable(method: &str, pattern: Pattern, scope: Scope) -> Result<()> {
    let reason = match (pattern, scope) {
        (Pattern::NM { .. }, Scope::Global) => {
            "every group of an N:M pattern removes the same number; use scope `row`"
        }
        (_, Scope::Global) => {
            "one layer cannot see the others; count the layers' shares first (`GlobalSelector`) \
             and prune each with scope `layer`"
        }
        (Pattern::Channels, Scope::PerRow) => "a column crosses all rows; use scope `layer`",
        _ => return Ok(()),
    };
    Err(Error::Unsupported { method: method.to_string(), pattern, scope, reason: reason.into() })
}

/// Whether `target` can be met on a `rows x cols` matrix by what [`select`] does: pattern and scope
/// go together, the pattern divides the shape, the count is one that the pattern can remove.
/// `method` is who asks, for the error.
///
/// # Errors
/// [`Error::Unsupported`] as [`selectable`]; [`Error::PatternShape`]; [`Error::OutOfRange`] for the
/// count, and for what [`round_to_pattern`] refuses.
pub fn check_target(method: &str, target: &Target<'_>, rows: usize, cols: usize) -> Result<()> {
    selectable(method, target.pattern, target.scope)?;
    let (total, unit) = check_pattern(target.layer.as_str(), target.pattern, rows, cols)?;
    check_count(target, total, unit)
}

/// Writes the scores of one row into a slice of `cols`.
pub type ScoreRow<'a> = dyn Fn(usize, &mut [f32]) -> Result<()> + Sync + 'a;

/// The mask that removes exactly `target.remove` weights: those of the lowest scores, the lower
/// index first among equals.
///
/// `score_row(row, scores)` writes the scores of one row of a `rows x cols` matrix; it must write
/// the same ones whenever it is called for a row. Scores are finite and may be negative; `-0.0`
/// equals `+0.0`.
///
/// What competes:
/// - unstructured by row: each row removes its [`row_share`]; by layer: all weights compete;
/// - N:M: each aligned group of `m` in a row removes its `m - n` lowest, at either scope;
/// - blocks: the score of a block is the sum of its scores in f64; by row, each row of blocks
///   removes its [`row_share`] of the blocks;
/// - channels: the score of a column is the sum of its scores in f64.
///
/// Rows are scored on all threads, each into a buffer of its thread, once for rows and groups and
/// three or four times for a whole layer: memory stays O(`rows + cols`) a thread besides the mask,
/// and 8 bytes a block. The mask does not depend on the number of threads.
///
/// # Errors
/// [`Error::NotFinite`] naming the layer and the index of a score that is NaN or infinite;
/// [`Error::OutOfRange`] when `target.remove` is more than there is or not what the pattern can
/// remove ([`round_to_pattern`] gives a number that is); [`Error::PatternShape`];
/// [`Error::Unsupported`] as [`selectable`]; whatever `score_row` gives, the lowest row first.
///
/// ```
/// use prune_core::{LayerId, Pattern, Scope, Seed, Target, select};
/// let scores = [[3.0, 1.0, 1.0, 4.0], [1.0, 5.0, 9.0, 2.0]];
/// let layer = LayerId::new("up_proj");
/// let target = Target {
///     layer: &layer,
///     pattern: Pattern::Unstructured,
///     scope: Scope::PerLayer,
///     remove: 2,
///     stream: Seed::new(0).stream("up_proj"),
/// };
/// let mask = select(&target, (2, 4), &|row, out| {
///     out.copy_from_slice(&scores[row]);
///     Ok(())
/// })?;
/// // Three scores are 1: the two of lower index go.
/// assert_eq!(mask.kept_indices().collect::<Vec<_>>(), [0, 3, 4, 5, 6, 7]);
/// # Ok::<(), prune_core::Error>(())
/// ```
pub fn select(
    target: &Target<'_>,
    (rows, cols): (usize, usize),
    score_row: &ScoreRow<'_>,
) -> Result<Mask> {
    check_target("selection", target, rows, cols)?;
    if rows == 0 || cols == 0 {
        return Ok(Mask::all_kept(rows, cols));
    }
    let scores = Scores { layer: target.layer, rows, cols, score_row };
    match (target.pattern, target.scope) {
        (Pattern::Unstructured, Scope::PerRow) => row::select(&scores, target.remove),
        (Pattern::Unstructured, _) => layer::select(&scores, target.remove),
        (Pattern::NM { n, m }, _) => group::select(&scores, n, m),
        (Pattern::Block { rows, cols }, scope) => {
            whole::select_blocks(&scores, (rows, cols), scope, target.remove / (rows * cols))
        }
        (Pattern::Channels, _) => whole::select_columns(&scores, target.remove / rows),
    }
}

fn check_count(target: &Target<'_>, total: usize, unit: usize) -> Result<()> {
    let remove = target.remove;
    let expected = match target.pattern {
        _ if remove > total => format!("at most all {total} weights"),
        Pattern::NM { n, m } if remove != total / m * (m - n) => {
            format!("{}, {} of every {m}", total / m * (m - n), m - n)
        }
        Pattern::Block { .. } | Pattern::Channels if unit > 0 && !remove.is_multiple_of(unit) => {
            format!("a multiple of {unit} for the pattern {}", target.pattern)
        }
        _ => return Ok(()),
    };
    Err(Error::out_of_range(format!("{} (weights to remove)", target.layer), remove, expected))
}

/// The scores of one layer, a row at a time.
struct Scores<'a> {
    layer: &'a LayerId,
    rows: usize,
    cols: usize,
    score_row: &'a ScoreRow<'a>,
}

impl Scores<'_> {
    /// Writes the scores of `row`, which are finite.
    fn write(&self, row: usize, scores: &mut [f32]) -> Result<()> {
        (self.score_row)(row, scores)?;
        match order::first_not_finite(scores) {
            None => Ok(()),
            Some(i) => Err(Error::NotFinite {
                what: format!("{} (scores)", self.layer),
                index: row * self.cols + i,
                value: scores[i].to_string(),
            }),
        }
    }
}
