use indicatif::{ProgressBar, ProgressStyle};

/// Tensors done of all, on stderr; silent when that is no terminal.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn new(tensors: usize) -> Self {
        let bar = ProgressBar::new(tensors as u64);
        if let Ok(style) =
            ProgressStyle::with_template("{bar:30} {pos}/{len} tensors, {eta} left  {msg}")
        {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(crate) fn show(&self, done: usize, name: &str) {
        self.0.set_position(done as u64);
        self.0.set_message(name.to_string());
    }

    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}
