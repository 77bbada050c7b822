//! Figures are written, as what they say they are.
#![cfg(feature = "plot")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod inputs;

use inputs::normal;
use prune_spectral::plot::{DensityPlot, DepthPlot, ShapePlot};
use prune_spectral::{BulkFit, Error, Spectrum, TailFit};

#[test]
fn figures_are_written_as_svg_and_png() {
    let directory = tempfile::tempdir().unwrap();
    let spectrum = Spectrum::of(normal(1, 120, 60).view()).unwrap();
    let density = DensityPlot::new("noise", &spectrum)
        .fit(TailFit::peak().fit(&spectrum).unwrap())
        .bulk(BulkFit::default().fit(&spectrum).unwrap());
    let depth = DepthPlot::new("depth")
        .series("up", vec![(0, 3.0), (1, f64::NAN), (2, 4.0)])
        .series("down", vec![(0, 2.0), (1, 7.0)]);
    let shapes = ShapePlot::new("shapes").layer(10, 10, 2.0, 2.1).layer(10, 40, 4.0, 2.2);
    for ending in ["svg", "png"] {
        let path = |name: &str| directory.path().join(format!("{name}.{ending}"));
        density.save(&path("density")).unwrap();
        depth.save(&path("depth")).unwrap();
        shapes.save(&path("shapes")).unwrap();
        for name in ["density", "depth", "shapes"] {
            let bytes = std::fs::read(path(name)).unwrap();
            if ending == "svg" {
                let text = String::from_utf8(bytes).unwrap();
                assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
                assert!(text.contains("<circle"));
            } else {
                let mut reader =
                    png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
                let mut image = vec![0; reader.output_buffer_size().unwrap()];
                let info = reader.next_frame(&mut image).unwrap();
                assert_eq!((info.width, info.height), (900, 560));
                // Not blank: text, axes, points.
                assert!(image.chunks(3).filter(|p| *p != [255, 255, 255]).count() > 2000);
            }
        }
    }
}

#[test]
fn empty_figures_and_bad_paths_are_no_panic() {
    let directory = tempfile::tempdir().unwrap();
    let none = Spectrum::from_eigenvalues(vec![]).unwrap();
    DensityPlot::new("none", &none).save(&directory.path().join("a.svg")).unwrap();
    let one = Spectrum::from_eigenvalues(vec![1.0; 9]).unwrap();
    DensityPlot::new("one", &one).save(&directory.path().join("b.png")).unwrap();
    DepthPlot::new("none").save(&directory.path().join("c.svg")).unwrap();
    ShapePlot::new("none").save(&directory.path().join("d.png")).unwrap();
    let e = ShapePlot::new("x").save(&directory.path().join("d.gif")).unwrap_err();
    assert!(matches!(e, Error::Plot { .. }) && e.to_string().contains("gif"), "{e}");
    let e = ShapePlot::new("x").save(&directory.path().join("no/d.svg")).unwrap_err();
    assert!(matches!(e, Error::Plot { .. }));
}
