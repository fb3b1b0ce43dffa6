//! Round trips and bad texts.

use bytes::Bytes;
use proptest::prelude::*;

use super::{Printed, lane, parse, print};
use crate::attr::AttrValue;
use crate::graph::{Const, Module, Stage, ValueId};
use crate::lane::{Access, Input, Program};
use crate::layout::Layout;
use crate::op::{OPS, Op, OpInfo};
use crate::types::{Dim, Elem, Quant, Real, Shape, TensorType};
use crate::verify::{stored_len, verify};

/// Choices drawn from a string of bytes; zeros when it is used up, so that shorter strings mean simpler modules.
struct Draw<'a>(std::slice::Iter<'a, u8>);

impl Draw<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }

    fn bits(&mut self) -> u64 {
        (0..8).fold(0, |acc, _| acc << 8 | u64::from(self.byte()))
    }

    fn int(&mut self) -> i64 {
        match self.below(4) {
            0 => i64::from(self.byte()),
            1 => -i64::from(self.byte()),
            2 => self.pick(&[i64::MIN, i64::MAX, i64::from(i32::MIN), 1 << 31]),
            _ => self.bits() as i64,
        }
    }

    fn real(&mut self) -> f64 {
        match self.below(4) {
            0 => f64::from(self.byte()) / 64.0,
            1 => self.pick(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 5e-324, -1e-310, f64::MAX]),
            _ => f64::from_bits(self.bits()),
        }
    }

    fn text(&mut self) -> String {
        const CHARS: [&str; 24] = [
            "a", "Z", "_", "0", ".", "/", "$", "-", "\"", "\\", "\n", "\r", "\t", " ", "%", "@", "é", "\0", "😀", "{",
            "}", "//", "->", "\u{85}",
        ];
        (0..self.below(6)).map(|_| self.pick(&CHARS)).collect()
    }

    fn dims(&mut self, batch: bool) -> Shape {
        let rank = self.below(5);
        let mut shape = Shape((0..rank).map(|_| Dim::fixed(self.below(6))).collect());
        if let Some(first) = shape.0.first_mut().filter(|_| batch && self.below(2) == 1) {
            first.batch = true;
        }
        shape
    }

    fn quant(&mut self) -> Option<Quant> {
        let zero_point = self.int() as i32;
        match self.below(4) {
            0 => None,
            1 => Some(Quant::per_tensor(self.real(), zero_point)),
            2 => Some(Quant::per_axis((0..self.below(4)).map(|i| i as f64), self.below(3), zero_point)),
            _ => {
                let scale = (0..self.below(3)).map(|_| Real(self.real())).collect();
                Some(Quant { scale, zero_point, axis: self.pick(&[None, Some(0)]) })
            }
        }
    }

    fn ty(&mut self, batch: bool) -> TensorType {
        TensorType { elem: self.pick(&Elem::ALL), shape: self.dims(batch), quant: self.quant() }
    }

    fn constant(&mut self, number: usize) -> Const {
        let ty = self.ty(false);
        let columns = 1 + self.below(9);
        let bits = 1 + self.below(7) as u32;
        let rows = 1 + self.below(20);
        let few = [Layout::Bits { bits }, Layout::Groups { bits, rows }];
        let layouts = [Layout::Dot4 { columns }, Layout::Dot4Nibbles { columns }, few[0], few[1]];
        let layout = Some(self.pick(&layouts));
        let layout = layout.filter(|_| self.below(2) == 1 && stored_len(&ty, layout).is_ok());
        let data = (0..stored_len(&ty, layout).unwrap()).map(|_| self.byte()).collect::<Vec<u8>>();
        Const { name: format!("{}{number}", self.text()), ty, layout, data: data.into() }
    }

    fn lane(&mut self) -> Program {
        let input = |d: &mut Self| Input { elem: d.pick(&Elem::ALL), access: d.pick(&Access::WORDS).0 };
        let inputs = (0..self.below(4)).map(|_| input(self)).collect();
        let mut insts = vec![crate::lane::Inst::Load(0)];
        for _ in 0..self.below(6) {
            let (word, kinds) = self.pick(&lane::INSTS);
            let arg = |d: &mut Self, kind: &lane::Kind| match kind {
                lane::Kind::Reg => d.below(insts.len()) as i64,
                lane::Kind::Int => d.int(),
            };
            let args: Vec<_> = kinds.iter().map(|k| arg(self, k)).collect();
            insts.extend(lane::build(word, &args));
        }
        Program { inputs, insts, output: self.pick(&Elem::ALL) }
    }

    /// A value of an attribute of this kind; `attempt` varies what the kind leaves open.
    fn attr(&mut self, kind: &str, attempt: usize) -> AttrValue {
        let dim = |d: &mut Self| if d.below(2) == 0 { AttrValue::Dim(Dim::N) } else { AttrValue::Int(d.byte().into()) };
        match kind {
            "integer" => AttrValue::Int(self.int()),
            "count" => AttrValue::Int(self.byte().into()),
            "true or false" => AttrValue::Word(self.pick(&["true", "false"]).into()),
            "real" => AttrValue::Real(self.real()),
            "element type" => AttrValue::Word(self.pick(&Elem::ALL).name().into()),
            "dimension" => dim(self),
            "shape" => AttrValue::List((0..self.below(4)).map(|_| dim(self)).collect()),
            "list" if attempt == 0 => {
                AttrValue::List((0..self.below(4)).map(|_| AttrValue::Real(self.real())).collect())
            }
            "list" => AttrValue::List((0..self.below(4)).map(|_| AttrValue::Int(self.byte().into())).collect()),
            "list of fixed length" => AttrValue::List(vec![AttrValue::Int(self.byte().into()); attempt]),
            "lane program" => AttrValue::Symbol(self.text()),
            "`erf` or `tanh`" => AttrValue::Word(self.pick(&["erf", "tanh"]).into()),
            "`nchw` or `nhwc`" => AttrValue::Word(self.pick(&["nchw", "nhwc"]).into()),
            other => panic!("no value for an attribute of kind {other}"),
        }
    }

    /// An op of this declaration: attributes that `from_attrs` refuses are drawn again.
    fn op(&mut self, info: &OpInfo) -> Op {
        let mut attempts = vec![0; info.attrs.len()];
        let mut attrs: Vec<_> = info.attrs.iter().map(|(n, k)| (n.to_string(), self.attr(k, 0))).collect();
        loop {
            let refused = match Op::from_attrs(info.name, &attrs) {
                Ok(op) => return op,
                Err(message) => message,
            };
            let i = info.attrs.iter().position(|(n, _)| refused.contains(&format!("`{n}`"))).expect(&refused);
            attempts[i] += 1;
            assert!(attempts[i] < 9, "{refused}");
            attrs[i].1 = self.attr(info.attrs[i].1, attempts[i]);
        }
    }

    fn node(&mut self, m: &mut Module, info: &OpInfo) {
        let (least, most) = info.arity();
        let count = least + self.below(most.min(least + 3) - least + 1);
        let operands: Vec<_> = (0..count).map(|_| ValueId((self.bits() % m.values.len() as u64) as u32)).collect();
        let op = self.op(info);
        let loc = (self.below(2) == 1).then(|| self.text().into());
        let ty = self.ty(true);
        m.push_typed(op, &operands, ty, loc);
        let (place, region) = ((self.below(3) == 0).then(|| self.below(256) * 64), self.below(3));
        let node = m.nodes.last_mut().unwrap();
        (node.place, node.region) = (place, (region > 0).then_some(region));
    }

    fn module(&mut self, stage: Stage, infos: &[OpInfo]) -> Module {
        let mut m = Module::new(self.text(), stage);
        m.meta.extend((0..self.below(3)).map(|_| (self.text(), self.text())));
        m.arena = self.below(256) * 64;
        let ty = self.ty(true);
        m.input(self.text(), ty);
        for i in 0..self.below(5) {
            let c = self.constant(i);
            m.constant(c);
            let ty = self.ty(true);
            m.input(format!("{}{i}", self.text()), ty);
        }
        m.inputs[0].name.push_str("first");
        for _ in 0..self.below(3) {
            let (name, program) = (self.text(), self.lane());
            m.lane(&name, program);
        }
        infos.iter().for_each(|info| self.node(&mut m, info));
        for _ in 0..self.below(4) {
            let value = ValueId((self.bits() % m.values.len() as u64) as u32);
            m.output(self.text(), value);
        }
        m
    }
}

