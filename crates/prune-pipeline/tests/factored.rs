//! Methods that write factors, and fits to the dense model, on a small network: what is written,
//! what verification finds, and that the bytes depend on nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ndarray::{Array2, ArrayD, ArrayView2, Axis, Ix2, Ix3, s};
use prune_checkpoint::{Checkpoint, HfWriter, WriterOptions, tensor_digest};
use prune_core::{
    Block, BlockModel, DType, Head, LayerId, LayerInfo, Mask, Observer, Pattern, Seed, TensorInfo,
    TensorSource, encode_f32,
};
use prune_pipeline::{
    ApplyOptions, Calibration, Error, FACTORS, Manifest, MemoryBudget, Plan, Recipe, Schedule,
    Targets, TokenWindows, apply, rederive, verify,
};

const WIDTH: usize = 16;
const INNER: usize = 32;
const BLOCKS: usize = 3;
const PATTERN: Pattern = Pattern::NM { n: 2, m: 4 };

fn id(block: usize, role: &str) -> LayerId {
    LayerId::new(format!("model.layers.{block}.mlp.{role}_proj"))
}

/// `h + down tanh(up h)`, three times.
struct Network(Vec<LayerInfo>);

impl Network {
    fn new() -> Self {
        let layers = (0..BLOCKS).flat_map(|b| {
            [("up", INNER, WIDTH), ("down", WIDTH, INNER)]
                .map(|(role, rows, cols)| LayerInfo::linear(id(b, role).as_str(), rows, cols))
        });
        Self(layers.collect())
    }
}

struct NetworkBlock {
    index: usize,
    up: Array2<f32>,
    down: Array2<f32>,
}

impl BlockModel for Network {
    fn layers(&self) -> &[LayerInfo] {
        &self.0
    }
    fn blocks(&self) -> usize {
        BLOCKS
    }
    fn vocab_size(&self) -> usize {
        100
    }
    fn width(&self) -> usize {
        WIDTH
    }
    fn block_bytes(&self) -> usize {
        8 * WIDTH * INNER
    }
    fn sample_bytes(&self, tokens: usize) -> usize {
        4 * tokens * (WIDTH + 2 * INNER)
    }
    fn embed(&self, _: &dyn TensorSource, ids: &[u32]) -> prune_core::Result<Array2<f32>> {
        let rows = ids.iter().flat_map(|id| {
            let mut stream = Seed::new(9).stream(&format!("token {id}"));
            let common = stream.uniform() as f32 - 0.5;
            (0..WIDTH).map(move |c| {
                let loud = if c % 7 == 3 { 4.0 } else { 1.0 };
                loud * (common + stream.uniform() as f32 - 0.5)
            })
        });
        Ok(Array2::from_shape_vec((ids.len(), WIDTH), rows.collect()).unwrap())
    }
    fn load_block(&self, w: &dyn TensorSource, index: usize) -> prune_core::Result<Box<dyn Block>> {
        let [up, down] = ["up", "down"].map(|role| w.read_matrix(&id(index, role).weight_name()));
        Ok(Box::new(NetworkBlock { index, up: up?, down: down? }))
    }
    fn load_head(&self, _: &dyn TensorSource) -> prune_core::Result<Box<dyn Head>> {
        Err(prune_core::Error::external("head", "there is none"))
    }
}

impl NetworkBlock {
    fn inner(&self, hidden: ArrayView2<'_, f32>) -> Array2<f32> {
        hidden.dot(&self.up.t()).mapv(f32::tanh)
    }
}

impl Block for NetworkBlock {
    fn observe(
        &self,
        hidden: ArrayView2<'_, f32>,
        observer: &mut Observer<'_>,
    ) -> prune_core::Result<()> {
        observer(&[id(self.index, "up")], hidden)?;
        observer(&[id(self.index, "down")], self.inner(hidden).view())
    }
    fn forward(&self, hidden: ArrayView2<'_, f32>) -> prune_core::Result<Array2<f32>> {
        Ok(&hidden + self.inner(hidden).dot(&self.down.t()))
    }
}

