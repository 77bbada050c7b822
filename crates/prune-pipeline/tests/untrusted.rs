//! Damaged and hostile recipes, plans and manifests: an error or a run that keeps its promises,
//! never a panic, and no more memory than the text justifies. The functions under test are the
//! fuzz targets of `fuzz/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub, dead_code)]

#[path = "../../../fuzz/src/bounded.rs"]
mod bounded;
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../../fuzz/src/damage.rs"]
mod damage;
#[path = "../../../fuzz/src/damage_text.rs"]
mod damage_text;
#[path = "../../../fuzz/src/pipeline.rs"]
mod pipeline;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use damage::Edit;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

fn edits(most: usize) -> impl Strategy<Value = Vec<Edit>> {
    vec(any::<Edit>(), 0..most)
}

/// The seeds of every target, read once.
static SEEDS: LazyLock<BTreeMap<&str, Vec<Vec<u8>>>> = LazyLock::new(|| {
    let contents = |target| corpus::seeds(HERE, target).into_iter().map(|(_, bytes)| bytes);
    ["recipe", "plan", "manifest"].map(|target| (target, contents(target).collect())).into()
});

fn seed(target: &str, index: Index) -> Vec<u8> {
    index.get(&SEEDS[target]).clone()
}

/// Bits of YAML, put together at random.
fn yaml_soup() -> impl Strategy<Value = String> {
    let token = select(vec![
        "rules:",
        "\n",
        "\n  ",
        "\n    ",
        "- ",
        "layers: ",
        "'*'",
        "method: ",
        "wanda",
        "magnitude",
        "random",
        "sparsity: ",
        "0.5",
        ".nan",
        "-.inf",
        "1e400",
        "skip: ",
        "true",
        "pattern: ",
        "2:4",
        "'block 2x2'",
        "channels",
        "scope: ",
        "global",
        "row",
        "allocate: ",
        "erk",
        "seed: ",
        "18446744073709551615",
        "version: 1",
        "dtype: ",
        "BF16",
        "&a ",
        "*a",
        "<<: ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "? ",
        ": ",
        "!!str ",
        "!!binary ",
        "| ",
        "> ",
        "'",
        "\"",
        "#",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "\t",
        "\u{85}",
        "\u{feff}",
        "'re:",
        "(a{9}){9}",
        "[[:alpha:]]",
        "{a,b}",
        "re:(?:",
        "\\pL",
        "~",
        "0x10",
        "null",
    ]);
    vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

/// Patterns over layer names, most of them valid.
fn layer_pattern() -> impl Strategy<Value = String> {
    let token = select(vec![
        "*",
        "**",
        "?",
        "[a-z]",
        "[!a]",
        "{a,b}",
        "{",
        "}",
        ",",
        "[",
        "]",
        "\\",
        "model.layers.0.",
        "mlp",
        "up_proj",
        "re:",
        "(",
        ")",
        "|",
        ".*",
        "\\.",
        "{1000}",
        "{2,}",
        "+",
        "^",
        "$",
        "\\pL",
        "\\b",
        "(?i)",
        "(?P<n>a)",
        "é",
    ]);
    vec(token, 0..12).prop_map(|tokens| tokens.concat())
}

fn scalar() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        any::<f64>().prop_map(serde_json::Value::from),
        (0.0..1.0f64).prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        select(vec![
            "wanda",
            "magnitude",
            "random",
            "unstructured",
            "2:4",
            "15:16",
            "0:1",
            "block 2x2",
            "block 18446744073709551615x1",
            "block 0x1",
            "channels",
            "row",
            "layer",
            "global",
            "uniform",
            "er",
            "erk",
            "owl",
            "F16",
            "BF16",
            "I8",
            "",
        ])
        .prop_map(serde_json::Value::from),
    ]
}