/// Bytes that look random, the same ones for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn reparse(printed: &Printed) -> Module {
    parse(&printed.text, printed.blob.clone().into()).unwrap_or_else(|e| panic!("{e}\n{}", printed.text))
}

/// The module comes back whole; that it makes no sense, the verifier may say, but not panic.
fn assert_round_trip(m: &Module) {
    let _ = verify(m);
    let printed = print(m);
    let back = reparse(&printed);
    assert_eq!(print(&back), printed);
    assert_eq!((&back.name, back.stage, &back.meta, back.arena), (&m.name, m.stage, &m.meta, m.arena));
    assert_eq!((&back.lanes, back.nodes.len(), back.inputs.len()), (&m.lanes, m.nodes.len(), m.inputs.len()));
    let data = |m: &Module| m.consts.iter().map(|c| (c.name.clone(), c.layout, c.data.clone())).collect::<Vec<_>>();
    assert_eq!(data(&back), data(m));
}

#[test]
fn every_op_at_every_stage_comes_back() {
    for (i, (stage, _)) in Stage::WORDS.into_iter().enumerate() {
        for seed in 0..8 {
            let bytes = noise(seed * 7 + i as u64, 20_000);
            let m = Draw(bytes.iter()).module(stage, OPS);
            assert_eq!(m.nodes.len(), OPS.len());
            assert_round_trip(&m);
        }
    }
}