fn source(directory: &Path, shard_size: u64, dtype: DType) -> Checkpoint {
    let infos: Vec<TensorInfo> = Network::new()
        .0
        .iter()
        .map(|l| TensorInfo { name: l.id.weight_name(), dtype, shape: l.shape.clone() })
        .collect();
    let options = WriterOptions { plan: infos.clone(), shard_size, ..WriterOptions::default() };
    let mut writer = HfWriter::create(directory, options).unwrap();
    for info in &infos {
        let mut stream = Seed::new(1).stream(&info.name);
        let values: Vec<f32> = (0..info.numel()).map(|_| stream.uniform() as f32 - 0.5).collect();
        writer.write_tensor(info, &encode_f32(&info.name, dtype, &values).unwrap()).unwrap();
    }
    writer.add_file("config.json", b"{}").unwrap();
    writer.finish().unwrap();
    Checkpoint::open(directory).unwrap()
}

fn windows() -> TokenWindows {
    let mut stream = Seed::new(2).stream("tokens");
    let ids: Vec<u32> = (0..8 * 64).map(|_| (stream.uniform() * 100.0) as u32).collect();
    TokenWindows::consecutive("ids", &ids, 64, None).unwrap()
}

fn armor() -> Recipe {
    Recipe::new("armor").pattern("2:4").option("block", "8").option("iterations", "20")
}

fn recipes() -> [Recipe; 3] {
    let dense = Recipe::new("sparsegpt").pattern("2:4").targets(Targets::Dense);
    [armor(), Recipe::new("ria-permuted").pattern("2:4"), dense]
}

fn compress(source: &Checkpoint, recipe: &Recipe, out: &Path, options: &ApplyOptions) -> Manifest {
    let (model, windows) = (Network::new(), windows());
    let calibration = Calibration::new(&model, &windows).memory(options.memory);
    let plan = Plan::new(source, recipe, Some(&calibration)).unwrap();
    assert_eq!(Plan::from_json(&plan.to_json().unwrap()).unwrap(), plan);
    apply(source, &plan, Some(&calibration), out, options, &mut |_, _, _| ()).unwrap()
}

fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|e| e.unwrap())
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect();
    all.sort();
    all
}

fn factor(file: &Checkpoint, layer: &str, role: &str) -> ArrayD<f32> {
    let name = format!("{layer}.{role}");
    let shape = file.info(&name).unwrap().shape.clone();
    ArrayD::from_shape_vec(shape, file.read_f32(&name).unwrap()).unwrap()
}

fn block_diagonal(blocks: ArrayD<f32>) -> Array2<f32> {
    let blocks = blocks.into_dimensionality::<Ix3>().unwrap();
    let (count, block, _) = blocks.dim();
    let mut all = Array2::zeros((count * block, count * block));
    for (i, part) in blocks.outer_iter().enumerate() {
        let at = i * block..(i + 1) * block;
        all.slice_mut(s![at.clone(), at]).assign(&part);
    }
    all
}

#[test]
fn armor_writes_a_dense_model_and_its_factors() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let directory = tempfile::tempdir().unwrap();
        let source = source(&directory.path().join("source"), u64::MAX, dtype);
        let out = directory.path().join("out");
        let manifest = compress(&source, &armor(), &out, &ApplyOptions::default());
        let model = Checkpoint::open(&out).unwrap();
        // What a runtime without knowledge of factors sees is a model like the source.
        assert_eq!(source.tensors(), model.tensors());
        let file = Checkpoint::open(&out.join(FACTORS)).unwrap();
        let numbers: usize = file.tensors().iter().map(TensorInfo::nbytes).sum();
        let own: usize = model.tensors().iter().map(TensorInfo::nbytes).sum();
        assert_eq!(manifest.plan.totals.bytes, numbers + own);
        for tensor in &manifest.tensors {
            let figures = tensor.factored.as_ref().unwrap();
            let layer = tensor.name.strip_suffix(".weight").unwrap();
            let weight = model.read_matrix(&tensor.name).unwrap();
            let core = factor(&file, layer, "armor_core").into_dimensionality::<Ix2>().unwrap();
            Mask::of_nonzeros(core.view()).check(PATTERN).unwrap();
            let a = block_diagonal(factor(&file, layer, "armor_a"));
            let b = block_diagonal(factor(&file, layer, "armor_b"));
            let product = a.dot(&core).dot(&b);
            let largest = weight.iter().fold(0f32, |m, w| m.max(w.abs()));
            let off = product.iter().zip(&weight).fold(0f32, |m, (p, w)| m.max((p - w).abs()));
            // One rounding to the stored dtype: half a unit in the last of its 24, 11 or 8 bits.
            let rounding = match dtype {
                DType::F32 => 1e-6,
                DType::F16 => 1.0 / 2000.0,
                _ => 1.0 / 250.0,
            };
            assert!(off <= largest * rounding, "{layer} {dtype}: {off} of {largest}");
            assert_eq!(figures.core_sparsity, 0.5);
            let (rows, cols) = (weight.nrows() as f64, weight.ncols() as f64);
            assert!((figures.overhead - 8.0 * (1.0 / rows + 1.0 / cols)).abs() < 1e-12);
            let [start, end] = figures.loss.unwrap();
            assert!(end < start, "{layer}: {start} to {end}");
            assert!(figures.relative_error < 1.0);
        }
        assert_eq!(manifest.tensors.len() * 3, file.tensors().len());
        let verification = verify(&out).unwrap();
        assert!(verification.ok, "{dtype}: {:?}", verification.failures);
        assert_eq!(verification.factors, file.tensors().len());
    }
}

