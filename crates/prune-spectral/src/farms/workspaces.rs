use std::sync::{Mutex, PoisonError};

use prune_linalg::Workspace;

/// As many workspaces as there are windows worked on at the same time.
///
/// Allocators are slow to give back blocks of tens of megabytes that come and go: without this,
/// windows of 2000 rows take two and a half times the memory.
#[derive(Default)]
pub(super) struct Workspaces {
    free: Mutex<Vec<Workspace>>,
}

impl Workspaces {
    /// The result of `work`, which has a workspace to itself.
    pub(super) fn lend<R>(&self, work: impl FnOnce(&mut Workspace) -> R) -> R {
        // A workspace is in order whatever happened to its last borrower.
        let take = || self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut workspace = take().unwrap_or_default();
        let result = work(&mut workspace);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
        result
    }
}