#[test]
fn every_instruction_comes_back() {
    for (word, kinds) in lane::INSTS {
        let inst = lane::build(word, &vec![0; kinds.len()]).unwrap();
        let mut m = Module::new("m", Stage::Fuse);
        let insts = vec![crate::lane::Inst::Load(0), inst];
        m.lane("a b", Program { inputs: vec![], insts, output: Elem::I8 });
        assert_round_trip(&m);
        assert!(print(&m).text.contains(&format!("%1 = {word} ")));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_modules_come_back(
        bytes in prop::collection::vec(any::<u8>(), 0..1500),
        stage in 0..Stage::WORDS.len(),
        ops in prop::collection::vec(0..OPS.len(), 0..6),
    ) {
        let mut draw = Draw(bytes.iter());
        let mut m = draw.module(Stage::WORDS[stage].0, &[]);
        ops.iter().for_each(|&i| draw.node(&mut m, &OPS[i]));
        assert_round_trip(&m);
    }

    #[test]
    fn garbage_never_panics(text in "(?s).{0,200}", blob in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert!(parse(&text, blob.into()).is_err());
    }

    #[test]
    fn words_in_any_order_never_panic(words in prop::collection::vec(0..WORDS.len(), 0..60)) {
        let body: Vec<_> = words.iter().map(|&i| WORDS[i]).collect();
        let _ = parse(&body.join(" "), Bytes::new());
        let _ = parse(&format!("module \"m\" stage import {{ {} }}", body.join(" ")), Bytes::new());
        let _ = parse(&format!("module \"m\" stage plan {{\ngraph () -> () {{\n{}\n}}\n}}", body.join("\n")), Bytes::new());
    }
}

const WORDS: [&str; 51] = [
    "module",
    "stage",
    "meta",
    "arena",
    "scale",
    "const",
    "lane",
    "graph",
    "tensor",
    "blob",
    "layout",
    "dot4",
    "dot4nibbles",
    "bits",
    "groups",
    "at",
    "loc",
    "q",
    "axis",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "<",
    ">",
    ",",
    ":",
    "=",
    "->",
    "%0",
    "%1",
    "%x",
    "@a",
    "@s0",
    "\"s\"",
    "0",
    "-1",
    "99999999999999999999",
    "0x1p0",
    "N",
    "4xi8",
    "2xNxf32",
    "0x9223372036854775807xi64",
    "load",
    "add",
    "concat",
    "i8",
    "element",
    "\n",
];

fn mutate(draw: &mut Draw<'_>, text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..1 + draw.below(2) {
        let at = (draw.bits() % (chars.len() as u64 + 1)) as usize;
        let end = (at + draw.below(12)).min(chars.len());
        match draw.below(5) {
            0 => chars.truncate(at),
            1 => drop(chars.drain(at..end)),
            2 => drop(chars.splice(at..end, draw.pick(&WORDS).chars())),
            3 => drop(chars.splice(at..at, chars[at..end].to_vec())),
            _ => drop(chars.splice(at..end, char::from_u32(draw.byte().into()))),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn mutated_texts_never_panic_and_what_parses_is_stable() {
    let (mut parsed, mut refused) = (0, 0);
    for seed in 0..6000 {
        let bytes = noise(seed, 4000);
        let mut draw = Draw(bytes.iter());
        let picks: Vec<_> = (0..4).map(|_| draw.below(OPS.len())).collect();
        let stage = draw.pick(&Stage::WORDS).0;
        let mut m = draw.module(stage, &[]);
        picks.iter().for_each(|&i| draw.node(&mut m, &OPS[i]));
        let printed = print(&m);
        match parse(&mutate(&mut draw, &printed.text), printed.blob.into()) {
            Ok(m) => {
                let _ = verify(&m);
                let printed = print(&m);
                assert_eq!(print(&reparse(&printed)), printed);
                parsed += 1;
            }
            Err(found) => {
                assert!(!found.0.is_empty() && found.0.iter().all(|d| d.place.is_some()));
                refused += 1;
            }
        }
    }
    assert!(parsed > 200 && refused > 3000, "{parsed} parsed, {refused} refused");
}

#[test]
fn every_prefix_is_refused() {
    let bytes = noise(3, 4000);
    let printed = print(&Draw(bytes.iter()).module(Stage::Plan, &OPS[..5]));
    let whole = printed.text.trim_end();
    for end in (0..whole.len()).filter(|&i| whole.is_char_boundary(i)) {
        assert!(parse(&whole[..end], printed.blob.clone().into()).is_err(), "{}", &whole[..end]);
    }
}

const TINY: &str = r#"
// A comment.
module "tiny" stage integerize {
  meta "who" = "a \"quoted\" \u{e9}"
  scale @s0 = [0x1.4p-5, 0.5]
  const @w : tensor<3x2xi8, q(@s0, 0, axis=1)> = [1, -2, 3, 4, 5, -6]
  const @"odd name" : tensor<2xf32> = [0.1, -inf] // decimals are rounded
  lane @rq8 (i32 element, i32 channel) -> i8 {
    %0 = load 0
    %7 = load 1
    %2 = mulwide %0, %7
    %3 = roundshr %2, 20
  }
  graph (%x: tensor<Nx3xu8, q(0x1p-5, 131)>, %"0": tensor<f32>) -> (%9 "logits", %"0" "copy", @w "w") {
    %9 = int.matmul %x, @w {b_zero = 0, a_zero = 131} : tensor<Nx2xi32> loc("/fc/MatMul")
  }
}
"#;

const TINY_PRINTED: &str = r#"module "tiny" stage integerize {
  meta "who" = "a \"quoted\" é"
  scale @s0 = [0x1.4p-5, 0x1p-1]
  const @w : tensor<3x2xi8, q(@s0, 0, axis=1)> = [1, -2, 3, 4, 5, -6]
  const @"odd name" : tensor<2xf32> = [0x1.99999ap-4, -inf]
  lane @rq8 (i32 element, i32 channel) -> i8 {
    %0 = load 0
    %1 = load 1
    %2 = mulwide %0, %1
    %3 = roundshr %2, 20
  }
  graph (%x: tensor<Nx3xu8, q(0x1p-5, 131)>, %"0": tensor<f32>) -> (%0 "logits", %"0" "copy", @w "w") {
    %0 = int.matmul %x, @w {a_zero = 131, b_zero = 0} : tensor<Nx2xi32> loc("/fc/MatMul")
  }
}
"#;

#[test]
fn a_text_by_hand_prints_in_canonical_form() {
    let m = parse(TINY, Bytes::new()).unwrap();
    assert_eq!(print(&m), Printed { text: TINY_PRINTED.into(), blob: vec![] });
    assert_eq!(m.consts[0].data, [1u8, 254, 3, 4, 5, 250][..]);
    assert_eq!(m.nodes[0].op, Op::IntMatMul { a_zero: 131, b_zero: 0 });
}

#[test]
fn large_constants_lie_aligned_in_the_blob_and_are_not_copied() {
    let mut m = Module::new("m", Stage::Import);
    for (name, len) in [("a", 17), ("b", 16), ("c", 65), ("d", 20)] {
        let ty = TensorType::new(Elem::U8, Shape::fixed(&[len]));
        m.constant(Const::new(name, ty, &vec![9u8; len]));
    }
    m.constant(Const::new("nan", TensorType::f32(Shape::fixed(&[1])), &[f32::from_bits(0x7fc0_0001)]));
    let printed = print(&m);
    for (name, at) in [("a", "0x0, 17"), ("c", "0x40, 65"), ("d", "0xc0, 20"), ("nan", "0x100, 4")] {
        assert!(printed.text.lines().any(|l| l.contains(&format!("@{name} ")) && l.contains(at)), "{}", printed.text);
    }
    let blob = Bytes::from(printed.blob.clone());
    let back = parse(&printed.text, blob.clone()).unwrap();
    assert_eq!(back.consts[2].data.as_ptr(), blob[0x40..].as_ptr());
    assert_round_trip(&m);
}

/// The codes and lines of the problems of a text with these lines in a module of stage `plan`.
fn problems(lines: &str) -> Vec<(&'static str, String)> {
    let found = parse(&format!("module \"m\" stage plan {{\n{lines}\n}}"), Bytes::from_static(&[0; 128]));
    found.err().unwrap_or_default().0.into_iter().map(|d| (d.code, d.place.unwrap_or_default())).collect()
}

#[test]
fn all_problems_are_found_and_consequences_are_not_reported() {
    let found = problems(
        "const @a : tensor<4xi8> = [1, 2, 3]\n\
         const @b : tensor<4xi7> = blob(0x0, 4)\n\
         graph (%x: tensor<4xi8>) -> (%3 \"y\", @a \"a\", %9 \"none\") {\n\
           %1 = nonsense %x : tensor<4xi8>\n\
           %2 = reshape %1 {shape = [4]} : tensor<4xi8>\n\
           %3 = concat %2, @b, %7 {axis = 0} : tensor<4xi8>\n\
           %4 = concat %x, %7 {axis = 0} : tensor<4xi8>\n\
           %4 = concat %x {axis = 0} : tensor<4xi8>\n\
         }",
    );
    let at = |code, place: &str| (code, place.to_string());
    let wanted = [
        at("const-data", "2:27"),
        at("syntax", "3:19"),
        at("op", "5:6"),
        at("unknown-name", "8:17"),
        at("duplicate-name", "9:1"),
        at("unknown-name", "4:46"),
    ];
    assert_eq!(found, wanted);
}

#[test]
fn single_problems() {
    let graph = "graph () -> () {\n}\n";
    let long = "a".repeat(4097);
    let deep = format!("graph () -> () {{\n%0 = concat {{axis = {}}} : tensor<f32>\n}}", "[".repeat(70));
    let cases = [
        ("", "syntax"),
        ("graph () -> () {\n}\ngraph () -> () {\n}", "duplicate-name"),
        ("meta \"a\" = \"b\"\nmeta \"a\" = \"b\"", "duplicate-name"),
        ("arena -1", "range"),
        ("scale @s = [1]\nscale @s = [1]", "duplicate-name"),
        ("scale @s = [0x1.00000000000001p0]", "syntax"),
        ("const @a : tensor<i8> = blob(0, 1)\nconst @a : tensor<i8> = blob(0, 1)", "duplicate-name"),
        ("const @a : tensor<i8> = blob(128, 1)", "const-data"),
        ("const @a : tensor<i8> = blob(0x7fffffffffffffff, 1)", "const-data"),
        ("const @a : tensor<2147483647xi8> = blob(0, 2147483647)", "const-data"),
        ("const @a : tensor<i8> = blob(0, 2)", "const-data"),
        ("const @a : tensor<Nxi8> = blob(0, 1)", "const-data"),
        ("const @a : tensor<4x4xi8> layout dot4(0) = blob(0, 16)", "const-data"),
        ("const @a : tensor<4x4xi8> layout dot4(9223372036854775807) = blob(0, 16)", "const-data"),
        ("const @a : tensor<4xi8> layout dot4(8) = blob(0, 16)", "const-data"),
        ("const @a : tensor<4x4xi32> layout dot4(8) = blob(0, 64)", "const-data"),
        ("const @a : tensor<4x4xi8> layout dot4nibbles(8) = blob(0, 32)", "const-data"),
        ("const @a : tensor<4x4xu8> layout dot4nibbles(8) = blob(0, 16)", "const-data"),
        ("const @a : tensor<4x4xu8> layout bits(3) = blob(0, 6)", "const-data"),
        ("const @a : tensor<4x4xi8> layout bits(3) = blob(0, 5)", "const-data"),
        ("const @a : tensor<4x4xi8> layout bits(0) = blob(0, 0)", "const-data"),
        ("const @a : tensor<4x4xi8> layout bits(8) = blob(0, 16)", "const-data"),
        ("const @a : tensor<4x4xi8> layout bits(9) = blob(0, 18)", "const-data"),
        ("const @a : tensor<4x4xi8> layout bits(9223372036854775807) = blob(0, 18)", "const-data"),
        ("const @a : tensor<4xi8> layout groups(4, 2) = blob(0, 4)", "const-data"),
        ("const @a : tensor<4x4xi8> layout groups(4, 2) = blob(0, 11)", "const-data"),
        ("const @a : tensor<4x4xi8> layout groups(4, 0) = blob(0, 8)", "const-data"),
        ("const @a : tensor<4x4xi8> layout groups(9, 2) = blob(0, 22)", "const-data"),
        ("const @a : tensor<4x4xi8> layout panels(8) = blob(0, 16)", "syntax"),
        ("const @a : tensor<i8> = [128]", "range"),
        ("const @a : tensor<f32> = [0x1p128]", "range"),
        ("const @a : tensor<f32> = [0x1.000001p0]", "range"),
        ("const @a : tensor<1x1x1x1x1x1x1x1x1xi8> = blob(0, 1)", "limit-rank"),
        ("const @a : tensor<2147483649xi8> = blob(0, 1)", "limit-elements"),
        ("const @a : tensor<65536x65536x65536x65536xi8> = blob(0, 1)", "limit-elements"),
        ("const @a : tensor<NxNxi8> = blob(0, 1)", "limit-elements"),
        ("const @a : tensor<xi8> = blob(0, 1)", "syntax"),
        ("const @a : tensor<-1xi8> = blob(0, 1)", "syntax"),
        ("const @a : tensor<i8, q(@s9, 0)> = blob(0, 1)", "unknown-name"),
        ("const @a : tensor<i8, q(1, 99999999999)> = blob(0, 1)", "range"),
        ("const @a b", "syntax"),
        ("const @\"a", "syntax"),
        ("const @\"\\q\" : tensor<i8> = [1]", "syntax"),
        ("const @\"\\u{d800}\" : tensor<i8> = [1]", "syntax"),
        ("const @\"\\u{é}\" : tensor<i8> = [1]", "syntax"),
        ("const @9 : tensor<i8> = [1]", "syntax"),
        ("lane @a () -> i8 {\n}\nlane @a () -> i8 {\n}", "duplicate-name"),
        ("lane @a (i8 sideways) -> i8 {\n%0 = load 0\n}", "syntax"),
        ("lane @a () -> i8 {\n%0 = jump 0\n}", "syntax"),
        ("lane @a () -> i8 {\n%0 = widen %1\n}", "unknown-name"),
        ("lane @a () -> i8 {\n%0 = load -1\n}", "range"),
        ("lane @a () -> i8 {\n%0 = load 1\n%0 = load 1\n}", "duplicate-name"),
        ("graph (%a: tensor<i8>, %a: tensor<i8>) -> () {\n}", "duplicate-name"),
        ("graph () -> () {\n%0 = concat {axis = 0, axis = 1} : tensor<f32>\n}", "op"),
        ("graph () -> () {\n%99999999999 = concat {axis = 0} : tensor<f32>\n}", "syntax"),
        (&deep, "limit-nesting"),
        (&format!("const @{long} : tensor<i8> = [1]"), "limit-name"),
        (&format!("graph (%{long}: tensor<i8>) -> () {{\n}}"), "limit-name"),
    ];
    for (text, code) in cases {
        let text = if text.is_empty() || text.contains("graph") { text.into() } else { format!("{graph}{text}") };
        let codes: Vec<_> = problems(&text).into_iter().map(|(code, _)| code).collect();
        assert_eq!(codes, [code], "{text}");
    }
    assert!(problems(graph).is_empty());
}

#[test]
fn limits_are_exact() {
    let name = "n".repeat(4096);
    let text =
        format!("const @{name} : tensor<1x1x1x1x1x1x1x1xi8> = [1]\ngraph (%x: tensor<2147483648xi8>) -> () {{\n}}");
    assert_eq!(problems(&text), []);
}

#[test]
fn the_parser_gives_up_after_many_problems() {
    assert_eq!(problems(&"junk\n".repeat(5000)).len(), 101);
}

#[test]
fn a_module_that_refers_to_nothing_prints() {
    let mut m = Module::new("m", Stage::Import);
    m.output("y", ValueId(7));
    assert!(print(&m).text.contains("(%? \"y\")"));
}

#[test]
fn counts_have_limits() {
    use crate::verify::limits::{CONSTS, NODES};
    let nodes = |n: usize| {
        let lines: String = (0..n).map(|i| format!("%{i} = exp %x : tensor<f32>\n")).collect();
        format!("graph (%x: tensor<f32>) -> () {{\n{lines}}}")
    };
    assert_eq!(problems(&nodes(NODES)), []);
    assert_eq!(problems(&nodes(NODES + 1)), [("limit-nodes", format!("{}:1", NODES + 3))]);
    let consts = |n: usize| {
        let lines: String = (0..n).map(|i| format!("const @c{i} : tensor<i8> = [1]\n")).collect();
        format!("{lines}graph () -> () {{\n}}")
    };
    assert_eq!(problems(&consts(CONSTS)), []);
    assert_eq!(problems(&consts(CONSTS + 1)), [("limit-consts", format!("{}:7", CONSTS + 2))]);
}
