//! Cases of normalisations.

use super::case::{Case, case};
use super::common::{float, int};

pub fn normalisation() -> Vec<Case> {
    let x = vec![1.0, 3.0, 2.0, 6.0];
    let normal = vec![-1.0, 1.0, -1.0, 1.0];
    let image =
        |op, operands, y: Vec<f32>| case(op, operands, (&[1, 2, 1, 2], vec![1.0, 3.0, 2.0, 6.0]), (&[1, 2, 1, 2], y));
    let quarter = (-1.0f32).exp() / (1.0 + (-1.0f32).exp());
    vec![
        case("LayerNormalization", "x g b", (&[2, 2], x.clone()), (&[2, 2], vec![0.0, 3.0, 0.0, 3.0]))
            .floats("g", &[2], &[1.0, 2.0])
            .floats("b", &[2], &[1.0, 1.0])
            .attr(float("epsilon", 0.0)),
        case("LayerNormalization", "x g", (&[2, 1, 2], x.clone()), (&[2, 1, 2], normal.clone()))
            .floats("g", &[1, 2], &[1.0, 1.0])
            .attr(float("epsilon", 0.0))
            .attr(int("axis", 1)),
        case("Softmax", "x", (&[1, 2], vec![2.0, 3.0]), (&[1, 2], vec![quarter, 1.0 - quarter])),
        case("Softmax", "x", (&[2, 1], vec![2.0, 3.0]), (&[2, 1], vec![quarter, 1.0 - quarter])).attr(int("axis", 0)),
        case("LogSoftmax", "x", (&[1, 2], vec![2.0, 3.0]), (&[1, 2], vec![quarter.ln(), (1.0 - quarter).ln()])),
        // a weight that 32 bits do not hold
        case("LogSoftmax", "x", (&[1, 2], vec![0.0, -200.0]), (&[1, 2], vec![0.0, -200.0])),
        image("BatchNormalization", "x s b m v", vec![-2.0, 2.0, 0.0, 2.0])
            .floats("s", &[2], &[2.0, 1.0])
            .floats("b", &[2], &[0.0, 1.0])
            .floats("m", &[2], &[1.0, 2.0])
            .floats("v", &[2], &[4.0, 4.0])
            .attr(int("training_mode", 1))
            .attr(float("epsilon", 0.0)),
        image("BatchNormalization", "x s b m v", vec![0.0, 2.0, 1.0, 3.0])
            .floats("s", &[2], &[2.0, 1.0])
            .floats("b", &[2], &[0.0, 1.0])
            .floats("m", &[2], &[1.0, 2.0])
            .floats("v", &[2], &[4.0, 4.0])
            .attr(float("epsilon", 0.0)),
        image("InstanceNormalization", "x s b", vec![-1.0, 1.0, -1.0, 3.0])
            .floats("s", &[2], &[1.0, 2.0])
            .floats("b", &[2], &[0.0, 1.0])
            .attr(float("epsilon", 0.0)),
        image("GroupNormalization", "x s b", vec![-1.0, 1.0, -1.0, 3.0])
            .opset(21)
            .floats("s", &[2], &[1.0, 2.0])
            .floats("b", &[2], &[0.0, 1.0])
            .attr(float("epsilon", 0.0))
            .attr(int("num_groups", 2)),
    ]
}
