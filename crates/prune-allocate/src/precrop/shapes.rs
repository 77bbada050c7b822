use prune_core::Result;

use super::network::{ChannelNetwork, Channels};

/// The shapes of ResNet-20 for 32 x 32 images: three stages of three blocks, 16, 32 and 64 channels,
/// with 1 x 1 convolutions on the two skips that change the width.
///
/// # Errors
/// `OutOfRange` for 0 classes.
pub fn resnet20(classes: usize) -> Result<ChannelNetwork> {
    let mut net = ChannelNetwork::new();
    let image = net.input(3)?;
    let mut x = net.conv("conv1", image, 16, 3, 32 * 32)?;
    let mut width = 16;
    for (stage, channels, side) in [(1, 16, 32), (2, 32, 16), (3, 64, 8)] {
        for block in 0..3 {
            let name = |layer: &str| format!("layer{stage}.{block}.{layer}");
            let inner = net.conv(&name("conv1"), x, channels, 3, side * side)?;
            let outer = net.conv(&name("conv2"), inner, channels, 3, side * side)?;
            let skip = match width == channels {
                true => x,
                false => net.conv(&name("shortcut"), x, channels, 1, side * side)?,
            };
            x = net.add(skip, outer)?;
            width = channels;
        }
    }
    classifier(net, "fc", x, classes)
}

/// The shapes of VGG-16 for 32 x 32 images: thirteen convolutions and one linear layer.
///
/// # Errors
/// `OutOfRange` for 0 classes.
pub fn vgg16(classes: usize) -> Result<ChannelNetwork> {
    let mut net = ChannelNetwork::new();
    let mut x = net.input(3)?;
    let mut conv = 0;
    for (channels, count, side) in
        [(64, 2, 32), (128, 2, 16), (256, 3, 8), (512, 3, 4), (512, 3, 2)]
    {
        for _ in 0..count {
            x = net.conv(&format!("features.{conv}"), x, channels, 3, side * side)?;
            conv += 1;
        }
    }
    classifier(net, "classifier", x, classes)
}

/// The shapes of MobileNetV2 for 224 x 224 images: seventeen inverted residual blocks.
///
/// # Errors
/// `OutOfRange` for 0 classes.
pub fn mobilenet_v2(classes: usize) -> Result<ChannelNetwork> {
    let mut net = ChannelNetwork::new();
    let image = net.input(3)?;
    let mut side = 112usize;
    let mut x = net.conv("features.0", image, 32, 3, side * side)?;
    let mut width = 32;
    let mut block = 1;
    // Expansion, channels, blocks, stride of the first block.
    for (expansion, channels, count, stride) in [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ] {
        for i in 0..count {
            let name = |layer: &str| format!("features.{block}.{layer}");
            let inner = match expansion {
                1 => x,
                _ => net.conv(&name("expand"), x, width * expansion, 1, side * side)?,
            };
            if i == 0 {
                side /= stride;
            }
            let inner = net.depthwise(&name("depthwise"), inner, 3, side * side)?;
            let outer = net.conv(&name("project"), inner, channels, 1, side * side)?;
            x = match i > 0 && width == channels {
                true => net.add(x, outer)?,
                false => outer,
            };
            width = channels;
            block += 1;
        }
    }
    let x = net.conv("features.18", x, 1280, 1, side * side)?;
    classifier(net, "classifier", x, classes)
}

fn classifier(
    mut net: ChannelNetwork,
    name: &str,
    x: Channels,
    classes: usize,
) -> Result<ChannelNetwork> {
    let logits = net.linear(name, x, classes, 1)?;
    net.output(logits);
    Ok(net)
}
