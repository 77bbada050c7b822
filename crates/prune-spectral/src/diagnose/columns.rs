use std::fmt;

use super::diagnosis::Diagnosis;

/// A value of a table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Column {
    /// A count.
    Count(usize),
    /// A number.
    Number(f64),
    /// A word.
    Text(&'static str),
    /// What could not be measured.
    Missing,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(n) => n.fmt(f),
            Self::Number(v) => v.fmt(f),
            Self::Text(t) => f.pad(t),
            Self::Missing => f.pad("-"),
        }
    }
}

impl From<usize> for Column {
    fn from(n: usize) -> Self {
        Self::Count(n)
    }
}

impl From<f64> for Column {
    fn from(v: f64) -> Self {
        Self::Number(v)
    }
}

impl From<&'static str> for Column {
    fn from(text: &'static str) -> Self {
        Self::Text(text)
    }
}

impl<T: Into<Column>> From<Option<T>> for Column {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Missing, Into::into)
    }
}

impl Diagnosis {
    /// The metrics under WeightWatcher's own names, in its order.
    ///
    /// ```
    /// use prune_spectral::{Column, DiagnoseOptions, diagnose};
    /// let weight = ndarray::Array2::from_shape_fn((30, 20), |(i, j)| ((i * i + 3 * j * i) as f32).sin());
    /// let diagnosis = diagnose("up_proj", weight.view(), &DiagnoseOptions::default())?;
    /// let columns = diagnosis.columns();
    /// assert_eq!(columns[0], ("N", Column::Count(30)));
    /// assert!(columns.iter().any(|(name, _)| *name == "alpha_weighted"));
    /// # Ok::<(), prune_spectral::Error>(())
    /// ```
    pub fn columns(&self) -> Vec<(&'static str, Column)> {
        let mut columns: Vec<(&'static str, Column)> = vec![
            ("N", self.n.into()),
            ("M", self.m.into()),
            ("rf", self.rf.into()),
            ("Q", self.q.into()),
            ("num_evals", self.num_evals.into()),
            ("sv_max", self.sv_max.into()),
            ("sv_min", self.sv_min.into()),
            ("rank_loss", self.rank_loss.into()),
            ("weak_rank_loss", self.weak_rank_loss.into()),
            ("lambda_max", self.lambda_max.into()),
            ("alpha", self.alpha.into()),
            ("xmin", self.xmin.into()),
            ("xmax", self.xmax.into()),
            ("D", self.d.into()),
            ("sigma", self.sigma.into()),
            ("num_pl_spikes", self.num_pl_spikes.into()),
            ("num_fingers", self.num_fingers.into()),
            ("raw_alpha", self.raw_alpha.into()),
            ("alpha_low", self.interval.map(|i| i.low).into()),
            ("alpha_high", self.interval.map(|i| i.high).into()),
            ("status", self.status.as_str().into()),
            ("warning", self.warning.map_or("", |w| w.as_str()).into()),
            ("num_spikes", self.num_spikes.into()),
            ("sigma_mp", self.sigma_mp.into()),
            ("mp_softrank", self.mp_softrank.into()),
            ("W_scale", self.w_scale.into()),
            ("bulk_max", self.bulk_max.into()),
            ("bulk_min", self.bulk_min.into()),
        ];
        if let Some(random) = &self.random {
            columns.extend([
                ("max_rand_eval", Column::from(random.max_rand_eval)),
                ("rand_distance", random.rand_distance.into()),
                ("ww_softrank", random.ww_softrank.into()),
                ("ww_maxdist", random.ww_maxdist.into()),
                ("rand_num_spikes", random.rand_num_spikes.into()),
                ("num_traps", random.rand_num_spikes.into()),
                ("rand_sigma_mp", random.rand_sigma_mp.into()),
                ("rand_mp_softrank", random.rand_mp_softrank.into()),
                ("rand_W_scale", random.rand_w_scale.into()),
                ("rand_bulk_max", random.rand_bulk_max.into()),
                ("rand_bulk_min", random.rand_bulk_min.into()),
            ]);
        }
        columns.extend([
            ("detX_num", Column::from(self.det_x_num)),
            ("detX_val", self.det_x_val.into()),
            ("norm", self.norm.into()),
            ("log_norm", self.log_norm.into()),
            ("spectral_norm", self.spectral_norm.into()),
            ("log_spectral_norm", self.log_spectral_norm.into()),
            ("alpha_weighted", self.alpha_weighted.into()),
            ("log_alpha_norm", self.log_alpha_norm.into()),
            ("stable_rank", self.stable_rank.into()),
            ("matrix_rank", self.matrix_rank.into()),
            ("entropy", self.entropy.into()),
        ]);
        columns
    }
}
