//! Reading machine code back: listings for people, and the proof that a kernel computes in integers.

use std::fmt::Write;

use iced_x86::{CpuidFeature, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic};

/// The x86-64 instructions of `code`, one a line, offsets relative to its start.
pub fn disassemble(code: &[u8]) -> String {
    let mut formatter = IntelFormatter::new();
    let mut text = String::new();
    let mut line = String::new();
    for instruction in decode(code) {
        line.clear();
        formatter.format(&instruction, &mut line);
        let _ = writeln!(text, "{:6x}  {line}", instruction.ip());
    }
    text
}

/// How many x86-64 instructions of `code` compute with floating-point numbers or convert from or to them.
///
/// What counts: every x87 instruction, and every SSE, AVX or AVX-512 instruction whose operation reads bits *as* a float
/// (add, multiply, compare, min, round, convert, square root, fused multiply-add, ...). What does not count, because it
/// moves or combines bits whatever they mean: moves and broadcasts (`movaps`, `movss`, `vbroadcastss`, `movddup`, ...),
/// shuffles and blends (`shufps`, `unpcklps`, `blendps`, `insertps`, ...) and logic (`andps`, `xorps`, ...).
pub fn count_float_instructions(code: &[u8]) -> usize {
    decode(code).filter(is_float).count()
}

/// Instructions up to the first byte that is none (the constants behind a kernel's code may decode to anything).
fn decode(code: &[u8]) -> impl Iterator<Item = Instruction> + '_ {
    Decoder::with_ip(64, code, 0, DecoderOptions::NONE).into_iter()
}

/// Bytes of `code` before the constants that it loads relative to the instruction pointer.
pub(crate) fn instruction_bytes(code: &[u8]) -> usize {
    let mut end = code.len() as u64;
    for instruction in decode(code) {
        if instruction.ip() >= end {
            break;
        }
        let target = instruction.ip_rel_memory_address();
        if instruction.is_ip_rel_memory_operand() && target > instruction.ip() {
            end = end.min(target);
        }
    }
    end as usize
}

fn is_float(instruction: &Instruction) -> bool {
    let x87 = |f: &CpuidFeature| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    if instruction.cpuid_features().iter().any(x87) {
        return instruction.mnemonic() != Mnemonic::Wait;
    }
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    is_conversion(name) || (has_float_suffix(name) && !is_data_movement(name))
}

fn is_conversion(name: &str) -> bool {
    name.starts_with("cvt") && !matches!(name, "cvt")
}

/// `addps`, `fmadd231sd`, `rcp14ss`, ...: packed or scalar, single, double or half precision.
fn has_float_suffix(name: &str) -> bool {
    const INTEGERS: [&str; 8] = ["pabs", "psubs", "padds", "psad", "pmadd", "pdep", "packs", "pps"];
    let float = ["ps", "pd", "ss", "sd", "ph", "sh", "bf16"].iter().any(|s| name.ends_with(s));
    float && !INTEGERS.iter().any(|p| name.starts_with(p)) && !is_integer_instruction(name)
}

/// String instructions and others whose names merely end alike.
fn is_integer_instruction(name: &str) -> bool {
    matches!(name, "movsd" | "cmpsd" | "lodsd" | "stosd" | "scasd" | "insd" | "outsd" | "push" | "pop" | "clflush")
        || matches!(name, "tdpbssd" | "tdpbusd")
        || (name.starts_with('p') && !name.starts_with("perm"))
}

fn is_data_movement(name: &str) -> bool {
    const STEMS: [&str; 17] = [
        "mov",
        "broadcast",
        "shuf",
        "unpck",
        "blend",
        "insert",
        "extract",
        "perm",
        "and",
        "or",
        "xor",
        "lddqu",
        "maskmov",
        "gather",
        "scatter",
        "compress",
        "expand",
    ];
    STEMS.iter().any(|stem| name.starts_with(stem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;

    fn count(f: impl FnOnce(&mut CodeAssembler)) -> usize {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a);
        count_float_instructions(&a.assemble(0).unwrap())
    }

    #[test]
    fn arithmetic_and_conversions_count() {
        let n = count(|a| {
            a.addps(xmm0, xmm1).unwrap();
            a.vfmadd231sd(xmm0, xmm1, xmm2).unwrap();
            a.cvtsi2ss(xmm0, eax).unwrap();
            a.vcvttps2dq(xmm0, xmm1).unwrap();
            a.ucomiss(xmm0, xmm1).unwrap();
            a.sqrtpd(xmm0, xmm1).unwrap();
            a.roundps(xmm0, xmm1, 0).unwrap();
            a.maxss(xmm0, xmm1).unwrap();
            a.fld1().unwrap();
            a.tdpbf16ps(tmm0, tmm1, tmm2).unwrap();
        });
        assert_eq!(n, 10);
    }

    #[test]
    fn moves_shuffles_logic_and_integers_do_not() {
        let n = count(|a| {
            a.movaps(xmm0, xmm1).unwrap();
            a.movss(xmm0, dword_ptr(rax)).unwrap();
            a.vbroadcastss(xmm0, dword_ptr(rax)).unwrap();
            a.movddup(xmm0, xmm1).unwrap();
            a.shufps(xmm0, xmm1, 0xdd).unwrap();
            a.xorps(xmm0, xmm0).unwrap();
            a.vpdpbusd(xmm0, xmm1, xmm2).unwrap();
            a.pmaddwd(xmm0, xmm1).unwrap();
            a.packssdw(xmm0, xmm1).unwrap();
            a.pabsd(xmm0, xmm1).unwrap();
            a.movsd().unwrap();
            a.bts(eax, ecx).unwrap();
            a.push(rax).unwrap();
            a.tdpbusd(tmm0, tmm1, tmm2).unwrap();
            a.tdpbssd(tmm0, tmm1, tmm2).unwrap();
            a.tileloadd(tmm0, ptr(rax + rcx)).unwrap();
        });
        assert_eq!(n, 0);
    }
}