/// Recipes of the right form, as JSON, with any values.
fn any_recipe() -> impl Strategy<Value = String> {
    let fields = select(vec!["sparsity", "pattern", "scope", "allocate", "skip", "method"]);
    let rule = (layer_pattern(), prop::bool::ANY, vec((fields, scalar()), 0..5));
    let rule = rule.prop_map(|(pattern, all, fields)| {
        let mut rule = serde_json::json!({"method": "magnitude", "sparsity": 0.5});
        rule["layers"] = if all { "*".into() } else { pattern.into() };
        for (field, value) in fields {
            rule[field] = value;
        }
        rule
    });
    (vec(rule, 0..4), prop::option::of(scalar()), any::<u64>()).prop_map(|(rules, dtype, seed)| {
        serde_json::json!({"seed": seed, "dtype": dtype, "rules": rules}).to_string()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_refused_or_read(text in "\\PC{0,200}", soup in yaml_soup()) {
        for text in [text, soup] {
            pipeline::recipe(text.as_bytes());
            pipeline::plan(text.as_bytes());
            pipeline::manifest(text.as_bytes());
        }
    }

    #[test]
    fn recipes_with_any_values_are_refused_or_planned(recipe in any_recipe(), bytes in edits(2)) {
        pipeline::recipe(&damage::bytes(recipe.into_bytes(), &bytes));
    }

    #[test]
    fn damaged_recipes_are_refused_or_planned(
        index in any::<Index>(),
        lines in edits(4),
        bytes in edits(2),
    ) {
        let text = String::from_utf8(seed("recipe", index)).unwrap();
        let text = damage_text::lines(&text, &lines);
        pipeline::recipe(&damage::bytes(text.into_bytes(), &bytes));
    }

    #[test]
    fn damaged_plans_are_refused_or_carried_out(
        index in any::<Index>(),
        values in edits(3),
        bytes in edits(2),
    ) {
        let plan = damage_text::json(&seed("plan", index), &values);
        pipeline::plan(&damage::bytes(plan, &bytes));
    }

    #[test]
    fn damaged_manifests_are_refused_or_verified(
        index in any::<Index>(),
        values in edits(3),
        bytes in edits(2),
    ) {
        let manifest = damage_text::json(&seed("manifest", index), &values);
        pipeline::manifest(&damage::bytes(manifest, &bytes));
    }
}

#[test]
fn every_seed_is_accepted_or_refused_as_its_name_says() {
    corpus::check(HERE, "recipe", pipeline::recipe);
    corpus::check(HERE, "plan", pipeline::plan);
    corpus::check(HERE, "manifest", pipeline::manifest);
}

#[test]
#[ignore = "writes the seed corpus"]
fn write_seeds() {
    let write = |target: &str, name: &str, bytes: &[u8]| corpus::write(HERE, target, name, bytes);
    for (name, recipe) in [
        ("valid-one-rule", "rules:\n  - layers: '*'\n    method: magnitude\n    sparsity: 0.5\n"),
        (
            "valid-three-rules",
            "version: 1\nseed: 7\ndtype: BF16\nrules:\n- layers: '*'\n  method: random\n  \
             sparsity: 0.3\n  scope: layer\n  allocate: erk\n- layers: 're:.*\\.down_proj$'\n  \
             method: magnitude\n  pattern: '2:4'\n- layers: model.layers.1.*\n  skip: true\n",
        ),
        (
            "valid-json",
            r#"{"rules": [{"layers": "*{up,down}*", "method": "magnitude", "pattern": "block 2x2", "sparsity": 0.5}]}"#,
        ),
        (
            "valid-global",
            "rules:\n- {layers: '*', method: magnitude, scope: global, sparsity: 0.9}",
        ),
        ("hostile-not-a-number", "rules:\n- {layers: '*', method: magnitude, sparsity: .nan}"),
        (
            "hostile-block",
            "rules:\n- {layers: '*', method: magnitude, sparsity: 0.5, pattern: block 18446744073709551615x2}",
        ),
        (
            "hostile-repetition",
            "rules:\n- {layers: 're:((((a{99}){99}){99}){99}){99}', method: magnitude, sparsity: 0.5}",
        ),
    ] {
        write("recipe", name, recipe.as_bytes());
    }
    write("recipe", "hostile-nested", format!("rules: {}", "[".repeat(5_000)).as_bytes());
    let laughs: String =
        (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", format!("*a{},", i - 1).repeat(9))).collect();
    write("recipe", "hostile-laughs", format!("a0: &a0 x\n{laughs}rules: *a29\n").as_bytes());
    write(
        "recipe",
        "hostile-classes",
        format!(
            "rules:\n- {{layers: 're:{}', method: magnitude, sparsity: 0.5}}",
            "\\pL".repeat(1_000)
        )
        .as_bytes(),
    );
    pipeline::write_seeds(write);
}
