use std::collections::BTreeMap;

use candle_core::Tensor;
use ndarray::{Array2, ArrayView2, s};
use serde::{Deserialize, Serialize};

use super::adamw::{Adam, AdamWOptions, Moments};
use super::state::{self, ParameterState, States, Take};
use super::{Optimizer, each};
use crate::values::update;
use crate::{Error, Gradients, Parameter, ParameterKind, Parameters, Result};

/// What becomes of the moments when the projection changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Refresh {
    /// They stay, though they belong to the old projection: the released code.
    #[default]
    Keep,
    /// The first is turned into the new projection, Q = P Pᵀ_new; the second by the squares of Q.
    Rotate,
    /// They start from 0, their counter too.
    Reset,
}

/// Options of [`GaLore`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GaLoreOptions {
    /// Adam's own. Weight decay comes after the update, as in the released code.
    pub adam: AdamWOptions,
    /// The rank of the projection; a matrix that is smaller keeps all its directions.
    pub rank: usize,
    /// Gradients of a parameter between two projections.
    pub gap: u64,
    /// What the projected update is multiplied by.
    pub scale: f64,
    /// What becomes of the moments at a new projection.
    pub refresh: Refresh,
}

impl Default for GaLoreOptions {
    /// GaLore's recommendation: rank 128, a new projection every 200 steps, scale 0.25.
    fn default() -> Self {
        let adam = AdamWOptions { eps: 1e-6, weight_decay: 0.0, ..AdamWOptions::default() };
        Self { adam, rank: 128, gap: 200, scale: 0.25, refresh: Refresh::Keep }
    }
}

impl GaLoreOptions {
    /// What OwLore's released code has: rank 256, a new projection every 100 steps, scale 1.
    pub fn owlore() -> Self {
        Self { rank: 256, gap: 100, scale: 1.0, ..Self::default() }
    }
}

/// AdamW whose moments live in a low-rank projection of the gradient.
///
/// For every weight matrix, the gradient G (m × n, m ≥ n; else all is transposed) is projected on
/// its r leading right singular vectors P, found anew every few steps:
///
/// ```text
/// R = G Pᵀ;   m, v: Adam's moments of R;   W ← W − η s √(1 − β₂ᵏ) / (1 − β₁ᵏ) · (m / (√v + ε)) P
/// ```
///
/// The state of a matrix is 2 m r + r n numbers instead of 2 m n. Embeddings, biases and norms
/// take AdamW of the same form. A new projection costs an eigendecomposition of the smaller Gram
/// matrix, O(m n² + n³).
///
/// Source: Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
/// 2024, algorithm 2.
#[derive(Debug)]
pub struct GaLore {
    options: GaLoreOptions,
    projected: States<Projected>,
    full: States<Moments>,
}

#[derive(Debug)]
struct Projected {
    /// Rows are orthonormal: r × n.
    basis: Array2<f32>,
    moments: Moments,
}

impl ParameterState for Projected {
    fn parts(&self) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        let (rank, width) = self.basis.dim();
        let mut parts = self.moments.parts();
        parts.push(("basis", vec![rank, width], self.basis.iter().copied().collect()));
        parts
    }

    fn from_parts(take: &mut Take<'_>) -> Option<Self> {
        let (shape, values) = take("basis")?;
        let [rank, width] = shape[..] else { return None };
        let basis = Array2::from_shape_vec((rank, width), values).ok()?;
        Some(Self { basis, moments: Moments::from_parts(take)? })
    }
}

impl GaLore {
    /// With these options.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`].
    pub fn new(options: GaLoreOptions) -> Result<Self> {
        options.adam.check()?;
        super::check("scale", options.scale, 0.0, f64::MAX)?;
        for (what, value) in
            [("rank", options.rank), ("steps of a projection", options.gap as usize)]
        {
            if value == 0 {
                return Err(Error::out_of_range(what, 0, "at least 1"));
            }
        }
        Ok(Self { options, projected: States::new(), full: States::new() })
    }

    fn step_projected(
        &mut self,
        number: usize,
        parameter: &Parameter,
        gradient: &Tensor,
        rate: f64,
    ) -> Result<()> {
        let options = self.options;
        let name = parameter.name();
        let (rows, cols) = gradient.dims2()?;
        let decay = options.adam.decay.of(parameter, options.adam.weight_decay);
        let states = &mut self.projected;
        update(name, parameter.var(), gradient, |w, g| {
            prune_core::check_finite(&format!("gradient of `{name}`"), g)?;
            // The taller orientation, so that a matrix and its transpose give the same bits.
            let g = view(g, (rows, cols))?;
            let tall = if rows >= cols { g } else { g.reversed_axes() };
            let (m, n) = tall.dim();
            let rank = options.rank.min(n);
            let state = match states.entry(number) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Projected {
                    basis: leading(name, tall, rank)?,
                    moments: Moments::new(m * rank),
                }),
            };
            if state.basis.dim() != (rank, n) {
                let (found, expected) = (state.basis.dim(), (rank, n));
                return Err(Error::shape(
                    format!("projection of `{name}`"),
                    &[found.0, found.1],
                    &[expected.0, expected.1],
                ));
            }
            let steps = state.moments.steps;
            if steps > 0 && steps.is_multiple_of(options.gap) {
                let basis = leading(name, tall, rank)?;
                refresh(options.refresh, state, &basis, m)?;
                state.basis = basis;
            }
            let small = product(name, tall, state.basis.t())?;
            let mut change = vec![0.0; m * rank];
            let small: Vec<f32> = small.into_iter().collect();
            state.moments.update(&mut change, &small, &options.adam, 1.0, |k| {
                galore_step(&options, rate * options.scale, k)
            });
            let lifted = product(name, view(&change, (m, rank))?, state.basis.view())?;
            let keep = (1.0 - rate * decay) as f32;
            for r in 0..rows {
                for c in 0..cols {
                    let delta = if rows >= cols { lifted[[r, c]] } else { lifted[[c, r]] };
                    let w = &mut w[r * cols + c];
                    *w = (*w + delta) * keep;
                }
            }
            Ok(())
        })
    }
}

