use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What one step of training did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The step, from 1.
    pub step: usize,
    /// The epoch, from 0.
    pub epoch: usize,
    /// The learning rate.
    pub rate: f64,
    /// The mean loss.
    pub loss: f64,
    /// The share of right predictions.
    pub accuracy: f64,
    /// The norm of the gradients before clipping.
    pub gradient_norm: f64,
    /// Loss on held-out data, where it was measured after this step.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heldout_loss: Option<f64>,
    /// Share of right predictions on held-out data.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub heldout_accuracy: Option<f64>,
}

/// The steps of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct History {
    /// A record a step.
    pub records: Vec<Record>,
}

impl History {
    /// The history in a log of JSON lines.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Format`] naming the line.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::file(path, e))?;
        let line = |(i, line)| {
            serde_json::from_str(line).map_err(|e: serde_json::Error| {
                Error::format(path, format!("line {}", i + 1), e, "a record of a step")
            })
        };
        Ok(Self { records: text.lines().enumerate().map(line).collect::<Result<_>>()? })
    }

    /// The last held-out loss and accuracy.
    pub fn heldout(&self) -> Option<(f64, f64)> {
        self.records.iter().rev().find_map(|r| Some((r.heldout_loss?, r.heldout_accuracy?)))
    }
}

/// A log of JSON lines that grows by a record a step.
#[derive(Debug)]
pub(crate) struct Log {
    file: fs::File,
    path: std::path::PathBuf,
}

impl Log {
    /// A log of the steps so far, in place of the file that there was: a resumed run has them in
    /// its checkpoint.
    pub(crate) fn create(path: &Path, so_far: &History) -> Result<Self> {
        let lines = so_far.records.iter().map(|record| line(path, record));
        let lines = lines.collect::<Result<String>>()?;
        let create = || -> std::io::Result<fs::File> {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut name = path.file_name().unwrap_or_default().to_os_string();
            name.push(".partial");
            let partial = path.with_file_name(name);
            fs::write(&partial, lines)?;
            fs::rename(&partial, path)?;
            fs::File::options().append(true).open(path)
        };
        let file = create().map_err(|e| Error::file(path, e))?;
        Ok(Self { file, path: path.to_path_buf() })
    }

    pub(crate) fn write(&mut self, record: &Record) -> Result<()> {
        let line = line(&self.path, record)?;
        self.file.write_all(line.as_bytes()).map_err(|e| Error::file(&self.path, e))
    }
}

fn line(path: &Path, record: &Record) -> Result<String> {
    let line = serde_json::to_string(record)
        .map_err(|e| Error::format(path, "record", e, "finite numbers"))?;
    Ok(line + "\n")
}
