//! PreCrop against reference densities and widths, and its laws.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use approx::assert_abs_diff_eq;
use proptest::collection::vec;
use proptest::prelude::*;
use prune_allocate::{
    ChannelNetwork, Erk, LayerCost, Limits, PreCrop, Residual, Widths, log_syn_exp, mobilenet_v2,
    resnet20, vgg16,
};
use prune_core::{Budget, Error, LayerInfo, LayerKind, ScoredLayer, Seed};

/// Six 3x3 convolutions in a row and a classifier.
fn chain() -> ChannelNetwork {
    let mut net = ChannelNetwork::new();
    let mut x = net.input(3).unwrap();
    for (l, (channels, side)) in
        [(16, 32), (16, 32), (32, 16), (32, 16), (64, 8), (64, 8)].into_iter().enumerate()
    {
        x = net.conv(&format!("conv{l}"), x, channels, 3, side * side).unwrap();
    }
    let x = net.linear("fc", x, 10, 1).unwrap();
    net.output(x);
    net
}

const PARAMS: f64 = 72_496.0;
const FLOPS: f64 = 9_880_192.0;

fn limits(params: Option<f64>, flops: Option<f64>) -> Limits {
    Limits { params: params.map(|p| p * PARAMS), flops: flops.map(|f| f * FLOPS) }
}

fn close(got: &[f64], want: &[f64], epsilon: f64) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert_abs_diff_eq!(*g, *w, epsilon = epsilon);
    }
}

fn params(costs: &[LayerCost], p: &[f64]) -> f64 {
    costs.iter().zip(p).map(|(c, p)| c.params as f64 * p).sum()
}

fn flops(costs: &[LayerCost], p: &[f64]) -> f64 {
    costs.iter().zip(p).map(|(c, p)| c.flops as f64 * p).sum()
}

fn objective(p: &[f64]) -> f64 {
    p.iter().map(|p| p.ln()).sum()
}

#[test]
fn costs_of_the_chain_match_the_reference() {
    let costs = chain().layer_costs();
    let a: Vec<u64> = costs.iter().map(|c| c.params).collect();
    let b: Vec<u64> = costs.iter().map(|c| c.flops).collect();
    assert_eq!(a, [432, 2304, 4608, 9216, 18432, 36864, 640]);
    assert_eq!(b, [442368, 2359296, 1179648, 2359296, 1179648, 2359296, 640]);
}

#[test]
fn densities_within_parameters_match_the_reference() {
    let costs = chain().layer_costs();
    let at = |p: f64| PreCrop::default().densities(&costs, &limits(Some(p), None)).unwrap();
    let tenth = at(0.1);
    close(&tenth, &[1.0, 0.53625, 0.268125, 0.134062, 0.067031, 0.033516, 1.0], 1e-6);
    assert_abs_diff_eq!(objective(&tenth), -10.047246, epsilon = 1e-6);
    assert_abs_diff_eq!(flops(&costs, &tenth) / FLOPS, 0.252922, epsilon = 1e-6);
    // Every layer that is not full keeps the same number of weights.
    assert_abs_diff_eq!(tenth[5] * 36864.0, 1235.52, epsilon = 1e-6);
    let third = at(0.3);
    close(&third, &[1.0, 1.0, 0.996788, 0.498394, 0.249197, 0.124599, 1.0], 1e-6);
    assert_abs_diff_eq!(objective(&third), -4.171751, epsilon = 1e-6);
    assert_abs_diff_eq!(7.0 * 0.3f64.ln(), -8.427810, epsilon = 1e-6);
    assert_abs_diff_eq!(flops(&costs, &third) / FLOPS, 0.581158, epsilon = 1e-6);
    let half = at(0.5);
    close(&half, &[1.0, 1.0, 1.0, 1.0, 0.516710, 0.258355, 1.0], 1e-6);
    assert_abs_diff_eq!(objective(&half), -2.013694, epsilon = 1e-6);
    close(&at(0.8), &[1.0, 1.0, 1.0, 1.0, 1.0, 0.606684, 1.0], 1e-6);
    close(&at(1.0), &[1.0; 7], 1e-12);
    close(&at(2.0), &[1.0; 7], 1e-12);
}

