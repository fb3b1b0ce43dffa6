//! T27: once a batch size has been seen, running allocates nothing, on any thread.
//!
//! The count is that of the whole process, so this is a plain program without the test harness and its threads.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{CHANNELS, IMAGE, ROWS, expected, pixels, program};
use vitc_runtime::{Session, SessionOptions, TensorView, TensorViewMut};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are those that the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes and floats in, integers and floats out, for one batch size.
fn run_all_forms(session: &mut Session, batch: usize, bytes: &[u8], reals: &[f32], raw: &mut [i32], real: &mut [f32]) {
    let (input_dims, output_dims) = ([batch, ROWS, CHANNELS], [batch, CHANNELS]);
    let input = TensorView::of(&input_dims, bytes).unwrap();
    session.run_into(&[input], &mut [TensorViewMut::of(&output_dims, raw).unwrap()]).unwrap();
    let input = TensorView::of(&input_dims, reals).unwrap();
    session.run_into(&[input], &mut [TensorViewMut::of(&output_dims, real).unwrap()]).unwrap();
}

fn main() {
    let (bytes, reals) = (pixels(3), vec![0.5f32; 3 * IMAGE]);
    let (mut raw, mut real) = (vec![0i32; 3 * CHANNELS], vec![0f32; 3 * CHANNELS]);
    let expected = expected(&bytes);
    for threads in [1, 2, 5] {
        let mut session = Session::new(program(), SessionOptions { threads, ..Default::default() }).unwrap();
        session.profile(true);
        let mut round = |session: &mut Session| {
            for batch in [3, 1, 2, 1] {
                let (pixels, outputs) = (batch * IMAGE, batch * CHANNELS);
                let (raw, real) = (&mut raw[..outputs], &mut real[..outputs]);
                run_all_forms(session, batch, &bytes[..pixels], &reals[..pixels], raw, real);
            }
        };
        round(&mut session);
        let before = ALLOCATIONS.load(Ordering::SeqCst);
        for _ in 0..50 {
            round(&mut session);
        }
        let after = ALLOCATIONS.load(Ordering::SeqCst);
        assert_eq!(after - before, 0, "{threads} threads");
        assert_eq!(raw[..CHANNELS], expected[..CHANNELS]);
    }
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > 0, "the allocator counts");
    println!("T27: steady state allocates nothing ... ok");
}
