//! What is refused, what is left alone, and what was launched.

use half::bf16;
use tessera_cuda::{
    Device, MAX_TOKENS, Moe, MoeChoice, MoeError, MoeKernel, MoeLaunched, MoeShape, MoeWeights, MoeWorkspace, Swiglu,
};

use super::layer::{Layer, Routing, Signs, shape};
use super::reference::down;
use super::rig::{CHOICES, Rig, error};
use crate::gpu::gpu;

const SHAPE: MoeShape = MoeShape { hidden: 96, intermediate: 64, experts: 8, top_k: 4 };
const SWIGLU: Swiglu = Swiglu { limit: 7.0, alpha: 1.702 };

fn rig() -> Option<Rig> {
    Some(Rig::new(gpu()?, Layer::random(SHAPE, Signs::Both)))
}

#[test]
fn an_id_of_no_expert_is_an_error_before_anything_runs() {
    let Some(rig) = rig() else { return };
    let inputs = rig.layer.inputs(3, Signs::Both);
    let x = rig.buffer(&inputs.x, 96, bf16::NAN);
    let mut workspace = rig.workspace(3);
    let mut out = rig.buffer(&[bf16::ONE; 3 * 96], 96, bf16::ONE);
    for id in [8, 9, 255, i32::MAX] {
        let mut ids = [0, 1, 2, 7, 3, -1, 2, 1, 0, 4, 5, 6];
        ids[6] = id;
        let error = rig.moe.route_to(&rig.stream, &ids, &[0.25; 12], &x, 3, &mut workspace).unwrap_err();
        assert_eq!(error, MoeError::ExpertId { token: 1, rank: 2, id, experts: 8 });
        for kernel in MoeKernel::ALL {
            assert_eq!(rig.moe.gate_up(&rig.stream, &rig.weights, kernel, &mut workspace), Ok(None));
            assert_eq!(rig.moe.down(&rig.stream, &rig.weights, kernel, &mut workspace), Ok(None));
        }
        rig.moe.combine(&rig.stream, &workspace, &mut out).unwrap();
    }
    let mut found = [bf16::ZERO; 3 * 96];
    rig.stream.download(&out, 0, &mut found).unwrap();
    assert_eq!(found, [bf16::ONE; 3 * 96]);
    assert_eq!(
        MoeError::ExpertId { token: 1, rank: 2, id: 8, experts: 8 }.to_string(),
        "token 1, choice 2: expert 8, expected one below 8, or a negative id for none"
    );
}

#[test]
fn wrong_lengths_are_errors() {
    let Some(rig) = rig() else { return };
    let mut workspace = rig.workspace(3);
    let x = rig.device.alloc::<bf16>(3 * 96).unwrap();
    let mut route_to = |ids: &[i32], weights: &[f32], x, n| {
        rig.moe.route_to(&rig.stream, ids, weights, x, n, &mut workspace).unwrap_err()
    };
    let length = |what, expected, found| MoeError::Length { what, expected, found };
    assert_eq!(route_to(&[0; 11], &[0.0; 12], &x, 3), length("ids", 12, 11));
    assert_eq!(route_to(&[0; 12], &[0.0; 13], &x, 3), length("weights of choices", 12, 13));
    assert_eq!(route_to(&[0; 16], &[0.0; 16], &x, 4), MoeError::TooManyTokens { limit: 3, found: 4 });
    assert_eq!(route_to(&[], &[], &x, usize::MAX), MoeError::TooManyTokens { limit: 3, found: usize::MAX });
    let short = rig.device.alloc::<bf16>(3 * 96 - 1).unwrap();
    let too_short = |what, expected, found| MoeError::TooShort { what, expected, found };
    assert_eq!(route_to(&[0; 12], &[0.0; 12], &short, 3), too_short("x", 288, 287));
    let mut forward = |logits: usize, x, out: usize, n| {
        let (logits, mut out) = (rig.device.alloc(logits).unwrap(), rig.device.alloc(out).unwrap());
        let choice = MoeChoice::Auto;
        rig.moe.forward(&rig.stream, &rig.weights, &logits, x, n, choice, &mut workspace, &mut out).unwrap_err()
    };
    assert_eq!(forward(23, &x, 288, 3), too_short("logits", 24, 23));
    assert_eq!(forward(24, &short, 288, 3), too_short("x", 288, 287));
    assert_eq!(forward(24, &x, 287, 3), too_short("out", 288, 287));
    assert_eq!(forward(24, &x, 288, usize::MAX), MoeError::TooManyTokens { limit: 3, found: usize::MAX });
}