#[test]
fn densities_within_flops_and_within_both_match_the_reference() {
    let costs = chain().layer_costs();
    let at = |p, f| PreCrop::default().densities(&costs, &limits(p, f)).unwrap();
    let third = at(None, Some(0.3));
    close(&third, &[1.0, 0.213712, 0.427424, 0.213712, 0.427424, 0.213712, 1.0], 1e-6);
    assert_abs_diff_eq!(params(&costs, &third) / PARAMS, 0.293259, epsilon = 1e-6);
    close(
        &at(None, Some(0.5)),
        &[1.0, 0.381223, 0.762446, 0.381223, 0.762446, 0.381223, 1.0],
        1e-6,
    );
    close(
        &at(Some(0.5), Some(0.5)),
        &[1.0, 0.393936, 0.776786, 0.388393, 0.735393, 0.367696, 1.0],
        1e-6,
    );
    close(
        &at(Some(0.3), Some(0.5)),
        &[1.0, 0.760715, 0.842733, 0.421367, 0.302666, 0.151333, 1.0],
        1e-6,
    );
    // Where both bind, every layer that is not full pays λ a + μ b for one share of the number of
    // such layers.
    let both = at(Some(0.5), Some(0.5));
    let price = |l: usize| (costs[l].params as f64, costs[l].flops as f64, 1.0 / both[l]);
    let ((a, b, x), (c, d, y)) = (price(1), price(2));
    let (lambda, mu) = ((x * d - y * b) / (a * d - b * c), (a * y - c * x) / (a * d - b * c));
    let free = 1..6;
    for l in free.clone() {
        let (params, flops, inverse) = price(l);
        assert_abs_diff_eq!(lambda * params + mu * flops, inverse, epsilon = 1e-6);
    }
    let spent = |of: fn(&LayerCost) -> u64, share: f64, all: f64| {
        share * all - of(&costs[0]) as f64 - of(&costs[6]) as f64
    };
    let (params_left, flops_left) =
        (spent(|c| c.params, 0.5, PARAMS), spent(|c| c.flops, 0.5, FLOPS));
    let shares = lambda * params_left + mu * flops_left;
    assert_abs_diff_eq!(shares, free.len() as f64, epsilon = 1e-6);
    // Parameters are slack.
    close(&at(Some(0.8), Some(0.3)), &third, 1e-12);
}

#[test]
fn preconfig_densities_match_the_reference() {
    let costs = chain().layer_costs();
    let free = PreCrop::widening(f64::INFINITY).unwrap();
    let full = free.densities(&costs, &limits(Some(1.0), Some(1.0))).unwrap();
    let want = [5.006172, 0.938657, 1.487494, 0.743747, 0.812575, 0.406288, 38.292414];
    close(&full, &want, 2e-6);
    // 1 / p = λ · params + μ · flops, and λ A + μ F is the number of layers.
    let (lambda, mu) = (4.039232e-5, 4.121093e-7);
    for (c, p) in costs.iter().zip(&full) {
        let price = lambda * c.params as f64 + mu * c.flops as f64;
        assert_abs_diff_eq!(1.0 / p, price, epsilon = 1e-6);
    }
    assert_abs_diff_eq!(lambda * PARAMS + mu * FLOPS, 7.0, epsilon = 1e-5);
    // Under one limit all layers get the same number of parameters.
    let one = free.densities(&costs, &limits(Some(1.0), None)).unwrap();
    for (c, p) in costs.iter().zip(&one) {
        assert_abs_diff_eq!(c.params as f64 * p, PARAMS / 7.0, epsilon = 1e-6);
    }
    let tight = free.densities(&costs, &limits(Some(0.8), Some(1.0))).unwrap();
    let want = [5.575181, 1.045346, 1.444423, 0.722211, 0.645849, 0.322924, 25.092919];
    close(&tight, &want, 2e-6);
    let capped = PreCrop::widening(2.0).unwrap();
    let capped = capped.densities(&costs, &limits(Some(1.0), Some(1.0))).unwrap();
    assert!(capped[0] == 2.0 && capped[6] == 2.0 && capped.iter().all(|p| *p <= 2.0));
}

#[test]
fn widths_of_the_chain_match_the_reference() {
    let net = chain();
    for (share, widths, cost) in
        [(0.5, [16, 16, 32, 30, 30, 43], 36_124), (0.3, [16, 16, 32, 18, 18, 36], 21_636)]
    {
        let got = Widths::default().of(&net, &limits(Some(share), None)).unwrap();
        assert_eq!(got[0], 3);
        assert_eq!(got[1..7], widths);
        assert_eq!(got[7], 10);
        assert_eq!(net.cost(&got).params, cost);
    }
}

