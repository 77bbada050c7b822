use super::network::positive;
use super::{Activation, Network, Value};
use crate::{Error, Result};

/// The networks of the experiments, for images of 32 x 32 and less. Layers have the names of the
/// shapes in `prune_allocate`.
impl Network {
    /// ResNet for 32 x 32 colour images of depth 6 n + 2 (20, 32, 56): three stages of n blocks,
    /// 16, 32 and 64 channels times `width`, 1 x 1 convolutions on the two skips that change the
    /// width.
    ///
    /// Source: He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, with
    /// projection shortcuts.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for another depth, or a width that is not above 0.
    pub fn resnet(depth: usize, width: f64, classes: usize) -> Result<Self> {
        positive("width of a ResNet", width)?;
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(Error::out_of_range("depth of a ResNet", depth, "6 n + 2: 8, 20, 32, 56"));
        }
        let wide = |channels: usize| ((channels as f64 * width).round() as usize).max(1);
        let mut net = Self::new([3, 32, 32])?;
        let x = net.conv("conv1", net.input(), wide(16), 3, 1)?;
        let mut x = net.norm("bn1", x, Activation::Relu)?;
        for (stage, channels) in [(1, 16), (2, 32), (3, 64)] {
            for block in 0..(depth - 2) / 6 {
                let name = |layer: &str| format!("layer{stage}.{block}.{layer}");
                let stride = if stage > 1 && block == 0 { 2 } else { 1 };
                let inner = net.conv(&name("conv1"), x, wide(channels), 3, stride)?;
                let inner = net.norm(&name("bn1"), inner, Activation::Relu)?;
                let outer = net.conv(&name("conv2"), inner, wide(channels), 3, 1)?;
                let outer = net.norm(&name("bn2"), outer, Activation::Linear)?;
                let skip = match stride {
                    1 => x,
                    _ => {
                        let skip = net.conv(&name("shortcut"), x, wide(channels), 1, stride)?;
                        net.norm(&name("shortcut_bn"), skip, Activation::Linear)?
                    }
                };
                x = net.add(outer, skip, Activation::Relu)?;
            }
        }
        net.classifier("fc", x, classes)
    }

    /// VGG for 32 x 32 colour images with batch norm and one linear layer: depth 11, 13 or 16.
    ///
    /// Source: Simonyan and Zisserman, "Very Deep Convolutional Networks", 2015.
    ///
    /// # Errors
    /// [`prune_core::Error::OutOfRange`] for another depth.
    pub fn vgg(depth: usize, width: f64, classes: usize) -> Result<Self> {
        positive("width of a VGG", width)?;
        let counts = match depth {
            11 => [1, 1, 2, 2, 2],
            13 => [2, 2, 2, 2, 2],
            16 => [2, 2, 3, 3, 3],
            _ => return Err(Error::out_of_range("depth of a VGG", depth, "11, 13 or 16")),
        };
        let mut net = Self::new([3, 32, 32])?;
        let (mut x, mut conv) = (net.input(), 0);
        for (stage, (channels, count)) in [64, 128, 256, 512, 512].iter().zip(counts).enumerate() {
            if stage > 0 {
                x = net.max_pool(x)?;
            }
            for _ in 0..count {
                let wide = ((*channels as f64 * width).round() as usize).max(1);
                x = net.conv(&format!("features.{conv}"), x, wide, 3, 1)?;
                x = net.norm(&format!("features.{conv}.norm"), x, Activation::Relu)?;
                conv += 1;
            }
        }
        x = net.max_pool(x)?;
        net.classifier("classifier", x, classes)
    }

    /// MobileNetV2 for images of this side: seventeen inverted residual blocks. Below 64 pixels the
    /// first strides are 1, as is usual for 32 x 32.
    ///
    /// Source: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018.
    ///
    /// # Errors
    /// [`Error::Layer`] for a side too small.
    pub fn mobilenet_v2(side: usize, classes: usize) -> Result<Self> {
        let small = side < 64;
        let mut net = Self::new([3, side, side])?;
        let x = net.conv("features.0", net.input(), 32, 3, if small { 1 } else { 2 })?;
        let mut x = net.norm("features.0.norm", x, Activation::Relu6)?;
        let (mut width, mut block) = (32, 1);
        // Expansion, channels, blocks, stride of the first block.
        for (expansion, channels, count, stride) in [
            (1, 16, 1, 1),
            (6, 24, 2, if small { 1 } else { 2 }),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ] {
            for i in 0..count {
                let name = |layer: &str| format!("features.{block}.{layer}");
                let mut inner = x;
                if expansion > 1 {
                    inner = net.conv(&name("expand"), x, width * expansion, 1, 1)?;
                    inner = net.norm(&name("expand.norm"), inner, Activation::Relu6)?;
                }
                let stride = if i == 0 { stride } else { 1 };
                inner = net.depthwise(&name("depthwise"), inner, 3, stride)?;
                inner = net.norm(&name("depthwise.norm"), inner, Activation::Relu6)?;
                let outer = net.conv(&name("project"), inner, channels, 1, 1)?;
                let outer = net.norm(&name("project.norm"), outer, Activation::Linear)?;
                x = match i > 0 && width == channels {
                    true => net.add(outer, x, Activation::Linear)?,
                    false => outer,
                };
                (width, block) = (channels, block + 1);
            }
        }
        let x = net.conv("features.18", x, 1280, 1, 1)?;
        let x = net.norm("features.18.norm", x, Activation::Relu6)?;
        net.classifier("classifier", x, classes)
    }

    /// Linear layers with ReLU between them: `hidden` features each, then the classes.
    ///
    /// # Errors
    /// [`Error::Layer`] for a layer without features.
    pub fn mlp(image: &[usize; 3], hidden: &[usize], classes: usize) -> Result<Self> {
        let mut net = Self::new(*image)?;
        let mut x = net.input();
        for (i, features) in hidden.iter().enumerate() {
            x = net.linear(&format!("fc{i}"), x, *features, Activation::Relu)?;
        }
        net.linear(&format!("fc{}", hidden.len()), x, classes, Activation::Linear)?;
        Ok(net)
    }

    /// Three convolutions of `width`, twice and four times as many channels, for images of 8 x 8 to
    /// 28 x 28.
    ///
    /// # Errors
    /// [`Error::Layer`] for an image of less than 4 x 4.
    pub fn small_cnn(image: &[usize; 3], width: usize, classes: usize) -> Result<Self> {
        let mut net = Self::new(*image)?;
        let mut x = net.input();
        for (i, factor) in [1, 2, 4].into_iter().enumerate() {
            if i > 0 {
                x = net.max_pool(x)?;
            }
            x = net.conv(&format!("conv{i}"), x, width * factor, 3, 1)?;
            x = net.norm(&format!("bn{i}"), x, Activation::Relu)?;
        }
        net.classifier("fc", x, classes)
    }

    fn classifier(mut self, name: &str, x: Value, classes: usize) -> Result<Self> {
        let x = self.mean_pool(x)?;
        self.linear(name, x, classes, Activation::Linear)?;
        Ok(self)
    }
}
