use ndarray::{Array2, Zip};
use rayon::prelude::*;

use super::Precision;
use super::discrete::{Discrete, scans};
use super::group::{GroupStep, column_norms, grams_of_b};
use super::options::{AdamOptions, CoreRate, GroupChoice, Schedule};
use super::snapshot::{Core, Snapshot};
use super::state::{Place, Products, State, Tile, sum, zeros_like};

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// Running means of a gradient and of its square.
struct Moments<T> {
    mean: Array2<T>,
    square: Array2<T>,
}

impl<T: Precision> Moments<T> {
    fn like(value: &Array2<T>) -> Self {
        Self { mean: Array2::zeros(value.dim()), square: Array2::zeros(value.dim()) }
    }

    fn absorb(&mut self, gradient: &Array2<T>) {
        let (mean, square) = (T::of(1.0 - BETA1), T::of(1.0 - BETA2));
        Zip::from(&mut self.mean).and(&mut self.square).and(gradient).for_each(|m, v, g| {
            *m += mean * (*g - *m);
            *v += square * (*g * *g - *v);
        });
    }

    /// As [`Moments::absorb`] with a gradient of 0 where nothing is kept.
    fn absorb_kept(&mut self, gradient: &Array2<T>, kept: &Array2<bool>) {
        let (mean, square) = (T::of(1.0 - BETA1), T::of(1.0 - BETA2));
        Zip::from(&mut self.mean).and(&mut self.square).and(gradient).and(kept).for_each(
            |m, v, g, kept| {
                let g = if *kept { *g } else { T::zero() };
                *m += mean * (g - *m);
                *v += square * (g * g - *v);
            },
        );
    }

    fn step(&self, value: &mut Array2<T>, step: &Step<T>) {
        Zip::from(value).and(&self.mean).and(&self.square).for_each(|x, m, v| {
            *x -= step.rate * *m / (v.sqrt() * step.scale + step.epsilon);
        });
    }

    /// As [`Moments::step`]; what is not kept stays 0. The released code lets it move behind the
    /// mask; nobody sees it, since a group that is chosen gets new values.
    fn step_kept(&self, value: &mut Array2<T>, kept: &Array2<bool>, step: &Step<T>) {
        Zip::from(value).and(&self.mean).and(&self.square).and(kept).for_each(|x, m, v, kept| {
            let next = *x - step.rate * *m / (v.sqrt() * step.scale + step.epsilon);
            *x = if *kept { next } else { T::zero() };
        });
    }
}

/// The constants of one step: `x -= rate · m / (√v · scale + ε)`.
struct Step<T> {
    rate: T,
    scale: T,
    epsilon: T,
}

impl<T: Precision> Step<T> {
    fn new(rate: f64, count: i32) -> Self {
        Self {
            rate: T::of(rate / (1.0 - BETA1.powi(count))),
            scale: T::of(1.0 / (1.0 - BETA2.powi(count)).sqrt()),
            epsilon: T::of(EPSILON),
        }
    }
}

/// Joint Adam on A, B and the core.
///
/// One pass over the tiles does a whole iteration: step the core with the moments of the last
/// gradient, multiply out, change groups, and take up the gradients of the next step while the
/// products are in the cache. So an iteration costs six products of `rows · cols · block`
/// multiplications, and nothing of the layer's size is stored but weight, core and moments.
pub(super) struct Adam<T> {
    options: AdamOptions,
    /// The core's learning rate at the start.
    core_rate: f64,
    steps: i32,
    a: Vec<Moments<T>>,
    b: Vec<Moments<T>>,
    core: Vec<Vec<Moments<T>>>,
}

impl<T: Precision> Adam<T> {
    pub(super) fn new(options: AdamOptions, state: &State<T>) -> Self {
        let core_rate = match options.core_rate {
            CoreRate::Absolute(rate) => rate,
            CoreRate::Relative(rate) => rate * root_mean_square(state),
        };
        let moments = |tiles: &Vec<Tile<T>>| tiles.iter().map(|t| Moments::like(&t.core)).collect();
        Self {
            options,
            core_rate,
            steps: 0,
            a: state.a.iter().map(Moments::like).collect(),
            b: state.b.iter().map(Moments::like).collect(),
            core: state.strips.iter().map(moments).collect(),
        }
    }

    /// Takes up the gradients at the start; the loss there.
    pub(super) fn start(&mut self, state: &mut State<T>, step: &GroupStep) -> f64 {
        self.pass(state, None, (step, GroupChoice::Greedy, 0), None)
    }

