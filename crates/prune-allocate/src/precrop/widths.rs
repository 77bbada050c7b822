use prune_core::{Error, Result};

use super::densities::{Limits, PreCrop};
use super::network::{ChannelNetwork, NetworkCost};

/// What happens to channels that pass a skip connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Residual {
    /// They are cropped together.
    #[default]
    Crop,
    /// They keep their width; only channels inside the blocks are cropped.
    Keep,
}

/// Whole channel numbers for a network within limits on parameters and FLOPs.
///
/// Layer densities come from [`PreCrop`]. A set of channels (all joined by skip connections) is
/// scaled by the geometric mean of the densities of the layers that touch it, a layer on each of
/// its sides: √(pₗ pₗ₊₁) between two layers in a row. Since a set loses channels for the layers on
/// both its sides, these widths alone would miss the limits, so all of them are multiplied by one
/// number, the largest with which the network stays within the limits; where two sets step at once
/// and only one step fits, the earlier takes it. The result is within the limits, and one more step
/// of any set would exceed them.
///
/// Input, output, and with [`Residual::Keep`] skip connections, stay as they are. No set gets wider
/// than the largest density times its width, nor narrower than one step. Milliseconds.
///
/// ```
/// use prune_allocate::{Limits, Widths, resnet20};
///
/// let net = resnet20(10)?;
/// let full = net.cost(&net.full_widths()).params;
/// let limits = Limits { params: Some(0.5 * full as f64), ..Limits::default() };
/// let widths = Widths::default().of(&net, &limits)?;
/// let cost = net.cost(&widths);
/// assert!(cost.params <= full / 2 && cost.params > 49 * full / 100);
/// assert_eq!(net.layers(&widths)[0].shape, [16, 3, 3, 3]);
/// # Ok::<(), prune_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Widths {
    precrop: PreCrop,
    residual: Residual,
    multiple: Multiple,
}

/// Channels by which a width grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Multiple(usize);

impl Default for Multiple {
    fn default() -> Self {
        Self(1)
    }
}

/// One set of channels that may change.
struct Set {
    root: usize,
    /// Its full width times the mean density of the layers that touch it.
    unit: f64,
    least: usize,
    most: usize,
}

impl Set {
    /// Its width at a multiplier, a whole number of steps.
    fn at(&self, multiplier: f64, step: usize) -> usize {
        let steps = (multiplier * self.unit / step as f64 + 1e-9).floor();
        // The cast saturates.
        ((steps as usize).saturating_mul(step)).clamp(self.least, self.most)
    }
}

impl Widths {
    /// Widths of these densities: [`PreCrop::widening`] lets sets grow.
    pub fn new(precrop: PreCrop) -> Self {
        Self { precrop, ..Self::default() }
    }

    /// The same with another treatment of skip connections.
    #[must_use]
    pub fn with_residual(self, residual: Residual) -> Self {
        Self { residual, ..self }
    }

    /// The same where widths are multiples of `channels`, 8 or 16 for most hardware. A set that is
    /// narrower than that, or whose full width is no multiple, may also keep its full width.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for 0.
    pub fn with_multiple(self, channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(super::densities::out_of_range("multiple of channels", 0, "at least 1"));
        }
        Ok(Self { multiple: Multiple(channels), ..self })
    }

    /// The width of every set of channels, for [`ChannelNetwork::cost`] and
    /// [`ChannelNetwork::layers`].
    ///
    /// # Errors
    /// As [`PreCrop::densities`]; [`Error::Infeasible`] when the network exceeds the limits with
    /// every set at its narrowest.
    pub fn of(&self, net: &ChannelNetwork, limits: &Limits) -> Result<Vec<usize>> {
        let densities = self.precrop.densities(&net.layer_costs(), limits)?;
        let step = self.multiple.0;
        let sets = self.sets(net, &densities);
        let mut widths = net.full_widths();
        let mut cost_at = |multiplier: f64| {
            sets.iter().for_each(|s| widths[s.root] = s.at(multiplier, step));
            net.cost(&widths)
        };
        let narrowest = cost_at(0.0);
        if !within(narrowest, limits) {
            return Err(Error::Infeasible(format!(
                "at its narrowest the network has {} weights and {} FLOPs; the limits are {} and {}",
                narrowest.params,
                narrowest.flops,
                limits.params.map_or("none".to_string(), |p| p.to_string()),
                limits.flops.map_or("none".to_string(), |f| f.to_string()),
            )));
        }
        // Costs rise with the multiplier, in steps: the largest that fits, to the last bit.
        let (mut low, mut high) = (0.0, 1.0);
        while within(cost_at(high), limits) && sets.iter().any(|s| s.at(high, step) < s.most) {
            (low, high) = (high, 2.0 * high);
        }
        if within(cost_at(high), limits) {
            low = high;
        }
        loop {
            let middle = low + (high - low) / 2.0;
            if middle <= low || middle >= high {
                break;
            }
            match within(cost_at(middle), limits) {
                true => low = middle,
                false => high = middle,
            }
        }
        cost_at(low);
        self.top_up(net, limits, &sets, &mut widths);
        Ok((0..widths.len()).map(|set| widths[net.root(set)]).collect())
    }

    /// Gives single steps to the sets while one fits, the next to step first.
    fn top_up(&self, net: &ChannelNetwork, limits: &Limits, sets: &[Set], widths: &mut [usize]) {
        let step = self.multiple.0;
        let next = |set: &Set, width: usize| {
            let wider = (width + 1).next_multiple_of(step).min(set.most);
            (wider > width).then_some((wider, wider as f64 / set.unit))
        };
        loop {
            let mut order: Vec<(f64, &Set, usize)> = sets
                .iter()
                .filter_map(|s| next(s, widths[s.root]).map(|(wider, at)| (at, s, wider)))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            let fits = order.into_iter().find(|(_, set, wider)| {
                let before = std::mem::replace(&mut widths[set.root], *wider);
                let fits = within(net.cost(widths), limits);
                if !fits {
                    widths[set.root] = before;
                }
                fits
            });
            if fits.is_none() {
                return;
            }
        }
    }

    fn sets(&self, net: &ChannelNetwork, densities: &[f64]) -> Vec<Set> {
        let full = net.full_widths();
        let fixed =
            |root: usize| net.pinned(root) || (self.residual == Residual::Keep && net.joined(root));
        let mut logs = vec![(0.0, 0usize); full.len()];
        for (layer, p) in net.layers.iter().zip(densities) {
            for side in [layer.input, layer.output] {
                let (sum, count) = &mut logs[net.root(side)];
                *sum += p.ln();
                *count += 1;
            }
        }
        net.roots()
            .into_iter()
            .filter(|&root| !fixed(root) && logs[root].1 > 0)
            .map(|root| {
                let (sum, count) = logs[root];
                let widest = self.precrop.most() * full[root] as f64 + 1e-9;
                Set {
                    root,
                    unit: full[root] as f64 * (sum / count as f64).exp(),
                    least: self.multiple.0.min(full[root]),
                    // The cast saturates.
                    most: (widest as usize).min(1 << 32),
                }
            })
            .collect()
    }
}

fn within(cost: NetworkCost, limits: &Limits) -> bool {
    let fits = |cost: u64, limit: Option<f64>| limit.is_none_or(|l| cost as f64 <= l + 1e-9);
    fits(cost.params, limits.params) && fits(cost.flops, limits.flops)
}
