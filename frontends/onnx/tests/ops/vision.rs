//! Cases of ops that are written out as several others at import.

use super::case::{Case, case, seq};
use super::common::{float, float_list, floats, int, int_list, word};

type Flat = (&'static [usize], Vec<f32>);

pub fn activations() -> Vec<Case> {
    let signed = |op, y: [f32; 4]| case(op, "x", (&[1, 4], vec![-4.0, -1.0, 0.5, 4.0]), (&[1, 4], y.to_vec()));
    vec![
        signed("Celu", [-1.729_329_4, -0.786_938_7, 0.5, 4.0]).attr(float("alpha", 2.0)),
        signed("Selu", [-1.725_898_6, -1.111_330_7, 0.525_350_5, 4.202_804]),
        signed("Softsign", [-0.8, -0.5, 1.0 / 3.0, 0.8]),
        signed("Swish", [-0.071_944_8, -0.268_941_4, 0.311_229_7, 3.928_055_2]).opset(24),
        signed("Swish", [-0.001_341_4, -0.119_202_9, 0.365_529_3, 3.998_658_6]).opset(24).attr(float("alpha", 2.0)),
        signed("ThresholdedRelu", [0.0, 0.0, 0.0, 4.0]).attr(float("alpha", 0.5)),
        signed("PRelu", [-1.0, -0.5, 0.5, 4.0]).operands("x s").floats("s", &[4], &[0.25, 0.5, 1.0, 1.0]),
        signed("Clip", [-2.0, -1.0, 0.5, 3.0]).opset(10).attr(float("min", -2.0)).attr(float("max", 3.0)),
    ]
}

pub fn images() -> Vec<Case> {
    let image = |op, operands, y: Flat| case(op, operands, (&[1, 1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]), y);
    let line = |op, operands, y: Flat| case(op, operands, (&[1, 1, 4], vec![1.0, 2.0, 4.0, 8.0]), y);
    let twice = |mode| {
        line("Resize", "x - s", (&[1, 1, 8], vec![])).floats("s", &[3], &[1.0, 1.0, 2.0]).attr(word("mode", mode))
    };
    let with = |case: Case, y: [f32; 8]| case.result((&[1, 1, 8], y.to_vec()));
    let to_four = |case: Case| case.ints("z", &[4], &[1, 1, 4, 2]);
    vec![
        with(twice("nearest"), [1., 1., 2., 2., 4., 4., 8., 8.]),
        with(twice("nearest"), [1., 1., 2., 2., 4., 4., 8., 8.])
            .attr(word("coordinate_transformation_mode", "asymmetric"))
            .attr(word("nearest_mode", "floor")),
        with(twice("linear"), [1., 1.25, 1.75, 2.5, 3.5, 5., 7., 8.]),
        with(twice("linear"), [1., 1.428_571_4, 1.857_142_8, 2.571_428_5, 3.428_571_4, 4.571_428_5, 6.285_714, 8.])
            .attr(word("coordinate_transformation_mode", "align_corners")),
        // a = 0 leaves a cubic between neighbours: 3 t^2 - 2 t^3
        with(twice("cubic"), [1., 1.156_25, 1.843_75, 2.3125, 3.6875, 4.625, 7.375, 8.])
            .attr(float("cubic_coeff_a", 0.0)),
        line("Resize", "x - - z", (&[1, 1, 2], vec![1.5, 6.0]))
            .ints("z", &[3], &[1, 1, 2])
            .attr(word("mode", "linear")),
        line("Resize", "x - - z", (&[1, 1, 2], vec![1.75, 5.75]))
            .ints("z", &[1], &[2])
            .attr(word("mode", "linear"))
            .attr(int("antialias", 1))
            .attr(int_list("axes", &[2])),
        line("Resize", "x - - z", (&[1, 1, 2], vec![1.857_142_9, 5.428_571]))
            .ints("z", &[3], &[1, 1, 2])
            .attr(word("mode", "linear"))
            .attr(int("antialias", 1))
            .attr(int("exclude_outside", 1)),
        to_four(image("Resize", "x - - z", (&[1, 1, 4, 2], vec![1., 2., 1., 2., 3., 4., 3., 4.]))),
        to_four(image("Resize", "x - - z", (&[1, 1, 4, 2], vec![1., 2., 1.5, 2.5, 2.5, 3.5, 3., 4.])))
            .attr(word("mode", "linear"))
            .attr(word("coordinate_transformation_mode", "pytorch_half_pixel")),
        image("Resize", "x s", (&[1, 1, 2, 4], vec![1., 1., 2., 2., 3., 3., 4., 4.])).opset(10).floats(
            "s",
            &[4],
            &[1.0, 1.0, 1.0, 2.0],
        ),
        image("Upsample", "x s", (&[1, 1, 2, 4], vec![1., 1., 2., 2., 3., 3., 4., 4.])).opset(9).floats(
            "s",
            &[4],
            &[1.0, 1.0, 1.0, 2.0],
        ),
        image("Upsample", "x", (&[1, 1, 4, 2], vec![1., 2., 1., 2., 3., 4., 3., 4.]))
            .opset(7)
            .attr(float_list("scales", &[1.0, 1.0, 2.0, 1.0])),
        image("Pad", "x p", (&[1, 1, 2, 4], vec![1., 1., 2., 2., 3., 3., 4., 4.]))
            .ints("p", &[8], &[0, 0, 0, 1, 0, 0, 0, 1])
            .attr(word("mode", "edge")),
        line("Pad", "x p", (&[1, 1, 7], vec![4., 2., 1., 2., 4., 8., 4.]))
            .ints("p", &[6], &[0, 0, 2, 0, 0, 1])
            .attr(word("mode", "reflect")),
        line("Pad", "x p", (&[1, 1, 6], vec![8., 1., 2., 4., 8., 1.]))
            .ints("p", &[6], &[0, 0, 1, 0, 0, 1])
            .attr(word("mode", "wrap")),
        line("Pad", "x", (&[1, 1, 5], vec![1., 2., 4., 8., 9.]))
            .opset(10)
            .attr(int_list("pads", &[0, 0, 0, 0, 0, 1]))
            .attr(float("value", 9.0)),
        case("ConvTranspose", "x w", (&[1, 1, 2], vec![1.0, 10.0]), (&[1, 1, 5], vec![1., 2., 13., 20., 30.]))
            .floats("w", &[1, 1, 3], &[1.0, 2.0, 3.0])
            .attr(int_list("strides", &[2])),
        image("ConvTranspose", "x w b", (&[1, 1, 2, 2], vec![6.0, 7.0, 8.0, 9.0]))
            .floats("w", &[1, 1, 3, 3], &[0., 0., 0., 0., 1., 0., 0., 0., 0.])
            .floats("b", &[1], &[5.0])
            .attr(int_list("pads", &[1, 1, 1, 1])),
    ]
}

pub fn pools() -> Vec<Case> {
    let plane = |op, y: Flat| case(op, "x", (&[1, 1, 3, 3], seq(9)), y).attr(int_list("kernel_shape", &[2, 2]));
    let strided = |op, y| plane(op, y).attr(int_list("strides", &[2, 2]));
    let endless = |op, y| {
        let case = case(op, "x", (&[1, 1, 2, 4], seq(8)), (&[1, 1, 1, 1], vec![y]));
        case.attr(int_list("kernel_shape", &[900, 900]))
            .attr(int_list("strides", &[900, 900]))
            .attr(int("ceil_mode", 1))
    };
    vec![
        plane("MaxPool", (&[1, 1, 2, 2], vec![4., 5., 7., 8.])),
        strided("MaxPool", (&[1, 1, 2, 2], vec![4., 5., 7., 8.])).attr(int("ceil_mode", 1)),
        strided("MaxPool", (&[1, 1, 2, 2], vec![0., 2., 6., 8.])).attr(int_list("pads", &[1, 1, 0, 0])),
        // all that lies in the padding is less than -4
        case("MaxPool", "x", (&[1, 1, 2], vec![-5.0, -4.0]), (&[1, 1, 2], vec![-5.0, -4.0]))
            .attr(int_list("kernel_shape", &[3]))
            .attr(int_list("strides", &[2]))
            .attr(int_list("pads", &[2, 1])),
        strided("AveragePool", (&[1, 1, 2, 2], vec![0.0, 1.5, 4.5, 6.0])).attr(int_list("pads", &[1, 1, 0, 0])),
        strided("AveragePool", (&[1, 1, 2, 2], vec![0.0, 0.75, 2.25, 6.0]))
            .attr(int_list("pads", &[1, 1, 0, 0]))
            .attr(int("count_include_pad", 1)),
        strided("AveragePool", (&[1, 1, 2, 2], vec![2.0, 3.5, 6.5, 8.0])).attr(int("ceil_mode", 1)),
        // wider than the image, as transformers' EfficientNet has it: all of the image
        endless("AveragePool", 3.5),
        endless("MaxPool", 7.0),
        case("AveragePool", "x", (&[1, 1, 1, 2, 4], seq(8)), (&[1, 1, 1, 1, 2], vec![2.5, 4.5]))
            .attr(int_list("kernel_shape", &[1, 2, 2]))
            .attr(int_list("strides", &[1, 2, 2])),
    ]
}

pub fn products() -> Vec<Case> {
    let square = |equation: &str, operands, y: Flat| {
        case("Einsum", operands, (&[2, 2], vec![1.0, 2.0, 3.0, 4.0]), y)
            .opset(13)
            .floats("b", &[2, 2], &[1.0, 0.0, 1.0, 1.0])
            .attr(word("equation", equation))
    };
    let heads = |y: [f32; 2]| case("Attention", "x x x", (&[1, 1, 2, 1], vec![0.0, 1.0]), (&[1, 1, 2, 1], y.to_vec()));
    vec![
        square("ij,jk->ik", "x b", (&[2, 2], vec![3.0, 2.0, 7.0, 4.0])),
        square("ij,kj->ik", "x b", (&[2, 2], vec![1.0, 3.0, 3.0, 7.0])),
        square("...j,...j", "x b", (&[2], vec![1.0, 7.0])),
        square("ij,ij,ij->i", "x b x", (&[2], vec![1.0, 25.0])),
        square("ii", "x", (&[], vec![5.0])),
        square("ij->ji", "x", (&[2, 2], vec![1.0, 3.0, 2.0, 4.0])),
        square(
            "ij,kl->ljki",
            "x b",
            (&[2, 2, 2, 2], vec![1., 3., 1., 3., 2., 4., 2., 4., 0., 0., 1., 3., 0., 0., 2., 4.]),
        ),
        heads([0.5, 0.731_058_6]).opset(23),
        heads([0.0, 0.731_058_6]).opset(23).attr(int("is_causal", 1)),
        heads([0.5, 0.880_797]).opset(23).attr(float("scale", 2.0)),
        case(
            "Attention",
            "x x x",
            (&[1, 2, 2], vec![0., 0., 1., 1.]),
            (&[1, 2, 2], vec![0.5, 0.5, 0.731_058_6, 0.731_058_6]),
        )
        .opset(23)
        .attr(int("q_num_heads", 2))
        .attr(int("kv_num_heads", 2)),
        heads([0.5, 0.5]).opset(23).operands("x x x m").floats("m", &[2, 2], &[0.0, 0.0, 1.0, 0.0]),
    ]
}

pub fn rotations() -> Vec<Case> {
    // a quarter turn for the second of two tokens
    let turned = |x: Flat, y: Vec<f32>| {
        let shape = x.0;
        case("RotaryEmbedding", "x c s i", x, (shape, y))
            .opset(23)
            .floats("c", &[3, 1], &[1.0, 9.0, 0.0])
            .floats("s", &[3, 1], &[0.0, 9.0, 1.0])
            .ints("i", &[1, 2], &[0, 2])
    };
    vec![
        turned((&[1, 1, 2, 2], vec![1., 2., 3., 4.]), vec![1., 2., -4., 3.]),
        turned((&[1, 1, 2, 3], vec![1., 2., 5., 3., 4., 6.]), vec![1., 2., 5., -4., 3., 6.])
            .attr(int("rotary_embedding_dim", 2))
            .attr(int("interleaved", 1)),
        turned((&[1, 2, 2], vec![1., 2., 3., 4.]), vec![1., 2., -4., 3.]).attr(int("num_heads", 1)),
        case("RotaryEmbedding", "x c s", (&[1, 1, 1, 4], vec![1., 2., 3., 4.]), (&[1, 1, 1, 4], vec![-3., 2., 1., 4.]))
            .opset(23)
            .floats("c", &[1, 1, 2], &[0.0, 1.0])
            .floats("s", &[1, 1, 2], &[1.0, 0.0]),
        case("RotaryEmbedding", "x c s", (&[1, 1, 1, 4], vec![1., 2., 3., 4.]), (&[1, 1, 1, 4], vec![-2., 1., 3., 4.]))
            .opset(23)
            .floats("c", &[1, 1, 2], &[0.0, 1.0])
            .floats("s", &[1, 1, 2], &[1.0, 0.0])
            .attr(int("interleaved", 1)),
    ]
}

pub fn sums() -> Vec<Case> {
    let r = |op, y: [f32; 2]| {
        case(op, "x a", (&[2, 2], vec![-3.0, 4.0, 6.0, 8.0]), (&[2], y.to_vec()))
            .ints("a", &[1], &[-1])
            .attr(int("keepdims", 0))
    };
    let m = |op, operands, y: Flat| case(op, operands, (&[2, 3], seq(6)), y);
    vec![
        r("ReduceL1", [7.0, 14.0]),
        r("ReduceLogSum", [0.0, 2.639_057_3]),
        r("ReduceLogSumExp", [4.000_911, 8.126_928]),
        r("ReduceProd", [-12.0, 48.0]),
        case("ReduceProd", "x", (&[5], vec![1., 2., 3., 4., 5.]), (&[1], vec![120.0])),
        m("CumSum", "x a", (&[2, 3], vec![0., 1., 3., 3., 7., 12.])).ints("a", &[], &[1]),
        m("CumSum", "x a", (&[2, 3], vec![3., 4., 5., 0., 0., 0.]))
            .ints("a", &[], &[0])
            .attr(int("exclusive", 1))
            .attr(int("reverse", 1)),
        m("GatherElements", "x i", (&[2, 2], vec![2., 0., 4., 4.]))
            .ints("i", &[2, 2], &[2, 0, -2, 1])
            .attr(int("axis", 1)),
        m("GatherND", "x i", (&[2], vec![2., 3.])).ints("i", &[2, 2], &[0, 2, 1, 0]),
        m("GatherND", "x i", (&[1, 3], vec![3., 4., 5.])).ints("i", &[1, 1], &[-1]),
        m("GatherND", "x i", (&[2], vec![1., 5.])).ints("i", &[2, 1], &[1, 2]).attr(int("batch_dims", 1)),
        m("Trilu", "x", (&[2, 3], vec![0., 1., 2., 0., 4., 5.])),
        m("Slice", "x", (&[2, 1], vec![1., 4.]))
            .opset(9)
            .attr(int_list("axes", &[1]))
            .attr(int_list("starts", &[1]))
            .attr(int_list("ends", &[-1])),
    ]
}

pub fn norms() -> Vec<Case> {
    let (third, most) = (1.0 / 3.0f32, 2.0 / 3.0f32);
    let ln2 = std::f32::consts::LN_2;
    vec![
        case("RMSNormalization", "x g", (&[2, 2], vec![1., 7., 0., 5.]), (&[2, 2], vec![0.2, 2.8, 0.0, 2.828_427]))
            .opset(23)
            .floats("g", &[2], &[1.0, 2.0])
            .attr(float("epsilon", 0.0)),
        case("SimplifiedLayerNormalization", "x g", (&[1, 2], vec![1., 7.]), (&[1, 2], vec![0.2, 2.8]))
            .floats("g", &[2], &[1.0, 2.0])
            .attr(float("epsilon", 0.0)),
        case("LpNormalization", "x", (&[1, 2], vec![3.0, 4.0]), (&[1, 2], vec![0.6, 0.8])),
        case("LpNormalization", "x", (&[2, 1], vec![-3.0, 1.0]), (&[2, 1], vec![-0.75, 0.25]))
            .attr(int("p", 1))
            .attr(int("axis", 0)),
        case("LayerNormalization", "x g", (&[1, 2, 2], vec![1., 3., 1., 3.]), (&[1, 2, 2], vec![-2., 2., -2., 2.]))
            .floats("g", &[1], &[2.0])
            .attr(float("epsilon", 0.0))
            .attr(int("axis", 1)),
        // before opset 13 all dimensions from the axis on are one
        case(
            "Softmax",
            "x",
            (&[1, 2, 2], vec![0., 0., ln2, ln2]),
            (&[1, 2, 2], vec![third / 2., third / 2., most / 2., most / 2.]),
        )
        .opset(11),
        case("Softmax", "x", (&[1, 1, 2], vec![0., ln2]), (&[1, 1, 2], vec![third, most]))
            .opset(11)
            .attr(int("axis", -1)),
    ]
}

/// A constant in half a word: 1.0, -2.0, 0.5.
pub fn halves(name: &str, brain: bool) -> onnx_protobuf::TensorProto {
    let bits = if brain { [0x3f80u16, 0xc000, 0x3f00] } else { [0x3c00, 0xc000, 0x3800] };
    let raw_data = bits.iter().flat_map(|h| h.to_le_bytes()).collect();
    onnx_protobuf::TensorProto { data_type: if brain { 16 } else { 10 }, raw_data, ..floats(name, &[3], &[]) }
}