#[test]
fn experts_of_other_sizes_are_errors() {
    let Some(rig) = rig() else { return };
    let other = shape(96, 96, 8, 4);
    let mut workspace = MoeWorkspace::new(&rig.device, other, 3).unwrap();
    let x = rig.device.alloc(3 * 96).unwrap();
    let error = rig.moe.route_to(&rig.stream, &[0; 4], &[1.0; 4], &x, 1, &mut workspace).unwrap_err();
    assert_eq!(error, MoeError::Mismatch { what: "buffers of the workspace", expected: SHAPE, found: other });
    let moe = Moe::load(&rig.device, other, SWIGLU).unwrap();
    let error = moe.gate_up(&rig.stream, &rig.weights, MoeKernel::Mid, &mut workspace).unwrap_err();
    assert_eq!(error, MoeError::Mismatch { what: "weights", expected: other, found: SHAPE });
    let none = shape(96, 64, 8, 0);
    let expect = "experts' top_k is 0: expected 1 to 8";
    assert_eq!(Moe::load(&rig.device, none, SWIGLU).err().unwrap().to_string(), expect);
    assert_eq!(MoeWorkspace::new(&rig.device, none, 1).err().unwrap().to_string(), expect);
    let error = MoeWorkspace::new(&rig.device, SHAPE, MAX_TOKENS + 1).err().unwrap();
    assert_eq!(error.to_string(), "experts' workspace is 65537: expected at most 65536 tokens");
}

fn upload(device: &Device, layer: &Layer) -> MoeError {
    let stream = device.stream().unwrap();
    MoeWeights::upload(device, &stream, SHAPE, &layer.gate_up.view(), &layer.down.view()).err().unwrap()
}

#[test]
fn malformed_weights_are_errors() {
    let Some(device) = gpu() else { return };
    let random = || Layer::random(SHAPE, Signs::Both);
    let length = |what, expected, found| MoeError::Length { what, expected, found };
    let mut layer = random();
    layer.down.bias.pop();
    assert_eq!(upload(&device, &layer), length("bias of down", 768, 767));
    let mut layer = random();
    layer.gate_up.blocks.push(0);
    assert_eq!(upload(&device, &layer), length("blocks of gate_up", 8 * 128 * 48, 8 * 128 * 48 + 1));
    let mut layer = random();
    layer.gate_up.cols = 64;
    assert_eq!(upload(&device, &layer), length("columns of gate_up", 96, 64));
    let mut layer = random();
    layer.down.scales[5] = 255;
    assert_eq!(upload(&device, &layer).to_string(), "down: row 2, block 1: scale byte 255 is NaN");
    let mut layer = random();
    (layer.gate_up.scales[2], layer.gate_up.scales[3]) = (100, 254);
    assert!(matches!(upload(&device, &layer), MoeError::Pack { what: "gate_up", .. }));
}

#[test]
fn without_tokens_nothing_happens() {
    let Some(rig) = rig() else { return };
    let mut workspace = rig.workspace(3);
    let (logits, x) = (rig.device.alloc(0).unwrap(), rig.device.alloc(0).unwrap());
    let mut out = rig.buffer(&[], 96, bf16::ONE);
    rig.run_in(&mut workspace, &rig.layer.inputs(3, Signs::Both), MoeChoice::Auto);
    for choice in CHOICES {
        let (stream, weights) = (&rig.stream, &rig.weights);
        let launched = rig.moe.forward(stream, weights, &logits, &x, 0, choice, &mut workspace, &mut out);
        assert_eq!(launched, Ok(None));
    }
    rig.moe.route_to(&rig.stream, &[], &[], &x, 0, &mut workspace).unwrap();
    rig.moe.combine(&rig.stream, &workspace, &mut out).unwrap();
    assert_eq!(workspace.ids(&rig.stream), Ok(vec![]));
    assert_eq!(workspace.counts(&rig.stream), Ok(vec![0; 8]));
    assert_eq!((workspace.h(&rig.stream), workspace.y(&rig.stream)), (Ok(vec![]), Ok(vec![])));
    let mut found = vec![bf16::ZERO; out.len()];
    rig.stream.download(&out, 0, &mut found).unwrap();
    assert!(found.iter().all(|value| *value == bf16::ONE));
    assert!(MoeWorkspace::new(&rig.device, SHAPE, 0).is_ok());
}

