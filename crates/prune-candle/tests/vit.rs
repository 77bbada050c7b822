//! Vision transformers against transformers 5.24 (torch 2.15, eager attention, in f64) with the
//! same weights.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use candle_core::{Device, Tensor};
use ndarray::Array2;
use prune_candle::{Error, Vit, VitConfig, VitNaming};
use prune_checkpoint::Checkpoint;
use prune_core::{DType, LayerId, LayerKind, Mask, Seed, TensorInfo, TensorSource, encode_f32};
use prune_train::vision::ImageBatch;
use prune_train::{AdamW, AdamWOptions, Masks, Model, TrainOptions, Trainer};
use serde_json::{Value, json};

/// Tensors in memory, sorted by name.
struct Tensors(Vec<TensorInfo>, Vec<Vec<u8>>);

impl Tensors {
    fn new(mut tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> Self {
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let info = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| TensorInfo {
            name: name.clone(),
            dtype: DType::F32,
            shape: shape.clone(),
        };
        let infos = tensors.iter().map(info).collect();
        let bytes = |(name, _, values): &(String, _, Vec<f32>)| {
            encode_f32(name, DType::F32, values).unwrap()
        };
        Self(infos, tensors.iter().map(bytes).collect())
    }
}

impl TensorSource for Tensors {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read_at(&self, name: &str, offset: usize, buf: &mut [u8]) -> prune_core::Result<()> {
        let at = self.0.iter().position(|info| info.name == name);
        let at = at.ok_or_else(|| prune_core::Error::UnknownTensor(name.into()))?;
        buf.copy_from_slice(&self.1[at][offset..offset + buf.len()]);
        Ok(())
    }
}

fn config(family: &str) -> Value {
    json!({
        "model_type": family, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 6, "patch_size": 3, "num_channels": 2,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": true,
    })
}

/// Element `i` of a tensor is `sin(0.7 i + s)`, `s` the sum of the bytes of its name, times 0.4
/// for what is no vector and 0.1 for vectors, which are added to 1 unless they are biases.
fn weights(family: &str) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let distilled = family == "deit";
    let tokens = if distilled { 6 } else { 5 };
    let mut shapes = vec![
        (format!("{family}.embeddings.cls_token"), vec![1, 1, 8]),
        (format!("{family}.embeddings.position_embeddings"), vec![1, tokens, 8]),
        (format!("{family}.embeddings.patch_embeddings.projection.weight"), vec![8, 2, 3, 3]),
        (format!("{family}.embeddings.patch_embeddings.projection.bias"), vec![8]),
    ];
    if distilled {
        shapes.push(("deit.embeddings.distillation_token".into(), vec![1, 1, 8]));
    }
    let mut layers = Vec::new();
    for block in 0..2 {
        for (role, rows, cols) in [
            ("attention.attention.query", 8, 8),
            ("attention.attention.key", 8, 8),
            ("attention.attention.value", 8, 8),
            ("attention.output.dense", 8, 8),
            ("intermediate.dense", 12, 8),
            ("output.dense", 8, 12),
        ] {
            layers.push((format!("{family}.encoder.layer.{block}.{role}"), vec![rows, cols]));
        }
        for norm in ["layernorm_before", "layernorm_after"] {
            layers.push((format!("{family}.encoder.layer.{block}.{norm}"), vec![8]));
        }
    }
    layers.push((format!("{family}.layernorm"), vec![8]));
    let heads: &[&str] = match distilled {
        true => &["cls_classifier", "distillation_classifier"],
        false => &["classifier"],
    };
    layers.extend(heads.iter().map(|head| (head.to_string(), vec![3, 8])));
    for (layer, shape) in layers {
        shapes.push((format!("{layer}.bias"), vec![shape[0]]));
        shapes.push((format!("{layer}.weight"), shape));
    }
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let start: u32 = name.bytes().map(u32::from).sum();
        let value = |i: usize| {
            let wave = (0.7 * i as f64 + f64::from(start)).sin();
            let value = match shape.len() {
                1 if name.ends_with(".bias") => 0.1 * wave,
                1 => 1.0 + 0.1 * wave,
                _ => 0.4 * wave,
            };
            value as f32
        };
        let values = (0..shape.iter().product()).map(value).collect();
        (name, shape, values)
    };
    shapes.into_iter().map(tensor).collect()
}

