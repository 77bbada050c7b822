#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
//! Quantised checkpoints that are wrong: each gets a typed error that says what.

use std::path::Path;

use prune_checkpoint::{Error, HfWriter, QuantizedCheckpoint, WriterOptions};
use prune_core::{DType, LayerId, TensorInfo};
use serde_json::{Value, json};

/// A checkpoint of one layer, to be damaged.
struct Model {
    tensors: Vec<(TensorInfo, Vec<u8>)>,
    config: Value,
}

fn tensor(name: &str, dtype: DType, shape: &[usize], byte: u8) -> (TensorInfo, Vec<u8>) {
    let info = TensorInfo { name: format!("l.{name}"), dtype, shape: shape.to_vec() };
    let bytes = match dtype {
        // A small finite number.
        DType::F16 => [0x00, 0x2c].repeat(info.numel()),
        DType::F32 => 3.5f32.to_le_bytes().repeat(info.numel()),
        _ => vec![byte; info.nbytes()],
    };
    (info, bytes)
}

fn compressed_tensors() -> Model {
    let shape = [40u64, 64].iter().flat_map(|n| n.to_le_bytes()).collect();
    let mut tensors = vec![
        tensor("weight_packed", DType::I32, &[40, 8], 0x55),
        tensor("weight_scale", DType::F16, &[40, 2], 0),
        tensor("weight_shape", DType::I64, &[2], 0),
        tensor("weight_zero_point", DType::I32, &[5, 2], 0x33),
    ];
    tensors[2].1 = shape;
    let weights = json!({
        "num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32,
    });
    let config = json!({ "quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "version": "0.20.0",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
    }});
    Model { tensors, config }
}

fn fp4(format: &str, weights: Value, scale: DType, groups: usize) -> Model {
    let tensors = vec![
        tensor("weight_packed", DType::U8, &[40, 32], 0x5a),
        tensor("weight_scale", scale, &[40, groups], 0x38),
    ];
    let config = json!({ "quantization_config": {
        "quant_method": "compressed-tensors", "format": format, "version": "0.20.1",
        "config_groups": { "group_0": { "targets": ["Linear"], "weights": weights } },
    }});
    Model { tensors, config }
}

fn nvfp4() -> Model {
    let weights = json!({
        "num_bits": 4, "type": "float", "symmetric": true, "strategy": "tensor_group", "group_size": 16,
    });
    let mut model = fp4("nvfp4-pack-quantized", weights, DType::F8E4M3, 4);
    model.tensors.push(tensor("weight_global_scale", DType::F32, &[1], 0));
    model
}