#[test]
fn permuted_channels_are_two_of_four_in_their_own_order() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(&directory.path().join("source"), u64::MAX, DType::BF16);
    let [plain, out] = ["plain", "out"].map(|name| directory.path().join(name));
    let options = ApplyOptions::default();
    let without = compress(&source, &Recipe::new("ria").pattern("2:4"), &plain, &options);
    let manifest = compress(&source, &recipes()[1], &out, &options);
    let (model, file) =
        (Checkpoint::open(&out).unwrap(), Checkpoint::open(&out.join(FACTORS)).unwrap());
    let mut moved = 0;
    for tensor in &manifest.tensors {
        let layer = tensor.name.strip_suffix(".weight").unwrap();
        let weight = model.read_matrix(&tensor.name).unwrap();
        let dense = source.read_matrix(&tensor.name).unwrap();
        let name = format!("{layer}.permuted_order");
        assert_eq!(file.info(&name).unwrap().dtype, DType::I32);
        let bytes = file.read(&name).unwrap();
        let order: Vec<usize> =
            bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b) as usize).collect();
        moved += order.iter().enumerate().filter(|(place, channel)| place != *channel).count();
        let grouped = weight.select(Axis(1), &order);
        Mask::of_nonzeros(grouped.view()).check(PATTERN).unwrap();
        assert_eq!(grouped.into_dyn(), factor(&file, layer, "permuted_core"));
        // Weights that stay are as they were.
        assert!(weight.iter().zip(&dense).all(|(w, d)| *w == 0.0 || w == d));
        assert_eq!(tensor.factored.as_ref().unwrap().overhead, 1.0 / weight.nrows() as f64);
    }
    assert!(moved > 0);
    assert!(verify(&out).unwrap().ok);
    assert!(without.tensors.iter().all(|t| t.factored.is_none()));
}

#[test]
fn the_bytes_depend_on_nothing_but_source_recipe_and_data() {
    for recipe in recipes() {
        let directory = tempfile::tempdir().unwrap();
        let mut first = None;
        for (i, (shard, threads)) in [(u64::MAX, 1), (1500, 2), (1, 4)].into_iter().enumerate() {
            let source = source(&directory.path().join(format!("source{i}")), shard, DType::BF16);
            let (model, windows) = (Network::new(), windows());
            let calibration = Calibration::new(&model, &windows);
            let plan = Plan::new(&source, &recipe, Some(&calibration)).unwrap();
            let out = directory.path().join("out");
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let schedule = || {
                Schedule::new(&source, &plan, Some(&calibration), MemoryBudget::default()).unwrap()
            };
            let least: MemoryBudget = pool.install(schedule).least.to_string().parse().unwrap();
            for memory in [MemoryBudget::default(), least] {
                for stop in [false, true] {
                    let options = ApplyOptions { memory, resume: true, ..ApplyOptions::default() };
                    if stop {
                        pool.install(|| interrupt(&source, &plan, &out, &options));
                    }
                    pool.install(|| compress(&source, &recipe, &out, &options));
                    let found = files(&out);
                    std::fs::remove_dir_all(&out).unwrap();
                    let expected = first.get_or_insert_with(|| found.clone());
                    assert!(*expected == found, "{recipe:?}, {threads} threads, stop {stop}");
                }
            }
        }
        let names: Vec<String> = first.unwrap().into_iter().map(|(name, _)| name).collect();
        let has_factors = recipe.rules[0].method.as_deref() != Some("sparsegpt");
        assert_eq!(names.contains(&FACTORS.to_string()), has_factors, "{names:?}");
    }
}

