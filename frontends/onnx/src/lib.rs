//! Lifts ONNX models into the vitc graph IR.