    /// One step of Adam at the learning rates of `progress` (0 at the start, 1 at the end), then
    /// `groups` changes of groups in every pair of blocks; the loss after them. What A, B and the
    /// core were before is copied to `before`.
    pub(super) fn iterate(
        &mut self,
        state: &mut State<T>,
        progress: f64,
        discrete: (&GroupStep, GroupChoice, usize),
        before: Option<&mut Snapshot<T>>,
    ) -> f64 {
        self.steps = self.steps.saturating_add(1);
        let fall = match self.options.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine(end) => {
                end + (1.0 - end) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        };
        let factors = Step::new(self.options.factor_rate * fall, self.steps);
        let core = Step::new(self.core_rate * fall, self.steps);
        self.pass(state, Some((factors, core)), discrete, before)
    }

    fn pass(
        &mut self,
        state: &mut State<T>,
        step: Option<(Step<T>, Step<T>)>,
        (group_step, choice, groups): (&GroupStep, GroupChoice, usize),
        mut before: Option<&mut Snapshot<T>>,
    ) -> f64 {
        if let Some(before) = before.as_deref_mut() {
            before.copy_factors(state);
        }
        if let Some((factors, _)) = &step {
            for (moments, values) in [(&self.a, &mut state.a), (&self.b, &mut state.b)] {
                moments.par_iter().zip(values).for_each(|(m, x)| m.step(x, factors));
            }
        }
        let grid = state.grid;
        let grams = grams_of_b(&grid, &state.b, &state.importance);
        let scans = scans(state, &grams, choice);
        let per_strip = grid.rows.block_range(0).len().max(1);
        let per_task = state.strips_per_task();
        let mut copies: Vec<Option<&mut [Core<T>]>> = match before {
            Some(before) => before.strips().map(Some).collect(),
            None => state.strips.iter().map(|_| None).collect(),
        };
        let tasks: Vec<(f64, Vec<Array2<T>>)> = state
            .strips
            .par_chunks_mut(per_task)
            .zip(self.core.par_chunks_mut(per_task))
            .zip(state.a.par_chunks(per_task * per_strip))
            .zip(self.a.par_chunks_mut(per_task * per_strip))
            .zip(copies.par_chunks_mut(per_task))
            .enumerate()
            .map_init(
                Products::empty,
                |products, (task, ((((strips, core), a), moments), copies))| {
                    let mut loss = 0.0;
                    let mut b_gradients = zeros_like(&state.b);
                    let strips = strips.iter_mut().zip(core).zip(a.chunks(per_strip));
                    let strips = strips.zip(moments.chunks_mut(per_strip)).zip(copies);
                    for (s, ((((tiles, core), a), a_moments), copy)) in strips.enumerate() {
                        let norms = column_norms(a);
                        let mut a_gradients = zeros_like(a);
                        let discrete = Discrete {
                            step: group_step,
                            choice,
                            m: grid.m,
                            grams: &grams,
                            scans: &scans,
                            importance: &state.importance,
                            a,
                            norms: &norms,
                            b: &state.b,
                        };
                        for (j, (tile, moments)) in tiles.iter_mut().zip(core).enumerate() {
                            if let Some(copy) = copy {
                                copy[j].copy_from(tile);
                            }
                            if let Some((_, step)) = &step {
                                moments.step_kept(&mut tile.core, &tile.kept, step);
                            }
                            let place = Place::new(&grid, task * per_task + s, j);
                            loss += products.forward(tile, &place, a, &state.b, &state.importance);
                            products.backward(&place, a, &state.b);
                            loss += discrete.change_groups(tile, &place, products, groups);
                            products.add_factor_gradients(
                                tile,
                                &place,
                                &mut a_gradients,
                                &mut b_gradients,
                            );
                            moments.absorb_kept(&products.core, &tile.kept);
                        }
                        for (moments, gradient) in a_moments.iter_mut().zip(&a_gradients) {
                            moments.absorb(gradient);
                        }
                    }
                    (loss, b_gradients)
                },
            )
            .collect();
        let (losses, b_gradients): (Vec<f64>, Vec<_>) = tasks.into_iter().unzip();
        let b_gradients = sum(b_gradients);
        self.b.par_iter_mut().zip(&b_gradients).for_each(|(m, g)| m.absorb(g));
        losses.iter().sum()
    }
}

/// Of the kept values of the core; 0 where nothing is.
fn root_mean_square<T: Precision>(state: &State<T>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for tile in state.strips.iter().flatten() {
        for (x, _) in tile.core.iter().zip(&tile.kept).filter(|(_, kept)| **kept) {
            sum += x.wide() * x.wide();
            count += 1;
        }
    }
    (sum / count.max(1) as f64).sqrt()
}