/// Runs until the first block is safe.
fn interrupt(source: &Checkpoint, plan: &Plan, out: &Path, options: &ApplyOptions) {
    let (model, windows) = (Network::new(), windows());
    let calibration = Calibration::new(&model, &windows).memory(options.memory);
    let stop = Arc::new(AtomicBool::new(false));
    let options = ApplyOptions { interrupt: Some(Arc::clone(&stop)), ..options.clone() };
    let mut progress = |_: usize, _: usize, _: &str| stop.store(true, Ordering::Relaxed);
    let error = apply(source, plan, Some(&calibration), out, &options, &mut progress);
    assert!(matches!(error, Err(Error::Interrupted { .. })), "{error:?}");
}

#[test]
fn a_run_goes_on_only_with_factors_that_stand_as_they_were_written() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(&directory.path().join("source"), u64::MAX, DType::F32);
    let [whole, out] = ["whole", "out"].map(|name| directory.path().join(name));
    let options = ApplyOptions { resume: true, ..ApplyOptions::default() };
    compress(&source, &armor(), &whole, &options);
    let (model, windows) = (Network::new(), windows());
    let calibration = Calibration::new(&model, &windows);
    let plan = Plan::new(&source, &armor(), Some(&calibration)).unwrap();
    interrupt(&source, &plan, &out, &options);
    // A factor of the first block is damaged meanwhile.
    let path = HfWriter::partial(&out).unwrap().join(FACTORS);
    let mut bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.layers.0.mlp.up_proj.armor_a";
    let start = 8 + header + json[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    compress(&source, &armor(), &out, &options);
    assert!(files(&out) == files(&whole));
}

/// Replaces a factor, and with `forge` its digest in the manifest.
fn replace(out: &Path, name: &str, change: impl Fn(&mut [f32]), forge: bool) {
    let path = out.join(FACTORS);
    let file = Checkpoint::open(&path).unwrap();
    let spare = out.with_extension("spare");
    let options = WriterOptions { plan: file.tensors().to_vec(), ..WriterOptions::default() };
    let mut writer = HfWriter::create(&spare, options).unwrap();
    for info in file.tensors() {
        let mut bytes = file.read(&info.name).unwrap();
        if info.name == name {
            let mut values = file.read_f32(name).unwrap();
            change(&mut values);
            bytes = encode_f32(name, info.dtype, &values).unwrap();
        }
        writer.write_tensor(info, &bytes).unwrap();
    }
    writer.finish().unwrap();
    let old = tensor_digest(&file, name).unwrap();
    std::fs::rename(spare.join("model.safetensors"), &path).unwrap();
    std::fs::remove_dir(&spare).unwrap();
    if forge {
        let new = tensor_digest(&Checkpoint::open(&path).unwrap(), name).unwrap();
        let manifest = out.join("prune-manifest.json");
        let text = std::fs::read_to_string(&manifest).unwrap().replace(&old, &new);
        std::fs::write(&manifest, text).unwrap();
    }
}

