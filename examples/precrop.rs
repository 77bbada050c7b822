//! Channel numbers for networks before they are trained: ResNet-20, VGG-16 and MobileNetV2 cropped
//! to half and to three tenths of their parameters or multiplications, and a figure of the widths.
//!
//! ```text
//! cargo run --release --example precrop [OUT_DIR]
//! ```

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use plotters::prelude::*;
use prune_allocate::{
    ChannelNetwork, Limits, PreCrop, Residual, Widths, mobilenet_v2, resnet20, vgg16,
};

/// The width of every layer's output, by the name of what was asked for.
type Series = Vec<(String, Vec<usize>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args().nth(1).map_or_else(|| PathBuf::from("out/precrop"), PathBuf::from);
    fs::create_dir_all(&out)?;
    let networks = [
        ("ResNet-20", resnet20(10)?),
        ("VGG-16", vgg16(10)?),
        ("MobileNetV2", mobilenet_v2(1000)?),
    ];
    println!(
        "{:<12} {:<26} {:>11} {:>7} {:>13} {:>7} {:>7}",
        "", "", "parameters", "", "FLOPs", "", "ms"
    );
    for (name, net) in &networks {
        let mut series: Series = vec![("full".into(), outputs(net, &net.full_widths()))];
        row(name, "full", net, &net.full_widths(), 0.0);
        for share in [0.5, 0.3] {
            for (what, params, flops) in [("parameters", true, false), ("FLOPs", false, true)] {
                let limits = limits(net, params.then_some(share), flops.then_some(share));
                let start = Instant::now();
                let widths = Widths::default().of(net, &limits)?;
                let ms = 1e3 * start.elapsed().as_secs_f64();
                let title = format!("{:.0} % of {what}", 100.0 * share);
                row(name, &title, net, &widths, ms);
                series.push((title, outputs(net, &widths)));
            }
        }
        draw(name, &series, &out.join(format!("{}.svg", name.to_lowercase())))?;
    }

    // Variations, on ResNet-20 and MobileNetV2.
    let (resnet, mobile) = (&networks[0].1, &networks[2].1);
    let half = limits(resnet, Some(0.5), None);
    let keep = Widths::default().with_residual(Residual::Keep).of(resnet, &half)?;
    row("ResNet-20", "50 %, skips keep width", resnet, &keep, 0.0);
    let both = limits(mobile, Some(0.5), Some(0.5));
    let eights = Widths::default().with_multiple(8)?.of(mobile, &both)?;
    row("MobileNetV2", "50 % of both, eights", mobile, &eights, 0.0);
    let wider = limits(mobile, Some(0.8), Some(1.0));
    let preconfig = Widths::new(PreCrop::widening(2.0)?).of(mobile, &wider)?;
    row("MobileNetV2", "PreConfig, 80 % and 100 %", mobile, &preconfig, 0.0);
    println!("\nfigures are in {}", out.display());
    Ok(())
}

fn limits(net: &ChannelNetwork, params: Option<f64>, flops: Option<f64>) -> Limits {
    let full = net.cost(&net.full_widths());
    Limits {
        params: params.map(|share| share * full.params as f64),
        flops: flops.map(|share| share * full.flops as f64),
    }
}

/// The first dimension of every layer's weight.
fn outputs(net: &ChannelNetwork, widths: &[usize]) -> Vec<usize> {
    net.layers(widths).iter().map(|l| l.shape[0]).collect()
}

fn row(name: &str, title: &str, net: &ChannelNetwork, widths: &[usize], ms: f64) {
    let (cost, full) = (net.cost(widths), net.cost(&net.full_widths()));
    let percent = |a: u64, b: u64| format!("{:.2} %", 100.0 * a as f64 / b as f64);
    println!(
        "{name:<12} {title:<26} {:>11} {:>7} {:>13} {:>7} {ms:>7.2}",
        cost.params,
        percent(cost.params, full.params),
        cost.flops,
        percent(cost.flops, full.flops),
    );
}

/// Output channels by layer, in the order of the data.
fn draw(name: &str, series: &Series, path: &Path) -> Result<(), Box<dyn Error>> {
    let layers = series[0].1.len();
    let most = series.iter().flat_map(|s| &s.1).copied().max().unwrap_or(1);
    let root = SVGBackend::new(path, (900, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{name}: output channels by layer"), ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0..layers.max(2) - 1, (1usize..most + 1).log_scale())?;
    chart.configure_mesh().x_desc("layer").y_desc("channels").draw()?;
    for (i, (title, widths)) in series.iter().enumerate() {
        let colour = if i == 0 { BLACK.to_rgba() } else { Palette99::pick(i).to_rgba() };
        let points = widths.iter().enumerate().map(|(l, w)| (l, *w));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(title)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 12, y)], colour));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}
