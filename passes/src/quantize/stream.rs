//! Calibration inputs through a module, some at a time: each worker evaluates inputs and keeps what it saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};

use vitc_ir::eval::{self, Tensor};
use vitc_ir::{Diagnostic, Diagnostics, Elem, Module, Op, TensorType, ValueId};

/// What one worker made: its state, how many inputs it saw, and the first it could not evaluate.
struct Share<S> {
    state: S,
    inputs: usize,
    fault: Option<(usize, Diagnostic)>,
}

/// Runs inputs through a module and shows every value to `see`, with the state of the worker at hand and the number of the
/// input; returns the states and how many inputs there were. Which worker sees which input is left to chance, so states must be merged alike in any order. `progress`
/// is told how many inputs are done. The first faulty input ends it with an error, and so does having none.
pub(crate) fn stream<S: Send>(
    module: &Module,
    inputs: impl Iterator<Item = Result<Vec<Tensor>, Diagnostic>>,
    threads: usize,
    (start, see): (impl Fn() -> S + Sync, impl Fn(&mut S, usize, ValueId, &Tensor) + Sync),
    progress: &mut dyn FnMut(usize),
) -> Result<(Vec<S>, usize), Diagnostics> {
    let threads = threads.max(1);
    let (send, receive) = mpsc::sync_channel::<(usize, Vec<Tensor>)>(threads);
    let receive = Arc::new(Mutex::new(receive));
    let (report, reports) = mpsc::channel::<()>();
    let mut done = 0;
    let (mut fault, mut stopped) = (None, false);
    let shares: Vec<Share<S>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let report = report.clone();
                let (receive, start, see) = (Arc::clone(&receive), &start, &see);
                scope.spawn(move || work(module, &receive, start(), see, &report))
            })
            .collect();
        drop((report, receive));
        for (i, input) in inputs.enumerate() {
            match input {
                Err(problem) => fault = Some((i, problem)),
                // Sending fails when no worker lives; joining them tells why.
                Ok(input) => stopped = send.send((i, input)).is_err(),
            }
            for () in reports.try_iter() {
                done += 1;
                progress(done);
            }
            if stopped || fault.is_some() {
                break;
            }
        }
        drop(send);
        for () in reports {
            done += 1;
            progress(done);
        }
        workers.into_iter().map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    collect(shares, fault)
}

fn collect<S>(shares: Vec<Share<S>>, fault: Option<(usize, Diagnostic)>) -> Result<(Vec<S>, usize), Diagnostics> {
    let (mut states, mut inputs) = (Vec::new(), 0);
    let mut faults: Vec<_> = fault.into_iter().collect();
    for share in shares {
        inputs += share.inputs;
        states.push(share.state);
        faults.extend(share.fault);
    }
    if let Some((_, first)) = faults.into_iter().min_by_key(|(i, _)| *i) {
        return Err(first.into());
    }
    if inputs == 0 {
        let message = "there are no inputs to calibrate with";
        return Err(Diagnostic::new("calibration", message).help("give some images like those of real use").into());
    }
    Ok((states, inputs))
}

fn work<S>(
    module: &Module,
    receive: &Mutex<mpsc::Receiver<(usize, Vec<Tensor>)>>,
    state: S,
    see: &impl Fn(&mut S, usize, ValueId, &Tensor),
    report: &mpsc::Sender<()>,
) -> Share<S> {
    let mut share = Share { state, inputs: 0, fault: None };
    loop {
        let next = receive.lock().map(|r| r.recv());
        let Ok(Ok((i, input))) = next else { return share };
        match eval::trace(module, &input, &mut |v, tensor| see(&mut share.state, i, v, tensor)) {
            Ok(_) => share.inputs += 1,
            Err(problem) if share.fault.as_ref().is_none_or(|(j, _)| i < *j) => share.fault = Some((i, problem)),
            Err(_) => {}
        }
        // The receiver of reports outlives the workers.
        report.send(()).ok();
    }
}

/// An input of the float graph as the quantized module wants it.
pub(crate) fn doors(quantized: &Module, input: &[Tensor]) -> Result<Vec<Tensor>, Diagnostic> {
    quantized.inputs.iter().zip(input).map(|(to, x)| door(x, quantized.ty(to.value))).collect()
}

fn door(x: &Tensor, ty: &TensorType) -> Result<Tensor, Diagnostic> {
    if x.elem() == ty.elem || x.elem() != Elem::F32 {
        return Ok(x.clone());
    }
    let float = TensorType::f32(ty.shape.clone());
    let op = Op::Quantize { to: ty.elem };
    eval::eval_op(&op, &[x], ty, &[&float], &BTreeMap::new()).map_err(|m| Diagnostic::new("internal", m))
}