fn images() -> Tensor {
    let values: Vec<f32> = (0..2 * 2 * 36).map(|i| (1.3 * f64::from(i)).sin() as f32).collect();
    Tensor::from_vec(values, (2, 2, 6, 6), &Device::Cpu).unwrap()
}

fn assert_near(found: impl IntoIterator<Item = f32>, expected: &[f64], tolerance: f64) {
    let found: Vec<f32> = found.into_iter().collect();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*found) - expected).abs();
        assert!(error < tolerance * (1.0 + expected.abs()), "{i}: {found}, expected {expected}");
    }
}

fn logits(vit: &Vit) -> Vec<f32> {
    vit.forward(&images()).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

const VIT_LOGITS: [f64; 6] =
    [1.74215847, 1.99462399, 1.34999403, 1.87797157, 2.1358792, 1.43328637];

/// A layer, and of the gradient the first four of the first row, the last two of the last and the
/// norm.
type Gradient = (&'static str, [f64; 4], [f64; 2], f64);

fn check_gradients(vit: &Vit, expected: &[Gradient]) {
    let gradients = vit.energy_gradients(&images()).unwrap();
    assert_eq!(gradients.len(), vit.layers().len());
    for (layer, first, last, norm) in expected {
        let g: &Array2<f32> = &gradients[&LayerId::new(layer)];
        let (rows, cols) = g.dim();
        let tolerance = 3e-6 * (1.0 + norm);
        assert_near((0..4).map(|j| g[[0, j]]), first, tolerance);
        assert_near((cols - 2..cols).map(|j| g[[rows - 1, j]]), last, tolerance);
        let found = g.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((found - norm).abs() < 1e-5 * norm, "{layer}: {found}, expected {norm}");
    }
}

#[test]
fn logits_and_gradients_of_a_vit_are_those_of_transformers() {
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    assert_near(logits(&vit), &VIT_LOGITS, 3e-6);
    check_gradients(
        &vit,
        &[
            (
                "vit.embeddings.patch_embeddings.projection",
                [-2.1904134469, 1.483499478, 2.9840821806, 2.0263853615],
                [2.3466441425, -1.6804784076],
                28.30408504900133,
            ),
            (
                "vit.encoder.layer.0.attention.attention.key",
                [0.1676358607, 0.2101158225, 0.1312666761, -0.0056208071],
                [-0.0183210722, -0.0350232066],
                0.7275784598778741,
            ),
            (
                "vit.encoder.layer.1.intermediate.dense",
                [0.0010538475, -0.0061737573, -0.0043749713, 0.0061158501],
                [-0.1090803909, 0.0594552107],
                3.0252700351787603,
            ),
            (
                "classifier",
                [1.1035075189, 1.7422262341, 0.5692311785, -1.3577406493],
                [-1.1124451368, 0.8878149113],
                5.853339414082204,
            ),
        ],
    );
}

#[test]
fn logits_and_gradients_of_a_distilled_deit_are_those_of_transformers() {
    let vit = Vit::load(&config("deit"), &Tensors::new(weights("deit"))).unwrap();
    assert!(vit.config().distilled);
    let expected =
        [-1.5091948597, -2.0380855144, -1.6500373193, -1.4542402488, -2.0189430168, -1.6752993952];
    assert_near(logits(&vit), &expected, 3e-6);
    check_gradients(
        &vit,
        &[
            (
                "deit.embeddings.patch_embeddings.projection",
                [0.6182751681, 0.5285975069, -0.3354767468, 0.4097564251],
                [0.493315045, 0.4536463865],
                4.332393514149278,
            ),
            (
                "deit.encoder.layer.1.intermediate.dense",
                [-0.1610355108, -0.1528629198, -0.3085954894, -0.1174975233],
                [-0.0451706945, -0.0537594595],
                1.0674296929220872,
            ),
            (
                "cls_classifier",
                [0.0056032381, -0.5488295795, -0.6892496362, 0.0539937952],
                [1.0124769474, 0.3156531058],
                2.6629960859130657,
            ),
        ],
    );
}

/// The same numbers under timm's names: q, k and v in one layer.
fn timm() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut tensors = Vec::new();
    let mut qkv: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    for (name, shape, values) in weights("vit") {
        let name = name
            .replace("vit.embeddings.cls_token", "cls_token")
            .replace("vit.embeddings.position_embeddings", "pos_embed")
            .replace("vit.embeddings.patch_embeddings.projection", "patch_embed.proj")
            .replace("vit.encoder.layer", "blocks")
            .replace("vit.layernorm", "norm")
            .replace("layernorm_before", "norm1")
            .replace("layernorm_after", "norm2")
            .replace("attention.output.dense", "attn.proj")
            .replace("intermediate.dense", "mlp.fc1")
            .replace("output.dense", "mlp.fc2")
            .replace("classifier", "head");
        let Some((block, rest)) = name.split_once(".attention.attention.") else {
            tensors.push((name, shape, values));
            continue;
        };
        let fused = format!("{block}.attn.qkv.{}", rest.rsplit('.').next().unwrap());
        match qkv.iter_mut().find(|(name, ..)| *name == fused) {
            Some((_, fused_shape, fused_values)) => {
                fused_shape[0] += shape[0];
                fused_values.extend(values);
            }
            None => qkv.push((fused, shape, values)),
        }
    }
    tensors.extend(qkv);
    tensors
}

#[test]
fn names_of_timm_give_the_same_model() {
    let json = json!({ "architecture": "vit_tiny", "num_heads": 2, "layer_norm_eps": 1e-12 });
    let vit = Vit::load(&json, &Tensors::new(timm())).unwrap();
    assert_eq!(vit.config().naming, VitNaming::Timm);
    assert_near(logits(&vit), &VIT_LOGITS, 3e-6);
    let layers: Vec<_> = vit.layers().iter().map(|l| (l.id.as_str(), vit.positions(l))).collect();
    assert_eq!(
        layers,
        [
            ("patch_embed.proj", 4),
            ("blocks.0.attn.qkv", 5),
            ("blocks.0.attn.proj", 5),
            ("blocks.0.mlp.fc1", 5),
            ("blocks.0.mlp.fc2", 5),
            ("blocks.1.attn.qkv", 5),
            ("blocks.1.attn.proj", 5),
            ("blocks.1.mlp.fc1", 5),
            ("blocks.1.mlp.fc2", 5),
            ("head", 1),
        ]
    );
    assert_eq!(vit.layers()[0].kind, LayerKind::Conv2d);
    // Heads of the published models are 64 wide.
    let json = json!({ "architecture": "vit_tiny" });
    let error = Vit::load(&json, &Tensors::new(timm())).err().unwrap();
    assert!(matches!(error, Error::Config { field: "num_heads", .. }), "{error}");
}

#[test]
fn weights_are_replaced_as_matrices() {
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    for layer in vit.layers() {
        let weight = vit.weight(&layer.id).unwrap();
        assert_eq!(weight.dim(), (layer.shape[0], layer.numel() / layer.shape[0]));
        vit.set_weight(&layer.id, Array2::zeros(weight.dim()).view()).unwrap();
        assert!(vit.weight(&layer.id).unwrap().iter().all(|w| *w == 0.0));
        let wider = Array2::zeros((weight.nrows(), weight.ncols() + 1));
        assert!(vit.set_weight(&layer.id, wider.view()).is_err());
        vit.set_weight(&layer.id, weight.view()).unwrap();
    }
    assert_near(logits(&vit), &VIT_LOGITS, 3e-6);
    assert!(vit.weight(&LayerId::new("nobody")).is_err());
}

#[test]
fn a_gradient_step_lowers_the_loss_of_a_fresh_model() {
    let config = VitConfig {
        image_size: 6,
        patch_size: 3,
        channels: 2,
        hidden_size: 8,
        intermediate_size: 12,
        layers: 1,
        heads: 2,
        classes: 3,
        norm_eps: 1e-6,
        qkv_bias: true,
        distilled: false,
        naming: VitNaming::Timm,
    };
    let vit = Vit::init(config.clone(), Seed::new(3)).unwrap();
    let again = Vit::init(config.clone(), Seed::new(3)).unwrap();
    assert_eq!(logits(&vit), logits(&again));
    let loss =
        || (vit.forward(&images()).unwrap() - 1.0).unwrap().sqr().unwrap().mean_all().unwrap();
    let before = loss();
    let gradients = before.backward().unwrap();
    for parameter in vit.parameters().iter() {
        let var = parameter.var();
        let gradient = gradients.get(var).unwrap();
        var.set(&(var.as_tensor() - (gradient * 0.01).unwrap()).unwrap()).unwrap();
    }
    let [before, after] = [before, loss()].map(|l| l.to_scalar::<f32>().unwrap());
    assert!(after < before, "{after} < {before}");
    for broken in [
        VitConfig { heads: 3, ..config.clone() },
        VitConfig { patch_size: 4, ..config.clone() },
        VitConfig { classes: 0, ..config.clone() },
        VitConfig { norm_eps: 0.0, ..config },
    ] {
        assert!(matches!(Vit::init(broken, Seed::new(0)), Err(Error::Config { .. })));
    }
}

fn batch() -> ImageBatch {
    let pixels = images().flatten_all().unwrap().to_vec1().unwrap();
    ImageBatch { pixels, labels: vec![2, 0] }
}

/// `torch.nn.functional.cross_entropy` of the logits of transformers for classes 2 and 0, in f64.
const PLAIN_LOSS: f64 = 1.2775431123693177;
/// The same with `label_smoothing=0.1`, and norms of its gradients.
const SMOOTH_LOSS: f64 = 1.2633761653351605;
const SMOOTH_NORMS: [(&str, f64); 4] = [
    ("vit.embeddings.cls_token", 0.2581452540003146),
    ("vit.encoder.layer.0.attention.attention.key.weight", 0.39012098170746234),
    ("vit.encoder.layer.1.output.dense.bias", 0.05468518050603693),
    ("classifier.weight", 1.438930435364118),
];

#[test]
fn loss_and_its_gradients_are_those_of_pytorch() {
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    let tally = vit.evaluate(&batch()).unwrap();
    assert!((tally.loss() - PLAIN_LOSS).abs() < 1e-6, "{}", tally.loss());
    assert_eq!((tally.count, tally.correct), (2, 0));
    let smooth = vit.with_label_smoothing(0.1).unwrap();
    let (tally, gradients) = smooth.gradients(&batch()).unwrap();
    assert!((tally.loss() - SMOOTH_LOSS).abs() < 1e-6, "{}", tally.loss());
    for (name, norm) in SMOOTH_NORMS {
        let number = smooth.parameters().number(name).unwrap();
        let values = gradients.get(number).unwrap().flatten_all().unwrap();
        let values = values.to_vec1::<f32>().unwrap();
        let found = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((found - norm).abs() < 1e-5 * norm, "{name}: {found}, expected {norm}");
    }
    assert!(smooth.with_label_smoothing(1.0).is_err());
}

#[test]
fn a_trainer_keeps_what_masks_remove_at_zero() {
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    let half = |layer: &prune_core::LayerInfo| {
        let cols = layer.numel() / layer.shape[0];
        (layer.id.clone(), Mask::from_fn(layer.shape[0], cols, |r, c| (r + c) % 2 == 0))
    };
    let masks = Masks::new(vit.layers().iter().map(half));
    let adam = AdamW::new(AdamWOptions { rate: 1e-2, ..AdamWOptions::default() }).unwrap();
    let options = TrainOptions { steps: 20, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&vit, adam, options).unwrap().with_masks(masks.clone()).unwrap();
    let before = vit.evaluate(&batch()).unwrap().loss();
    for _ in 0..20 {
        trainer.step(&[batch()], 1).unwrap();
    }
    assert!(vit.evaluate(&batch()).unwrap().loss() < 0.5 * before);
    for (layer, mask) in masks.iter() {
        let left = Mask::of_nonzeros(vit.weight(layer).unwrap().view());
        assert_eq!(left.and(mask).unwrap(), left, "{layer}");
    }
}

#[test]
fn batches_of_another_size_are_refused_by_name() {
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    let short = ImageBatch { pixels: vec![0.0; 72], labels: vec![0, 0] };
    let error = vit.gradients(&short).err().unwrap().to_string();
    assert!(error.contains("pixels of a batch: found shape [72], expected [2, 72]"), "{error}");
    let class = ImageBatch { labels: vec![0, 3], ..batch() };
    assert!(vit.gradients(&class).is_err());
}

#[test]
fn checkpoints_that_do_not_fit_are_refused_by_name() {
    let text = |json: &Value, tensors| match Vit::load(json, &Tensors::new(tensors)) {
        Ok(_) => panic!("it loaded"),
        Err(error) => error.to_string(),
    };
    let mut other = config("vit");
    other["model_type"] = "swin".into();
    assert!(text(&other, weights("vit")).contains("model_type is swin"));
    other = config("vit");
    other["hidden_act"] = "relu".into();
    assert!(text(&other, weights("vit")).contains("hidden_act is relu"));
    other = config("vit");
    other["image_size"] = 9.into();
    assert!(text(&other, weights("vit")).contains("image_size is 9"));
    other = config("vit");
    other["num_attention_heads"] = 3.into();
    assert!(text(&other, weights("vit")).contains("num_attention_heads is 3"));
    let without = |tail: &str| {
        let mut tensors = weights("vit");
        tensors.retain(|(name, ..)| !name.ends_with(tail));
        tensors
    };
    let missing = text(&config("vit"), without("layer.1.output.dense.bias"));
    assert!(missing.contains("vit.encoder.layer.1.output.dense.bias"), "{missing}");
    let mut tensors = weights("vit");
    let at = tensors.iter().position(|t| t.0 == "vit.layernorm.weight").unwrap();
    tensors[at].1 = vec![7];
    tensors[at].2.pop();
    assert!(text(&config("vit"), tensors).contains("found shape [7], expected [8]"));
    let vit = Vit::load(&config("vit"), &Tensors::new(weights("vit"))).unwrap();
    let images = Tensor::zeros((1, 3, 6, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert!(
        vit.forward(&images).unwrap_err().to_string().contains("images: found shape [3, 6, 6]")
    );
}

#[test]
fn the_embedded_model_reads_the_digits_as_transformers_does() {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets");
    let checkpoint = Checkpoint::open(&assets.join("tiny-vit")).unwrap();
    let vit = Vit::load(&checkpoint.config().unwrap(), &checkpoint).unwrap();
    let pixels = std::fs::read(assets.join("digits/pixels.u8")).unwrap();
    let labels = std::fs::read(assets.join("digits/labels.u8")).unwrap();
    let unseen: Vec<f32> = pixels[1297 * 64..].iter().map(|p| f32::from(*p) / 8.0 - 1.0).collect();
    let images = Tensor::from_vec(unseen, (500, 1, 8, 8), &Device::Cpu).unwrap();
    let logits = vit.forward(&images).unwrap().to_vec2::<f32>().unwrap();
    let expected = [
        4.10315009,
        -0.46446832,
        -0.45766171,
        -0.75312803,
        -0.43028006,
        -0.38972517,
        -0.28927067,
        -0.34313242,
        -0.31746303,
        -0.38082197,
    ];
    assert_near(logits[0].iter().copied(), &expected, 3e-5);
    let guess = |row: &[f32]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let right = logits.iter().zip(&labels[1297..]).filter(|(r, l)| guess(r) == usize::from(**l));
    assert_eq!(right.count(), 473);
}