#[test]
fn synaptic_expectation_matches_the_reference_and_any_granularity() {
    let (sizes, p) = ([5, 7, 6, 4], [0.6, 0.4, 0.8]);
    let want = log_syn_exp(&sizes[..3], &p, 4).unwrap().exp();
    assert_abs_diff_eq!(want, 15.989543, epsilon = 1e-6);
    assert!(log_syn_exp(&sizes, &p, 4).is_err());
    assert!(log_syn_exp(&[5, 0, 6], &p, 4).is_err());
    // The mean of synaptic flow over drawn weights, with single weights, whole rows and whole
    // columns masked.
    #[derive(Clone, Copy, PartialEq)]
    enum Masked {
        Weights,
        Rows,
        Columns,
    }
    let mut stream = Seed::new(1).stream("syn exp");
    let mut moments = |masked: Masked| {
        const DRAWS: usize = 20_000;
        let (mut sum, mut squares) = (0.0, 0.0);
        for _ in 0..DRAWS {
            let mut flow = vec![1.0; sizes[0]];
            for l in 0..3 {
                let deviation = (2.0 / sizes[l] as f64).sqrt();
                let columns: Vec<bool> = flow.iter().map(|_| stream.uniform() < p[l]).collect();
                let mut output = || {
                    let row = stream.uniform() < p[l];
                    let term = |(x, column): (&f64, &bool)| {
                        let (u, v) = (1.0 - stream.uniform(), stream.uniform());
                        let g = (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos();
                        let kept = match masked {
                            Masked::Weights => stream.uniform() < p[l],
                            Masked::Rows => row,
                            Masked::Columns => *column,
                        };
                        if kept { x * (g * deviation).abs() } else { 0.0 }
                    };
                    flow.iter().zip(&columns).map(term).sum()
                };
                flow = (0..sizes[l + 1]).map(|_| output()).collect();
            }
            let r: f64 = flow.iter().sum();
            sum += r;
            squares += r * r;
        }
        let mean = sum / DRAWS as f64;
        (mean, (squares / DRAWS as f64 - mean * mean) / DRAWS as f64)
    };
    let all = [Masked::Weights, Masked::Rows, Masked::Columns].map(&mut moments);
    for (mean, variance) in all {
        assert!((mean - want).abs() < 4.0 * variance.sqrt(), "{mean} for {want}");
    }
    // The mean is the same for any granularity; the variance is not.
    assert!(all[1].1 > 1.5 * all[0].1 && all[2].1 > 1.5 * all[0].1, "{all:?}");
}

fn networks() -> [(&'static str, ChannelNetwork); 3] {
    [
        ("resnet20", resnet20(10).unwrap()),
        ("vgg16", vgg16(10).unwrap()),
        ("mobilenet_v2", mobilenet_v2(1000).unwrap()),
    ]
}

#[test]
fn shapes_count_what_the_published_networks_count() {
    let [(_, resnet), (_, vgg), (_, mobile)] = networks();
    let cost = |net: &ChannelNetwork| net.cost(&net.full_widths());
    // 22 weights with 1x1 shortcuts; the convolutions of torchvision's vgg16; its mobilenet_v2, of
    // 3,504,872 parameters, without the 34,112 of norms and the 1,000 biases.
    assert_eq!((cost(&resnet).params, resnet.layer_costs().len()), (270_896, 22));
    assert_eq!(cost(&vgg).params, 14_710_464 + 5_120);
    assert_eq!(cost(&mobile).params, 3_469_760);
    assert_eq!(cost(&mobile).flops, 300_774_272);
}

#[test]
fn cropped_networks_are_within_one_step_of_every_limit() {
    for (name, net) in networks() {
        let full = net.full_widths();
        let dense = net.cost(&full);
        for residual in [Residual::Crop, Residual::Keep] {
            for share in [0.5, 0.3] {
                for (params, flops) in [(true, false), (false, true), (true, true)] {
                    let limits = Limits {
                        params: params.then_some(share * dense.params as f64),
                        flops: flops.then_some(share * dense.flops as f64),
                    };
                    let within = |widths: &[usize]| {
                        let cost = net.cost(widths);
                        (!params || cost.params as f64 <= share * dense.params as f64)
                            && (!flops || cost.flops as f64 <= share * dense.flops as f64)
                    };
                    let widths = Widths::default().with_residual(residual);
                    let widths = widths.of(&net, &limits).unwrap();
                    assert!(within(&widths), "{name}");
                    // One channel more of any cropped set is too much.
                    for set in 0..widths.len() {
                        let mut wider = widths.clone();
                        wider[set] += 1;
                        if wider[set] <= full[set] && net.cost(&wider) != net.cost(&widths) {
                            assert!(!within(&wider), "{name}, set {set}");
                        }
                        assert!((1..=full[set]).contains(&widths[set]));
                    }
                    // Layer shapes fit one another and count what the cost says.
                    let layers = net.layers(&widths);
                    let count: usize = layers.iter().map(LayerInfo::numel).sum();
                    assert_eq!(count as u64, net.cost(&widths).params);
                }
            }
        }
    }
}

#[test]
fn skip_connections_and_ends_keep_one_width() {
    let net = resnet20(10).unwrap();
    let limits = Limits { params: Some(100_000.0), flops: None };
    let shape = |layers: &[LayerInfo], name: &str| {
        layers.iter().find(|l| l.id.as_str() == name).unwrap().shape.clone()
    };
    let widths = Widths::default().of(&net, &limits).unwrap();
    let layers = net.layers(&widths);
    for stage in 1..=3 {
        let outer = shape(&layers, &format!("layer{stage}.0.conv2"))[0];
        for block in 1..3 {
            assert_eq!(shape(&layers, &format!("layer{stage}.{block}.conv1"))[1], outer);
            assert_eq!(shape(&layers, &format!("layer{stage}.{block}.conv2"))[0], outer);
        }
        if stage > 1 {
            assert_eq!(shape(&layers, &format!("layer{stage}.0.shortcut"))[0], outer);
        }
    }
    assert!(shape(&layers, "layer3.0.conv2")[0] < 64);
    assert_eq!(shape(&layers, "conv1")[1..], [3, 3, 3]);
    assert_eq!(shape(&layers, "fc")[0], 10);
    let keep = Widths::default().with_residual(Residual::Keep);
    let layers = net.layers(&keep.of(&net, &limits).unwrap());
    for (stage, width) in [(1, 16), (2, 32), (3, 64)] {
        assert_eq!(shape(&layers, &format!("layer{stage}.2.conv2"))[0], width);
    }
    assert!(shape(&layers, "layer3.1.conv1")[0] < 64);
}

#[test]
fn widths_may_be_multiples_and_may_grow() {
    let net = mobilenet_v2(1000).unwrap();
    let dense = net.cost(&net.full_widths());
    let half = Limits { params: Some(0.5 * dense.params as f64), flops: None };
    let eights = Widths::default().with_multiple(8).unwrap().of(&net, &half).unwrap();
    assert!(net.cost(&eights).params <= dense.params / 2);
    let full = net.full_widths();
    assert!(eights.iter().zip(&full).all(|(w, f)| w % 8 == 0 || w == f));
    assert!(Widths::default().with_multiple(0).is_err());

    let both = Limits { params: Some(dense.params as f64), flops: Some(dense.flops as f64) };
    let free = [PreCrop::widening(4.0).unwrap(), PreCrop::widening(f64::INFINITY).unwrap()];
    for precrop in free {
        let widths = Widths::new(precrop).of(&net, &both).unwrap();
        let cost = net.cost(&widths);
        assert!(cost.params <= dense.params && cost.flops <= dense.flops);
        assert!(widths.iter().zip(&full).any(|(w, f)| w > f));
    }
}

#[test]
fn what_has_no_solution_is_refused() {
    assert!(PreCrop::widening(0.5).is_err() && PreCrop::widening(f64::NAN).is_err());
    let costs = chain().layer_costs();
    let of = |limits| PreCrop::default().densities(&costs, &limits);
    assert!(of(Limits::default()).is_err());
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(of(Limits { params: Some(bad), flops: None }).is_err());
    }
    let empty = [LayerCost { params: 0, flops: 3 }];
    let e = PreCrop::default().densities(&empty, &limits(Some(0.5), None)).unwrap_err();
    assert!(e.to_string().contains("layer 0"), "{e}");
    let e = Widths::default().of(&chain(), &limits(Some(0.001), None)).unwrap_err();
    assert!(matches!(e, Error::Infeasible(_)), "{e}");
    let mut net = ChannelNetwork::new();
    let a = net.input(3).unwrap();
    let b = net.conv("a", a, 4, 3, 1).unwrap();
    assert!(matches!(net.add(a, b), Err(Error::Shape { .. })));
    assert!(net.conv("b", b, 0, 3, 1).is_err() && net.input(0).is_err());
}

fn arb_costs() -> impl Strategy<Value = Vec<LayerCost>> {
    let cost = (1u64..100_000, 1u64..1000)
        .prop_map(|(params, places)| LayerCost { params, flops: params * places });
    vec(cost, 1..15)
}

proptest! {
    #[test]
    fn limits_are_tight_and_densities_beat_uniform_and_erk(
        costs in arb_costs(), a in 0.05f64..1.0, b in 0.05f64..1.0,
    ) {
        let (all_params, all_flops) = (params(&costs, &vec![1.0; costs.len()]),
            flops(&costs, &vec![1.0; costs.len()]));
        let solve = |a: Option<f64>, b: Option<f64>| {
            let limits = Limits {
                params: a.map(|a| a * all_params),
                flops: b.map(|b| b * all_flops),
            };
            PreCrop::default().densities(&costs, &limits).unwrap()
        };
        let one = solve(Some(a), None);
        prop_assert!((params(&costs, &one) / (a * all_params) - 1.0).abs() < 1e-9);
        let uniform = objective(&vec![a; costs.len()]);
        prop_assert!(objective(&one) >= uniform - 1e-9);
        for i in 0..costs.len() {
            prop_assert!(one[i] > 0.0 && one[i] <= 1.0);
            for j in 0..costs.len() {
                // Larger layers are sparser, and never keep fewer weights.
                if costs[i].params >= costs[j].params {
                    prop_assert!(one[i] <= one[j] + 1e-12);
                    let kept = |l: usize| one[l] * costs[l].params as f64;
                    prop_assert!(kept(i) >= kept(j) - 1e-9 * all_params);
                }
            }
        }
        let both = solve(Some(a), Some(b));
        let used_params = params(&costs, &both) / (a * all_params);
        let used_flops = flops(&costs, &both) / (b * all_flops);
        prop_assert!(used_params < 1.0 + 1e-9 && used_flops < 1.0 + 1e-9);
        prop_assert!(used_params.max(used_flops) > 1.0 - 1e-9);
        prop_assert!(objective(&both) <= objective(&one) + 1e-9);
        // More budget is never worse for a layer under one limit.
        let more = solve(Some((a * 1.1).min(1.0)), None);
        prop_assert!(more.iter().zip(&one).all(|(m, o)| *m >= o - 1e-12));
        let mut reversed = costs.clone();
        reversed.reverse();
        let limits = Limits { params: Some(a * all_params), flops: None };
        let back = PreCrop::default().densities(&reversed, &limits).unwrap();
        for (f, b) in one.iter().zip(back.iter().rev()) {
            prop_assert!((f - b).abs() < 1e-12);
        }
    }

    #[test]
    fn densities_beat_erk_on_networks_of_convolutions(
        channels in vec(1usize..100, 2..8), density in 0.05f64..1.0,
    ) {
        let layers: Vec<ScoredLayer> = channels
            .windows(2)
            .enumerate()
            .map(|(l, w)| {
                let shape = vec![w[1], w[0], 3, 3];
                LayerInfo::from_name(&format!("c{l}"), LayerKind::Conv2d, shape).into()
            })
            .collect();
        let budget = Budget::sparsity(1.0 - density).unwrap().with_min_keep(0);
        let erk = Erk.densities(&layers, &budget).unwrap();
        let costs: Vec<LayerCost> = layers
            .iter()
            .map(|l| LayerCost { params: l.info.numel() as u64, flops: 1 })
            .collect();
        let total = params(&costs, &vec![1.0; costs.len()]);
        let limits = Limits { params: Some(density * total), flops: None };
        let p = PreCrop::default().densities(&costs, &limits).unwrap();
        prop_assert!(objective(&p) >= objective(&erk) - 1e-9);
    }
}
