use std::path::{Path, PathBuf};

use prune_checkpoint::{GgufExport, GgufOptions, HfWriter, ModelSource, WriterOptions};
use prune_core::TensorInfo;

use crate::manifest::MANIFEST;
use crate::plan::Plan;
use crate::store::Store;
use crate::{ApplyOptions, Result};

/// What is written: a directory or a GGUF file, incomplete until the end.
pub(crate) enum Output {
    Directory(HfWriter),
    // Boxed: it knows the names and places of all tensors.
    File(Box<GgufExport>),
}

impl Output {
    pub(crate) fn create(
        out: &Path,
        source: &dyn ModelSource,
        plan: &Plan,
        store: &Store,
        tensors: Vec<TensorInfo>,
        options: &ApplyOptions,
    ) -> Result<Self> {
        let origin = Some(source.path().to_path_buf());
        let ApplyOptions { overwrite, resume, shard_size, .. } = *options;
        if matches!(store, Store::Gguf) {
            let options = GgufOptions { overwrite, resume, source: origin };
            let export = GgufExport::create(out, source, &Store::types(plan)?, &options)?;
            return Ok(Output::File(Box::new(export)));
        }
        let options = WriterOptions {
            plan: tensors,
            shard_size,
            overwrite,
            source: origin,
            resume,
            ..WriterOptions::default()
        };
        Ok(Output::Directory(HfWriter::create(out, options)?))
    }

    pub(crate) fn write_part(&self, name: &str, offset: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Output::Directory(writer) => writer.write_part(name, offset as u64, bytes)?,
            Output::File(export) => export.write_part(name, offset, bytes)?,
        }
        Ok(())
    }

    pub(crate) fn read_part(&self, name: &str, offset: usize, buf: &mut [u8]) -> Result<()> {
        match self {
            Output::Directory(writer) => writer.read_part(name, offset as u64, buf)?,
            Output::File(export) => export.read_part(name, offset, buf)?,
        }
        Ok(())
    }

    pub(crate) fn seal(&self, name: &str) -> Result<()> {
        match self {
            Output::Directory(writer) => writer.seal(name)?,
            Output::File(export) => export.seal(name)?,
        }
        Ok(())
    }

    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        match self {
            Output::Directory(writer) => writer.scratch(name),
            Output::File(export) => export.scratch(name),
        }
    }

    pub(crate) fn keep(&mut self) {
        match self {
            Output::Directory(writer) => writer.keep(),
            Output::File(export) => export.keep(),
        }
    }

    /// Adds the manifest and gives the output its name.
    pub(crate) fn finish(self, manifest: &[u8]) -> Result<()> {
        match self {
            Output::Directory(mut writer) => {
                writer.add_file(MANIFEST, manifest)?;
                writer.finish()?;
            }
            Output::File(mut export) => {
                export.add_beside(MANIFEST, manifest)?;
                export.finish()?;
            }
        }
        Ok(())
    }
}