fn mxfp4() -> Model {
    let weights = json!({ "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32 });
    fp4("mxfp4-pack-quantized", weights, DType::U8, 2)
}

fn gptq() -> Model {
    let mut tensors = vec![
        tensor("qweight", DType::I32, &[8, 32], 0x55),
        tensor("qzeros", DType::I32, &[2, 4], 0x33),
        tensor("scales", DType::F16, &[2, 32], 0),
        tensor("g_idx", DType::I32, &[64], 0),
    ];
    tensors[3].1 = (0..64u32).flat_map(|i| (i / 32).to_le_bytes()).collect();
    let config = json!({ "quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2",
    }});
    Model { tensors, config }
}

fn awq() -> Model {
    let tensors = vec![
        tensor("qweight", DType::I32, &[64, 4], 0x55),
        tensor("qzeros", DType::I32, &[2, 4], 0x33),
        tensor("scales", DType::F16, &[2, 32], 0),
    ];
    let config = json!({ "quantization_config": {
        "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true, "version": "gemm",
    }});
    Model { tensors, config }
}

impl Model {
    fn open(&self, path: &Path) -> Result<QuantizedCheckpoint, Error> {
        let plan = self.tensors.iter().map(|(t, _)| t.clone()).collect();
        let options = WriterOptions { plan, overwrite: true, ..WriterOptions::default() };
        let mut writer = HfWriter::create(path, options).unwrap();
        for (info, bytes) in &self.tensors {
            writer.write_tensor(info, bytes).unwrap();
        }
        writer.add_file("config.json", self.config.to_string().as_bytes()).unwrap();
        writer.finish().unwrap();
        QuantizedCheckpoint::open(path)
    }

    fn quantization(&mut self) -> &mut Value {
        &mut self.config["quantization_config"]
    }

    fn weights(&mut self) -> &mut Value {
        &mut self.quantization()["config_groups"]["group_0"]["weights"]
    }

    fn at(&mut self, name: &str) -> &mut (TensorInfo, Vec<u8>) {
        let name = format!("l.{name}");
        self.tensors.iter_mut().find(|(t, _)| t.name == name).unwrap()
    }

    fn set(&mut self, name: &str, dtype: DType, shape: &[usize]) {
        *self.at(name) = tensor(name, dtype, shape, 0);
    }

    fn drop(&mut self, name: &str) {
        let name = format!("l.{name}");
        self.tensors.retain(|(t, _)| t.name != name);
    }
}

#[derive(Debug, PartialEq)]
enum Kind {
    Tensor,
    Field,
    Unsupported,
    Duplicate,
}

fn kind(error: &Error) -> Option<Kind> {
    match error {
        Error::Tensor { .. } => Some(Kind::Tensor),
        Error::Field { .. } => Some(Kind::Field),
        Error::Unsupported { .. } => Some(Kind::Unsupported),
        Error::DuplicateTensor { .. } => Some(Kind::Duplicate),
        _ => None,
    }
}

type Case = (&'static str, fn() -> Model, fn(&mut Model), Kind, &'static str);

#[rustfmt::skip]
const CASES: [Case; 51] = [
    ("no quantization_config", gptq, |m| m.config = json!({}), Kind::Field, "quantization_config"),
    ("another method", gptq, |m| m.quantization()["quant_method"] = json!("bitsandbytes"), Kind::Unsupported, "bitsandbytes"),
    ("no quantised tensors", gptq, |m| m.tensors.retain(|(t, _)| t.name == "l.scales"), Kind::Field, "qweight"),
    ("a weight beside its codes", gptq, |m| m.tensors.push(tensor("weight", DType::F16, &[32, 64], 0)), Kind::Duplicate, "l.weight"),
    ("ct: another format", compressed_tensors, |m| m.quantization()["format"] = json!("mxfp8-quantized"), Kind::Unsupported, "mxfp8"),
    ("ct: another format of a group", compressed_tensors, |m| m.quantization()["config_groups"]["group_0"]["format"] = json!("mxfp6-pack-quantized"), Kind::Unsupported, "mxfp6"),
    ("ct: several formats, none named", compressed_tensors, |m| m.quantization()["format"] = json!("mixed-precision"), Kind::Field, "group_0.format"),
    ("ct: integers as FP4", compressed_tensors, |m| m.quantization()["format"] = json!("nvfp4-pack-quantized"), Kind::Field, "`\"float\"` in nvfp4"),
    ("nvfp4: six bits", nvfp4, |m| m.weights()["num_bits"] = json!(6), Kind::Field, "num_bits"),
    ("nvfp4: groups of 32", nvfp4, |m| m.weights()["group_size"] = json!(32), Kind::Field, "group_size"),
    ("nvfp4: groups without a scale of the matrix", nvfp4, |m| m.weights()["strategy"] = json!("group"), Kind::Field, "tensor_group"),
    ("nvfp4: zero points", nvfp4, |m| m.weights()["symmetric"] = json!(false), Kind::Field, "symmetric"),
    ("nvfp4: no scale of the matrix", nvfp4, |m| m.drop("weight_global_scale"), Kind::Tensor, "missing"),
    ("nvfp4: several scales of the matrix", nvfp4, |m| m.set("weight_global_scale", DType::F32, &[40]), Kind::Tensor, "[1]"),
    ("nvfp4: a scale of the matrix in halves", nvfp4, |m| m.set("weight_global_scale", DType::F16, &[1]), Kind::Tensor, "F32"),
    ("nvfp4: scales in bytes", nvfp4, |m| m.set("weight_scale", DType::U8, &[40, 4]), Kind::Tensor, "F8_E4M3"),
    ("nvfp4: scales of another shape", nvfp4, |m| m.set("weight_scale", DType::F8E4M3, &[40, 2]), Kind::Tensor, "[40, 4]"),
    ("nvfp4: codes in words", nvfp4, |m| m.set("weight_packed", DType::I32, &[40, 8]), Kind::Tensor, "U8"),
    ("nvfp4: half a group", nvfp4, |m| m.set("weight_packed", DType::U8, &[40, 28]), Kind::Tensor, "rows of 8 bytes"),
    ("nvfp4: no codes", nvfp4, |m| m.set("weight_packed", DType::U8, &[0, 32]), Kind::Tensor, "weight_packed"),
    ("mxfp4: groups of 16", mxfp4, |m| m.weights()["group_size"] = json!(16), Kind::Field, "mxfp4-pack-quantized"),
    ("mxfp4: scales in FP8", mxfp4, |m| m.set("weight_scale", DType::F8E4M3, &[40, 2]), Kind::Tensor, "U8"),
    ("ct: no groups", compressed_tensors, |m| m.quantization()["config_groups"] = json!({}), Kind::Field, "config_groups"),
    ("ct: nine bits", compressed_tensors, |m| m.weights()["num_bits"] = json!(9), Kind::Field, "num_bits"),
    ("ct: floats", compressed_tensors, |m| m.weights()["type"] = json!("float"), Kind::Field, "`int`"),
    ("ct: groups without a size", compressed_tensors, |m| m.weights()["group_size"] = Value::Null, Kind::Field, "group_size"),
    ("ct: an unknown strategy", compressed_tensors, |m| m.weights()["strategy"] = json!("block"), Kind::Field, "strategy"),
    ("ct: a pattern that is none", compressed_tensors, |m| m.quantization()["config_groups"]["group_0"]["targets"] = json!(["re:("]), Kind::Field, "targets"),
    ("ct: no target fits", compressed_tensors, |m| m.quantization()["config_groups"]["group_0"]["targets"] = json!(["k"]), Kind::Field, "no target"),
    ("ct: codes of another width", compressed_tensors, |m| m.set("weight_packed", DType::I32, &[40, 9]), Kind::Tensor, "width"),
    ("ct: codes of another dtype", compressed_tensors, |m| m.set("weight_packed", DType::I64, &[40, 8]), Kind::Tensor, "dtype"),
    ("ct: codes of other rows", compressed_tensors, |m| m.set("weight_packed", DType::I32, &[41, 8]), Kind::Tensor, "40 rows"),
    ("ct: no scales", compressed_tensors, |m| m.drop("weight_scale"), Kind::Tensor, "missing"),
    ("ct: scales of another shape", compressed_tensors, |m| m.set("weight_scale", DType::F16, &[40, 3]), Kind::Tensor, "[40, 2]"),
    ("ct: integers as scales", compressed_tensors, |m| m.set("weight_scale", DType::I32, &[40, 2]), Kind::Tensor, "BF16"),
    ("ct: no zero points", compressed_tensors, |m| m.drop("weight_zero_point"), Kind::Tensor, "missing"),
    ("ct: zero points of another shape", compressed_tensors, |m| m.set("weight_zero_point", DType::I32, &[5, 3]), Kind::Tensor, "2 columns"),
    ("ct: a negative shape", compressed_tensors, |m| m.at("weight_shape").1 = [0xff; 16].to_vec(), Kind::Tensor, "positive"),
    ("ct: a shape beyond memory", compressed_tensors, |m| m.at("weight_shape").1 = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f].repeat(2), Kind::Tensor, "positive"),
    ("ct: channels that no group divides", compressed_tensors, |m| m.weights()["group_size"] = json!(48), Kind::Tensor, "48"),
    ("ct: an index of another length", compressed_tensors, |m| m.tensors.push(tensor("weight_g_idx", DType::I32, &[63], 0)), Kind::Tensor, "[64]"),
    ("gptq: marlin", gptq, |m| m.quantization()["checkpoint_format"] = json!("marlin"), Kind::Unsupported, "marlin"),
    ("gptq: one bit", gptq, |m| m.quantization()["bits"] = json!(1), Kind::Field, "bits"),
    ("gptq: groups of nothing", gptq, |m| m.quantization()["group_size"] = json!(0), Kind::Field, "group_size"),
    ("gptq: words that are no codes", gptq, |m| m.set("qweight", DType::I32, &[7, 32]), Kind::Tensor, "in · bits / 32"),
    ("gptq: zero points of another shape", gptq, |m| m.set("qzeros", DType::I32, &[2, 5]), Kind::Tensor, "[2, 4]"),
    ("gptq: scales of other outputs", gptq, |m| m.set("scales", DType::F16, &[2, 31]), Kind::Tensor, "groups x 32"),
    ("gptq: an index with two dimensions", gptq, |m| m.set("g_idx", DType::I32, &[8, 8]), Kind::Tensor, "one dimension"),
    ("awq: gemv", awq, |m| m.quantization()["version"] = json!("gemv_fast"), Kind::Unsupported, "gemv_fast"),
    ("awq: three bits", awq, |m| m.quantization()["bits"] = json!(3), Kind::Field, "bits"),
    ("awq: scales of another shape", awq, |m| m.set("scales", DType::F16, &[3, 32]), Kind::Tensor, "[2, 32]"),
];

