//! T25, T26: compiling, running and dropping a real program leaves no memory behind, and no page is ever writable and
//! executable. One test, for it looks at the whole process.
#![cfg(target_os = "linux")]

use std::fs;

use vitc_ir::eval::Tensor;
use vitc_tests::{bundled, executed, plan_input, program};

const CYCLES: usize = 60;

struct Mapped {
    count: usize,
    executable_bytes: usize,
}

/// What the process has mapped, after checking that nothing is writable and executable.
fn mapped() -> Mapped {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut mapped = Mapped { count: 0, executable_bytes: 0 };
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        assert!(!(rights.contains('w') && rights.contains('x')), "writable and executable: {line}");
        mapped.count += 1;
        if rights.contains('x') {
            let (start, end) = range.split_once('-').unwrap();
            let address = |text| usize::from_str_radix(text, 16).unwrap();
            mapped.executable_bytes += address(end) - address(start);
        }
    }
    mapped
}

fn resident_bytes() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn cycle(plan: &vitc_ir::Module, input: &Tensor) -> Vec<i64> {
    let program = program(plan).unwrap();
    let result = executed(&program, input, 2).unwrap();
    mapped();
    result
}

#[test]
fn t26_compile_run_drop_leaves_nothing_behind() {
    let sample = bundled();
    let plan = sample.compiler(4).compile_file(&sample.model).unwrap().module;
    let input = plan_input(&plan, &sample.pixels(1).unwrap(), 1).unwrap();
    let first = cycle(&plan, &input);
    (0..5).for_each(|_| drop(cycle(&plan, &input)));
    let (before, resident) = (mapped(), resident_bytes());
    for _ in 0..CYCLES {
        assert!(cycle(&plan, &input) == first);
    }
    let (after, resident_after) = (mapped(), resident_bytes());
    assert_eq!(after.executable_bytes, before.executable_bytes, "machine code outlives its program");
    assert!(after.count <= before.count + 6, "{} mappings became {}", before.count, after.count);
    assert!(resident_after <= resident + (8 << 20), "{resident} resident bytes became {resident_after}");
}