/// The step of the released code, where ε is added before the second moment is corrected.
fn galore_step(options: &GaLoreOptions, rate: f64, k: u64) -> Adam {
    let correction = |beta: f64| 1.0 - beta.powi(k.min(i32::MAX as u64) as i32);
    let size = rate * correction(options.adam.beta2).sqrt() / correction(options.adam.beta1);
    Adam { size: size as f32, root: 1.0 }
}

/// The moments for a new basis.
fn refresh(rule: Refresh, state: &mut Projected, basis: &Array2<f32>, rows: usize) -> Result<()> {
    let rank = state.basis.nrows();
    match rule {
        Refresh::Keep => {}
        Refresh::Reset => state.moments = Moments::new(rows * rank),
        Refresh::Rotate => {
            let turn = product("projection", state.basis.view(), basis.t())?;
            let squares = turn.mapv(|q| q * q);
            let first = product("moments", view(&state.moments.first, (rows, rank))?, turn.view())?;
            let second =
                product("moments", view(&state.moments.second, (rows, rank))?, squares.view())?;
            state.moments.first = first.into_iter().collect();
            state.moments.second = second.into_iter().collect();
        }
    }
    Ok(())
}

/// The `rank` leading right singular vectors of a tall matrix, as rows; the largest component of
/// each is positive. Decompositions leave the sign open, and moments that outlive a projection
/// depend on it.
fn leading(name: &str, tall: ArrayView2<'_, f32>, rank: usize) -> Result<Array2<f32>> {
    let gram = prune_linalg::gram(tall.mapv(f64::from).view());
    let error = |source| Error::Linalg { what: format!("gradient of `{name}`"), source };
    let (_, vectors) = prune_linalg::eigh(gram.view()).map_err(error)?;
    let n = vectors.ncols();
    // Ascending: the leading ones are last.
    let leading = vectors.slice(s![.., n - rank..; 1]);
    let mut basis = Array2::from_shape_fn((rank, n), |(r, c)| leading[[c, rank - 1 - r]] as f32);
    for mut vector in basis.rows_mut() {
        let largest = vector.iter().fold(0f32, |m, v| if v.abs() > m.abs() { *v } else { m });
        if largest < 0.0 {
            vector.mapv_inplace(|v| -v);
        }
    }
    Ok(basis)
}

fn view(values: &[f32], shape: (usize, usize)) -> Result<ArrayView2<'_, f32>> {
    ArrayView2::from_shape(shape, values)
        .map_err(|_| Error::shape("moments", &[values.len()], &[shape.0, shape.1]))
}

fn product(name: &str, a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
    let error = |source| Error::Linalg { what: format!("projection of `{name}`"), source };
    prune_linalg::product(a, b).map_err(error)
}

impl Optimizer for GaLore {
    fn name(&self) -> &'static str {
        "galore"
    }

    fn rate(&self) -> f64 {
        self.options.adam.rate
    }

    fn step(
        &mut self,
        parameters: &Parameters,
        gradients: Gradients,
        factors: &[f64],
    ) -> Result<()> {
        let options = self.options;
        each(parameters, gradients, options.adam.rate, factors, |i, parameter, gradient, rate| {
            if parameter.kind() == ParameterKind::Weight && gradient.rank() == 2 {
                return self.step_projected(i, parameter, gradient, rate);
            }
            let keep = 1.0 - rate * options.adam.decay.of(parameter, options.adam.weight_decay);
            let full = &mut self.full;
            update(parameter.name(), parameter.var(), gradient, |w, g| {
                let moments = full.entry(i).or_insert_with(|| Moments::new(w.len()));
                state::same_len(parameter.name(), moments.first.len(), w.len())?;
                moments.update(w, g, &options.adam, 1.0, |k| galore_step(&options, rate, k));
                if keep < 1.0 {
                    w.iter_mut().for_each(|w| *w *= keep as f32);
                }
                Ok(())
            })
        })
    }

    fn forget(&mut self, parameter: usize) {
        self.projected.remove(&parameter);
        self.full.remove(&parameter);
    }

    fn state_len(&self) -> usize {
        let projected = self.projected.values().map(|s| s.basis.len() + 2 * s.moments.first.len());
        projected.sum::<usize>() + self.full.values().map(|m| 2 * m.first.len()).sum::<usize>()
    }

    fn save(&self, parameters: &Parameters) -> Result<Vec<(String, Tensor)>> {
        let mut all = state::save("galore", &self.projected, parameters)?;
        all.extend(state::save("galore-full", &self.full, parameters)?);
        Ok(all)
    }

    fn load(&mut self, parameters: &Parameters, saved: &BTreeMap<String, Tensor>) -> Result<()> {
        self.projected = state::load("galore", parameters, saved)?;
        self.full = state::load("galore-full", parameters, saved)?;
        Ok(())
    }
}