#[test]
fn what_is_wrong_is_named_when_the_checkpoint_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    for good in [compressed_tensors, nvfp4, mxfp4, gptq, awq] {
        let model = good().open(&path).unwrap();
        model.read_quantized(&LayerId::new("l")).unwrap();
    }
    for (what, good, damage, expected, word) in CASES {
        let mut model = good();
        damage(&mut model);
        let error = model.open(&path).expect_err(what);
        assert_eq!(kind(&error), Some(expected), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains(word), "{what}: {text}");
    }
}

#[test]
fn wrong_contents_are_named_when_a_layer_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model");
    type Case = (&'static str, fn() -> Model, fn(&mut Model), &'static str);
    let cases: [Case; 9] = [
        ("NaN scales", compressed_tensors, |m| m.at("weight_scale").1[1] = 0x7e, "NaN"),
        ("NaN scales", nvfp4, |m| m.at("weight_scale").1[5] = 0xff, "0xff, which is NaN, at 5"),
        ("NaN scales", mxfp4, |m| m.at("weight_scale").1[7] = 0xff, "0xff, which is NaN, at 7"),
        (
            "a NaN scale of the matrix",
            nvfp4,
            |m| m.at("weight_global_scale").1 = f32::NAN.to_le_bytes().to_vec(),
            "NaN",
        ),
        (
            "a zero scale of the matrix",
            nvfp4,
            |m| m.at("weight_global_scale").1 = vec![0; 4],
            "finite number but 0",
        ),
        (
            "an infinite scale of the matrix",
            nvfp4,
            |m| m.at("weight_global_scale").1 = f32::INFINITY.to_le_bytes().to_vec(),
            "inf",
        ),
        ("NaN scales", awq, |m| m.at("scales").1[1] = 0x7e, "NaN"),
        ("a group that does not exist", gptq, |m| m.at("g_idx").1[0] = 2, "groups below 2"),
        ("a negative group", gptq, |m| m.at("g_idx").1[3] = 0x80, "groups below 2"),
    ];
    for (what, good, damage, word) in cases {
        let mut model = good();
        damage(&mut model);
        let model = model.open(&path).unwrap();
        let error = model.read_quantized(&LayerId::new("l")).expect_err(what);
        assert_eq!(kind(&error), Some(Kind::Tensor), "{what}");
        assert!(error.to_string().contains(word), "{what}: {error}");
    }
    let model = gptq().open(&path).unwrap();
    assert!(matches!(model.read_quantized(&LayerId::new("m")), Err(Error::NotPlanned { .. })));
}