#[test]
fn the_kernel_that_was_asked_for_runs() {
    let Some(rig) = rig() else { return };
    // Few tokens are routed in the products themselves.
    let names = |kernel, n_tokens| match kernel {
        MoeKernel::Stream if n_tokens <= 8 => MoeLaunched { gate_up: "moe_gate_up_few", down: "moe_down_few" },
        MoeKernel::Stream if n_tokens <= 16 => MoeLaunched { gate_up: "moe_gate_up_routed", down: "moe_down_routed" },
        MoeKernel::Stream => MoeLaunched { gate_up: "moe_gate_up_stream", down: "moe_down_stream" },
        MoeKernel::Mid => MoeLaunched { gate_up: "moe_gate_up_mid", down: "moe_down_mid" },
        MoeKernel::Prefill => MoeLaunched { gate_up: "moe_gate_up_prefill", down: "moe_down_prefill" },
    };
    let launched = |n_tokens, choice| rig.run(&rig.layer.inputs(n_tokens, Signs::Both), choice).launched;
    for (kernel, n_tokens) in MoeKernel::ALL.into_iter().flat_map(|kernel| [(kernel, 1), (kernel, 9), (kernel, 17)]) {
        assert_eq!(launched(n_tokens, MoeChoice::Fixed(kernel)), Some(names(kernel, n_tokens)));
    }
    let mut seen = Vec::new();
    for n_tokens in [1, 8, 16, 24, 25, 48, 49, 64, 80, 81, 128, 129, 500] {
        let kernel = MoeKernel::auto(n_tokens * SHAPE.top_k, SHAPE.experts);
        assert_eq!(launched(n_tokens, MoeChoice::Auto), Some(names(kernel, n_tokens)), "{n_tokens} tokens");
        seen.push(kernel);
    }
    seen.dedup();
    assert_eq!(seen, MoeKernel::ALL, "more tokens go to a later kernel, and each has its turn");
}

#[test]
fn values_put_in_a_stages_place_are_what_the_next_one_reads() {
    let Some(device) = gpu() else { return };
    let rig = Rig::new(device, Layer::random(shape(96, 160, 6, 4), Signs::Both));
    let inputs = rig.layer.inputs(11, Signs::Both).with_ids(4, |slot| slot as i32 % 7 - 1);
    let Routing::Given { ids, weights } = &inputs.routing else { unreachable!() };
    let mut workspace = rig.workspace(11);
    let x = rig.buffer(&inputs.x, 96, bf16::NAN);
    rig.moe.route_to(&rig.stream, ids, weights, &x, 11, &mut workspace).unwrap();
    let values = |n: usize| (0..n).map(|i| (i % 97) as f32 - 48.0).collect::<Vec<_>>();

    let h = values(11 * 4 * 160);
    workspace.set_h(&rig.stream, &h).unwrap();
    let kept = |found: Vec<f32>, width: usize| {
        let is_kept = |(i, &found): (usize, &f32)| ids[i / width] < 0 || found == (i % 97) as f32 - 48.0;
        assert!(found.iter().enumerate().all(is_kept));
    };
    kept(workspace.h(&rig.stream).unwrap(), 160);
    rig.moe.down(&rig.stream, &rig.weights, MoeKernel::Stream, &mut workspace).unwrap();
    let h: Vec<f64> = h.into_iter().map(f64::from).collect();
    let y: Vec<f64> = workspace.y(&rig.stream).unwrap().into_iter().map(f64::from).collect();
    assert!(error(&y, &down(&rig.layer, &h, ids)) < 1e-5);

    workspace.set_y(&rig.stream, &values(11 * 4 * 96)).unwrap();
    kept(workspace.y(&rig.stream).unwrap(), 96);
    assert!(matches!(workspace.set_y(&rig.stream, &[0.0]), Err(MoeError::Length { .. })));
}
