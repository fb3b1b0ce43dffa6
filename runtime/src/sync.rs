//! Waiting that spins briefly and then parks, without allocating.

use std::hint;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// A counter that threads wait on until it moves.
///
/// Whoever sees the counter move also sees everything that was written before [`Epoch::advance`].
#[repr(align(128))]
#[derive(Debug)]
pub(crate) struct Epoch {
    value: AtomicU32,
    sleepers: AtomicU32,
    spins: u32,
    gate: Mutex<()>,
    moved: Condvar,
}

impl Epoch {
    pub(crate) fn new(spins: u32) -> Self {
        Self {
            value: AtomicU32::new(0),
            sleepers: AtomicU32::new(0),
            spins,
            gate: Mutex::new(()),
            moved: Condvar::new(),
        }
    }

    /// The counter now.
    pub(crate) fn now(&self) -> u32 {
        self.value.load(Ordering::SeqCst)
    }

    /// Moves the counter and wakes everyone who sleeps on it.
    ///
    /// `value` and `sleepers` are sequentially consistent: either the sleeper sees the new value before it sleeps, or
    /// this sees the sleeper. Passing the gate makes sure that the sleeper is inside `wait` when it is notified.
    pub(crate) fn advance(&self) {
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
            self.moved.notify_all();
        }
    }

    /// Waits until the counter is no longer `seen` and returns it.
    pub(crate) fn wait_past(&self, seen: u32) -> u32 {
        for _ in 0..self.spins {
            let now = self.value.load(Ordering::Acquire);
            if now != seen {
                return now;
            }
            hint::spin_loop();
        }
        self.sleep_past(seen)
    }

    fn sleep_past(&self, seen: u32) -> u32 {
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        while self.now() == seen {
            gate = self.moved.wait(gate).unwrap_or_else(PoisonError::into_inner);
        }
        drop(gate);
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.now()
    }
}

/// A point that no thread passes before all have reached it; reusable.
#[derive(Debug)]
pub(crate) struct Barrier {
    arrived: AtomicUsize,
    phase: Epoch,
    threads: usize,
}

impl Barrier {
    pub(crate) fn new(threads: usize, spins: u32) -> Self {
        Self { arrived: AtomicUsize::new(0), phase: Epoch::new(spins), threads }
    }

    /// Waits for the others. The phase cannot move between reading it and arriving, since it takes this arrival.
    pub(crate) fn wait(&self) {
        let phase = self.phase.now();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Relaxed);
            self.phase.advance();
        } else {
            self.phase.wait_past(phase);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn rounds_stay_together(threads: usize, spins: u32) {
        let barrier = Arc::new(Barrier::new(threads, spins));
        let count = Arc::new(AtomicUsize::new(0));
        let run = |barrier: &Barrier, count: &AtomicUsize| {
            for round in 1..=500 {
                count.fetch_add(1, Ordering::Relaxed);
                barrier.wait();
                assert_eq!(count.load(Ordering::Relaxed), round * threads);
                barrier.wait();
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| run(&barrier, &count));
            }
        });
    }

    #[test]
    fn the_barrier_holds_while_spinning_and_while_sleeping() {
        for threads in [1, 2, 5] {
            for spins in [0, 1, 200] {
                rounds_stay_together(threads, spins);
            }
        }
    }
}