#[test]
fn damaged_factors_are_named_also_when_the_manifest_is_forged() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(&directory.path().join("source"), u64::MAX, DType::BF16);
    let whole = directory.path().join("whole");
    compress(&source, &armor(), &whole, &ApplyOptions::default());
    let layer = "model.layers.0.mlp.up_proj";
    let (model, windows) = (Network::new(), windows());
    let calibration = Calibration::new(&model, &windows);
    let again = |out: &Path| {
        let memory = MemoryBudget::default();
        rederive(out, &source, Some(&calibration), memory, &mut |_, _, _| ()).unwrap()
    };
    assert!(again(&whole).ok);
    let out = directory.path().join("out");
    let named = |case: &str, name: &str, says: &str, change: &dyn Fn()| {
        std::fs::create_dir(&out).unwrap();
        for (name, bytes) in files(&whole) {
            std::fs::write(out.join(name), bytes).unwrap();
        }
        change();
        let found = verify(&out).unwrap().failures;
        assert_eq!(found.len(), 1, "{case}: {found:?}");
        assert_eq!(found[0].tensor, name, "{case}");
        assert!(found[0].reason.contains(says), "{case}: {}", found[0].reason);
        let derived = again(&out);
        assert!(!derived.ok, "{case} passes a derivation");
        std::fs::remove_dir_all(&out).unwrap();
    };
    let (a, core) = (format!("{layer}.armor_a"), format!("{layer}.armor_core"));
    named("a changed number", &a, "differs from what was written", &|| {
        replace(&out, &a, |v| v[0] *= 2.0, false);
    });
    named("a forged factor", &format!("{layer}.weight"), "is not the product", &|| {
        replace(&out, &a, |v| v[0] *= 2.0, true);
    });
    named("a core without its zeros", &core, "zeros", &|| {
        replace(&out, &core, |v| v[..4].fill(1.0), true);
    });
    named("zeros in other places", &core, "2:4", &|| {
        let swap = |v: &mut [f32]| {
            let kept = v[..4].iter().position(|x| *x != 0.0).unwrap();
            let free = 4 + v[4..8].iter().position(|x| *x == 0.0).unwrap();
            v.swap(kept, free);
        };
        replace(&out, &core, swap, true);
    });
    named("no factors", FACTORS, "missing", &|| std::fs::remove_file(out.join(FACTORS)).unwrap());
}

#[test]
fn a_fit_to_the_dense_model_is_closer_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(&directory.path().join("source"), u64::MAX, DType::F32);
    let (model, windows) = (Network::new(), windows());
    let outputs = |weights: &dyn TensorSource| -> Vec<Array2<f32>> {
        let of = |ids: &Vec<u32>| {
            let start = model.embed(weights, ids).unwrap();
            (0..BLOCKS).fold(start, |hidden, b| {
                model.load_block(weights, b).unwrap().forward(hidden.view()).unwrap()
            })
        };
        windows.windows().iter().map(of).collect()
    };
    let expected = outputs(&source);
    let error = |targets: Targets| -> f64 {
        let out = directory.path().join(format!("{targets:?}"));
        let recipe = Recipe::new("sparsegpt").pattern("2:4").targets(targets);
        compress(&source, &recipe, &out, &ApplyOptions::default());
        let found = outputs(&Checkpoint::open(&out).unwrap());
        let squares = |(a, b): (&Array2<f32>, &Array2<f32>)| {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
        };
        found.iter().zip(&expected).map(squares).sum()
    };
    let (own, dense) = (error(Targets::Own), error(Targets::Dense));
    assert!(dense < own, "{dense} fitted to the dense model, {own} without");
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = source(&directory.path().join("source"), u64::MAX, DType::F32);
    let (model, windows) = (Network::new(), windows());
    let calibration = Calibration::new(&model, &windows);
    let with = |method: &str, key: &str, value: &str| {
        Recipe::new(method).pattern("2:4").option(key, value)
    };
    for (recipe, says) in [
        (with("armor", "blok", "8"), "preset, block, iterations"),
        (with("armor", "preset", "quick"), "fast or paper"),
        (with("armor", "block", "6"), "a multiple of 4"),
        (with("wanda", "block", "8"), "`wanda` takes none"),
        (with("ria-permuted", "refinement", "half"), "number of parts"),
        (Recipe::new("armor").sparsity(0.5), "the core is N:M"),
        (Recipe::new("armor").pattern("2:4").scope("global"), "unstructured magnitude only"),
    ] {
        let error = Plan::new(&source, &recipe, Some(&calibration)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let recipe = Recipe::from_yaml(
        "rules: [{layers: '*', method: armor, pattern: '2:4', options: {block: 8, keep: last}}]",
    );
    let plan = Plan::new(&source, &recipe.unwrap(), Some(&calibration)).unwrap();
    let factors = plan.tensors[0].action.factors();
    assert_eq!(factors[0].shape, [2, 8, 8]);
}
