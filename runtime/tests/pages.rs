//! T25 and T26: no page is ever writable and executable; creating, running and dropping leaves no memory and no thread.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use common::{CHANNELS, IMAGE, ROWS, checked, parts, step, tensor};
use vitc_runtime::{
    Buffer, CodeMemory, Elem, MappedRegion, OutputForm, OutputSpec, ProgramParts, Session, SessionOptions, TensorView,
};

/// mov rax, [rdi]; mov byte [rax], 42; ret
const WRITE_42: [u8; 7] = [0x48, 0x8b, 0x07, 0xc6, 0x00, 0x2a, 0xc3];

/// The tests look at the whole process, so only one may run at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Mapping {
    start: usize,
    end: usize,
    rights: String,
    anonymous: bool,
}

fn mappings() -> Vec<Mapping> {
    fs::read_to_string("/proc/self/maps").unwrap().lines().map(mapping).collect()
}

/// `start-end rights offset device inode [name]`
fn mapping(line: &str) -> Mapping {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (start, end) = fields[0].split_once('-').unwrap();
    let address = |text| usize::from_str_radix(text, 16).unwrap();
    Mapping {
        start: address(start),
        end: address(end),
        rights: fields[1].to_owned(),
        anonymous: fields[4] == "0" && fields.len() == 5,
    }
}

/// Rights of the page at `address`, after checking that no page of the process is writable and executable.
fn rights(address: usize) -> Option<String> {
    let mappings = mappings();
    assert!(mappings.iter().all(|map| !(map.rights.contains('w') && map.rights.contains('x'))));
    mappings.into_iter().find(|map| (map.start..map.end).contains(&address)).map(|map| map.rights)
}

fn anonymous_code_bytes() -> usize {
    let code = mappings().into_iter().filter(|map| map.anonymous && map.rights.contains('x'));
    code.map(|map| map.end - map.start).sum()
}

fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn thread_count() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// The system may list a thread for a moment after it has been joined.
fn settles(condition: impl Fn() -> bool) -> bool {
    (0..200).any(|_| {
        let met = condition();
        if !met {
            std::thread::sleep(Duration::from_millis(10));
        }
        met
    })
}

#[test]
fn t25_no_page_is_ever_writable_and_executable() {
    let _alone = alone();
    for cycle in 0..1000 {
        let mut region = MappedRegion::new_writable(1 + cycle * 16).unwrap();
        let address = region.as_ptr() as usize;
        assert_eq!(rights(address).as_deref(), Some("rw-p"));
        region.as_bytes_mut().unwrap()[0] = 0xc3;
        region.make_executable().unwrap();
        assert_eq!(rights(address).as_deref(), Some("r-xp"));
        region.make_readonly().unwrap();
        assert_eq!(rights(address).as_deref(), Some("r--p"));
        drop(region);
        assert_eq!(anonymous_code_bytes(), 0);

        let code = CodeMemory::new(&WRITE_42).unwrap();
        assert_eq!(rights(code.entry(0).unwrap() as usize).as_deref(), Some("r-xp"));
    }
}

/// A program whose machine code lives in memory of its own and writes 42 to its output.
fn machine_program() -> ProgramParts {
    let code = CodeMemory::new(&WRITE_42).unwrap();
    // SAFETY: `WRITE_42` is a kernel that writes one byte through its first argument.
    let kernel = unsafe { code.kernel(0) }.unwrap();
    let mut parts = parts(4);
    let output = OutputSpec { spec: tensor("answer", Elem::U8, &[0, 1]), scale: vec![], zero_point: 0 };
    parts.outputs.push(output);
    parts.steps.push(step(kernel, "write_42", vec![Buffer::Output(1)], 1, 1));
    parts.arena_bytes_per_image += 1 << 20;
    parts.code = Arc::new(code);
    parts
}

fn create_run_drop() {
    let options = SessionOptions { threads: 3, ..SessionOptions::default() };
    let mut session = Session::new(checked(machine_program()), options).unwrap();
    let pixels = vec![1u8; 2 * IMAGE];
    for batch in [1, 2] {
        let dims = [batch, ROWS, CHANNELS];
        let input = TensorView::of(&dims, &pixels[..batch * IMAGE]).unwrap();
        let outputs = session.run(&[input], OutputForm::Raw).unwrap();
        assert_eq!(outputs[1].bytes()[0], 42);
    }
}

#[test]
fn t26_create_run_drop_leaves_nothing_behind() {
    let _alone = alone();
    (0..20).for_each(|_| create_run_drop());
    let (count, resident, threads) = (mappings().len(), resident_bytes(), thread_count());
    (0..200).for_each(|_| create_run_drop());
    assert_eq!(anonymous_code_bytes(), 0);
    assert!(settles(|| thread_count() <= threads), "workers outlive their session");
    let (count_after, resident_after) = (mappings().len(), resident_bytes());
    assert!(count_after <= count + 4, "{count} mappings became {count_after}");
    assert!(resident_after <= resident + (1 << 20), "{resident} resident bytes became {resident_after}");
}
