//! Work on several threads, its results in order.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

/// `work(i, report)` for every `i` below `count`; `progress` is told how often `report` was called by then.
pub fn parallel<R: Send>(
    count: usize,
    threads: usize,
    work: impl Fn(usize, &dyn Fn()) -> R + Sync,
    progress: &mut dyn FnMut(usize),
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let (report, reports) = mpsc::channel::<()>();
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.clamp(1, count.max(1)))
            .map(|_| {
                let (report, next, work) = (report.clone(), &next, &work);
                let take = move || {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    // the receiver outlives the workers
                    let report = || report.send(()).unwrap_or_default();
                    (i < count).then(|| (i, work(i, &report)))
                };
                scope.spawn(move || std::iter::from_fn(take).collect::<Vec<_>>())
            })
            .collect();
        drop(report);
        for (done, ()) in (1..).zip(reports) {
            progress(done);
        }
        workers.into_iter().flat_map(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    results.sort_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_and_every_report_is_counted() {
        for threads in [1, 3, 50] {
            let mut seen = 0;
            let work = |i: usize, report: &dyn Fn()| {
                report();
                i * i
            };
            let results = parallel(20, threads, work, &mut |done| seen = done);
            assert_eq!((results, seen), ((0..20).map(|i| i * i).collect::<Vec<_>>(), 20));
        }
        assert!(parallel(0, 2, |i, _| i, &mut |_| {}).is_empty());
    }
}
