//! The parser: recursive descent, a function for each phrase. A statement that does not parse is reported and skipped,
//! and what it would have defined is remembered as broken, so that its uses are not reported again.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::lex::{Kind, Lexer, Span, Token};
use super::{lane, real};
use crate::attr::AttrValue;
use crate::diag::{Diagnostic, Diagnostics};
use crate::graph::{Const, Def, Module, Node, Stage, Value, ValueId};
use crate::lane::{Access, Inst, Program};
use crate::layout::Layout;
use crate::op::Op;
use crate::types::{Dim, Elem, Quant, Real, Shape, TensorType};
use crate::verify::{limits, stored_len};

mod lanes;

/// The parser gives up after this many problems.
const PROBLEMS: usize = 100;

/// Why a phrase was left.
enum Fail {
    /// A problem to report.
    Found(Box<Diagnostic>),
    /// A use of something whose definition has been reported.
    Known,
}

type Parsed<T> = Result<T, Fail>;

/// An operand before it is resolved.
enum Ref {
    Result(u32),
    Input(String),
    Const(String),
}

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    token: Token<'a>,
    blob: Bytes,
    found: Diagnostics,
    module: Module,
    scales: HashMap<String, Option<Arc<[Real]>>>,
    /// `None` marks what is defined by a broken statement.
    consts: HashMap<String, Option<ValueId>>,
    inputs: HashMap<String, ValueId>,
    results: HashMap<u32, Option<ValueId>>,
    has_graph: bool,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str, blob: Bytes) -> Parser<'a> {
        let mut lexer = Lexer::new(text);
        let token = lexer.next();
        Parser {
            lexer,
            token,
            blob,
            found: Diagnostics::default(),
            module: Module::new("", Stage::Import),
            scales: HashMap::new(),
            consts: HashMap::new(),
            inputs: HashMap::new(),
            results: HashMap::new(),
            has_graph: false,
        }
    }

    pub(super) fn run(mut self) -> Result<Module, Diagnostics> {
        if let Err(fail) = self.module() {
            self.report(fail);
        }
        self.found.or(self.module)
    }

    // ---- tokens

    fn bump(&mut self) -> Kind<'a> {
        let next = self.lexer.next();
        std::mem::replace(&mut self.token, next).kind
    }

    fn fail_at(&self, span: Span, code: &'static str, message: impl Into<String>) -> Fail {
        Fail::Found(Box::new(Diagnostic::new(code, message).at(span.place(self.lexer.text))))
    }

    fn fail(&self, code: &'static str, message: impl Into<String>) -> Fail {
        self.fail_at(self.token.span, code, message)
    }

    /// "Wanted this, found that" at the present token.
    fn unexpected<T>(&self, wanted: &str) -> Parsed<T> {
        let found = match &self.token.kind {
            Kind::Bad(reason) => return Err(self.fail("syntax", reason.as_str())),
            Kind::Word(w) => format!("`{}`", w.chars().take(40).collect::<String>()),
            Kind::Str(_) => "a string".into(),
            Kind::Result(n) => format!("`%{n}`"),
            Kind::Input(_) => "an input".into(),
            Kind::Symbol(_) => "a symbol".into(),
            Kind::Punct(c) => format!("`{c}`"),
            Kind::Arrow => "`->`".into(),
            Kind::End => "the end of the text".into(),
        };
        Err(self.fail("syntax", format!("expected {wanted}, found {found}")))
    }

    fn eat(&mut self, c: char) -> bool {
        let hit = self.token.kind == Kind::Punct(c);
        if hit {
            self.bump();
        }
        hit
    }

    fn expect(&mut self, c: char) -> Parsed<()> {
        if self.eat(c) { Ok(()) } else { self.unexpected(&format!("`{c}`")) }
    }

    fn arrow(&mut self) -> Parsed<()> {
        if self.token.kind != Kind::Arrow {
            return self.unexpected("`->`");
        }
        self.bump();
        Ok(())
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let hit = self.token.kind == Kind::Word(word);
        if hit {
            self.bump();
        }
        hit
    }

    fn keyword(&mut self, word: &str) -> Parsed<()> {
        if self.eat_word(word) { Ok(()) } else { self.unexpected(&format!("`{word}`")) }
    }

    fn word(&mut self, wanted: &str) -> Parsed<&'a str> {
        let Kind::Word(word) = self.token.kind else { return self.unexpected(wanted) };
        self.bump();
        Ok(word)
    }

    fn string(&mut self) -> Parsed<String> {
        match &self.token.kind {
            Kind::Str(_) => {}
            _ => return self.unexpected("a string"),
        }
        match self.bump() {
            Kind::Str(text) => Ok(text),
            _ => Err(Fail::Known),
        }
    }

    fn symbol(&mut self) -> Parsed<String> {
        let Kind::Symbol(name) = &self.token.kind else { return self.unexpected("a name with `@`") };
        self.check_name(name)?;
        match self.bump() {
            Kind::Symbol(name) => Ok(name),
            _ => Err(Fail::Known),
        }
    }

    fn check_name(&self, name: &str) -> Parsed<()> {
        if name.len() <= limits::NAME {
            Ok(())
        } else {
            Err(self.fail("limit-name", format!("a name of {} bytes", name.len())))
        }
    }

    fn result_number(&mut self) -> Parsed<u32> {
        let Kind::Result(number) = self.token.kind else { return self.unexpected("`%` and a number") };
        self.bump();
        Ok(number)
    }

    fn int(&mut self) -> Parsed<i64> {
        match self.token.kind {
            Kind::Word(word) if parse_int(word).is_some() => {
                self.bump();
                parse_int(word).ok_or(Fail::Known)
            }
            _ => self.unexpected("an integer"),
        }
    }

    fn int_as<T: TryFrom<i64>>(&mut self, wanted: &str) -> Parsed<T> {
        let span = self.token.span;
        let value = self.int()?;
        T::try_from(value).map_err(|_| self.fail_at(span, "range", format!("{value} is not {wanted}")))
    }

    fn count(&mut self) -> Parsed<usize> {
        self.int_as("a count")
    }

    fn real(&mut self) -> Parsed<f64> {
        match self.token.kind {
            Kind::Word(word) if real::parse(word).is_some() => {
                self.bump();
                real::parse(word).ok_or(Fail::Known)
            }
            _ => self.unexpected("a real number that is exact in 64 bits"),
        }
    }

    /// `open item, item, ... close`.
    fn list<T>(&mut self, open: char, close: char, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if !self.eat(',') {
                self.expect(close)?;
                return Ok(items);
            }
        }
    }

    // ---- problems

    fn report(&mut self, fail: Fail) {
        if let Fail::Found(d) = fail {
            self.found.push(*d);
        }
    }

    fn gives_up(&self) -> bool {
        self.found.0.len() >= PROBLEMS
    }

    /// After a broken statement that started on `line`: on to the next line.
    fn skip_line(&mut self, line: usize) {
        while self.token.span.line == line && self.token.kind != Kind::End {
            self.bump();
        }
    }

    /// After a broken header: beyond the next `}` that starts a line.
    fn skip_block(&mut self) {
        loop {
            let closes = self.token.first && self.token.kind == Kind::Punct('}');
            if self.token.kind == Kind::End || closes {
                self.eat('}');
                return;
            }
            self.bump();
        }
    }

    /// Statements up to a `}`; each broken one is reported and skipped.
    fn statements(&mut self, mut statement: impl FnMut(&mut Self) -> Parsed<()>) -> Parsed<()> {
        self.expect('{')?;
        while !self.eat('}') {
            if self.token.kind == Kind::End {
                return self.unexpected("`}`");
            }
            let line = self.token.span.line;
            if let Err(fail) = statement(self) {
                self.report(fail);
                self.skip_line(line);
            }
            if self.gives_up() {
                return Err(self.fail("syntax", "too many problems"));
            }
        }
        Ok(())
    }

    // ---- module

    fn module(&mut self) -> Parsed<()> {
        self.keyword("module")?;
        self.module.name = self.string()?;
        self.keyword("stage")?;
        let span = self.token.span;
        let word = self.word("a stage")?;
        self.module.stage =
            Stage::from_word(word).ok_or_else(|| self.fail_at(span, "syntax", "there is no such stage"))?;
        self.statements(Self::item)?;
        if self.token.kind != Kind::End {
            return self.unexpected("the end of the text");
        }
        if self.has_graph || !self.found.0.is_empty() {
            Ok(())
        } else {
            Err(self.fail("syntax", "the module has no graph"))
        }
    }

    fn item(&mut self) -> Parsed<()> {
        match self.token.kind {
            Kind::Word("meta") => self.meta(),
            Kind::Word("arena") => self.arena(),
            Kind::Word("scale") => self.scale_list(),
            Kind::Word("const") => self.constant(),
            Kind::Word("lane") => self.lane(),
            Kind::Word("graph") => self.graph(),
            _ => self.unexpected("`meta`, `arena`, `scale`, `const`, `lane`, `graph` or `}`"),
        }
    }

    fn meta(&mut self) -> Parsed<()> {
        self.bump();
        let span = self.token.span;
        let key = self.string()?;
        self.expect('=')?;
        let value = self.string()?;
        match self.module.meta.insert(key, value) {
            None => Ok(()),
            Some(_) => Err(self.fail_at(span, "duplicate-name", "this note is given twice")),
        }
    }

    fn arena(&mut self) -> Parsed<()> {
        self.bump();
        self.module.arena = self.count()?;
        Ok(())
    }

    fn scale_list(&mut self) -> Parsed<()> {
        self.bump();
        let span = self.token.span;
        let name = self.symbol()?;
        if self.scales.contains_key(&name) {
            return Err(self.fail_at(span, "duplicate-name", "this scale list is given twice"));
        }
        let list = self.expect('=').and_then(|()| match self.token.kind {
            Kind::Word("blob") => self.blob_of_scales(),
            _ => self.list('[', ']', |p| p.real().map(Real)),
        });
        let (list, outcome) = split(list.map(Arc::from));
        self.scales.insert(name, list);
        outcome
    }

    // ---- types

    fn ty(&mut self) -> Parsed<TensorType> {
        self.keyword("tensor")?;
        self.expect('<')?;
        let mut ty = self.dims_and_elem()?;
        if self.eat(',') {
            ty.quant = Some(self.quant()?);
        }
        self.expect('>')?;
        Ok(ty)
    }

    fn dims_and_elem(&mut self) -> Parsed<TensorType> {
        let span = self.token.span;
        let word = self.word("a shape and an element type")?;
        let (dims, elem) = word.rsplit_once('x').map_or(("", word), |(dims, elem)| (dims, elem));
        let elem = Elem::from_name(elem).ok_or_else(|| self.fail_at(span, "syntax", "unknown element type"))?;
        let rank = if dims.is_empty() { 0 } else { dims.split('x').count() };
        if rank > limits::RANK {
            return Err(self.fail_at(span, "limit-rank", format!("a tensor of rank {rank}")));
        }
        let dims =
            if rank == 0 && !word.contains('x') { Some(vec![]) } else { dims.split('x').map(parse_dim).collect() };
        let shape = Shape(dims.ok_or_else(|| self.fail_at(span, "syntax", "this is not a shape"))?);
        let small = |d: Dim| d.size <= limits::ELEMENTS;
        if !shape.0.iter().all(|&d| small(d)) || !shape.count().is_some_and(small) {
            return Err(self.fail_at(span, "limit-elements", "a tensor with too many elements or a squared batch"));
        }
        Ok(TensorType::new(elem, shape))
    }

    fn quant(&mut self) -> Parsed<Quant> {
        self.keyword("q")?;
        self.expect('(')?;
        let scale = match self.token.kind {
            Kind::Symbol(_) => self.scale_ref()?,
            _ => Arc::from([Real(self.real()?)]),
        };
        self.expect(',')?;
        let zero_point = self.int_as("a zero point")?;
        let axis = if self.eat(',') { Some(self.axis()?) } else { None };
        self.expect(')')?;
        Ok(Quant { scale, zero_point, axis })
    }

    fn axis(&mut self) -> Parsed<usize> {
        self.keyword("axis")?;
        self.expect('=')?;
        self.count()
    }

    fn scale_ref(&mut self) -> Parsed<Arc<[Real]>> {
        let span = self.token.span;
        let name = self.symbol()?;
        match self.scales.get(&name) {
            Some(Some(list)) => Ok(list.clone()),
            Some(None) => Err(Fail::Known),
            None => Err(self.fail_at(span, "unknown-name", "there is no such scale list before this")),
        }
    }

    // ---- constants

    fn constant(&mut self) -> Parsed<()> {
        self.bump();
        let span = self.token.span;
        let name = self.symbol()?;
        if self.consts.contains_key(&name) {
            return Err(self.fail_at(span, "duplicate-name", "this constant is given twice"));
        }
        if self.module.consts.len() >= limits::CONSTS {
            return Err(self.fail_at(span, "limit-consts", format!("more than {} constants", limits::CONSTS)));
        }
        let (constant, outcome) = split(self.constant_body(&name));
        let value = constant.map(|c| self.add_constant(c));
        self.consts.insert(name, value);
        outcome
    }

    fn constant_body(&mut self, name: &str) -> Parsed<Const> {
        self.expect(':')?;
        let span = self.token.span;
        let ty = self.ty()?;
        let layout = if self.eat_word("layout") { Some(self.layout()?) } else { None };
        let length = stored_len(&ty, layout).map_err(|e| self.fail_at(span, "const-data", e))?;
        self.expect('=')?;
        let data = match self.token.kind {
            Kind::Word("blob") => self.blob(length)?,
            _ => self.inline(ty.elem, length)?,
        };
        Ok(Const { name: name.into(), ty, layout, data })
    }

    fn layout(&mut self) -> Parsed<Layout> {
        const WORDS: [&str; 4] = ["dot4", "dot4nibbles", "bits", "groups"];
        let Some(word) = WORDS.into_iter().find(|word| self.eat_word(word)) else {
            return self.unexpected(&format!("a layout ({})", WORDS.join(", ")));
        };
        self.expect('(')?;
        let first = self.count()?;
        // too many bits are still too many as the largest number of them
        let bits = u32::try_from(first).unwrap_or(u32::MAX);
        let layout = match word {
            "dot4" => Layout::Dot4 { columns: first },
            "dot4nibbles" => Layout::Dot4Nibbles { columns: first },
            "bits" => Layout::Bits { bits },
            _ => {
                self.expect(',')?;
                Layout::Groups { bits, rows: self.count()? }
            }
        };
        self.expect(')')?;
        Ok(layout)
    }

    fn blob_of_scales(&mut self) -> Parsed<Vec<Real>> {
        let span = self.token.span;
        let (offset, length) = self.blob_range()?;
        if !length.is_multiple_of(size_of::<f64>()) {
            return Err(self.fail_at(span, "const-data", "scales are 8 bytes each".to_string()));
        }
        let bytes = self.blob_at(span, offset, length)?;
        Ok(bytemuck::allocation::pod_collect_to_vec::<u8, f64>(&bytes).into_iter().map(Real).collect())
    }

    fn blob(&mut self, wanted: usize) -> Parsed<Bytes> {
        let span = self.token.span;
        let (offset, length) = self.blob_range()?;
        if length != wanted {
            let message = format!("the type wants {wanted} bytes, the blob gives {length}");
            return Err(self.fail_at(span, "const-data", message));
        }
        self.blob_at(span, offset, length)
    }

    fn blob_range(&mut self) -> Parsed<(usize, usize)> {
        self.bump();
        self.expect('(')?;
        let offset = self.count()?;
        self.expect(',')?;
        let length = self.count()?;
        self.expect(')')?;
        Ok((offset, length))
    }

    fn blob_at(&mut self, span: Span, offset: usize, length: usize) -> Parsed<Bytes> {
        match offset.checked_add(length) {
            Some(end) if end <= self.blob.len() => Ok(self.blob.slice(offset..end)),
            _ => Err(self.fail_at(span, "const-data", format!("the blob has only {} bytes", self.blob.len()))),
        }
    }

    fn inline(&mut self, elem: Elem, wanted: usize) -> Parsed<Bytes> {
        let span = self.token.span;
        let mut data = Vec::new();
        let items = self.list('[', ']', |p| p.element(elem, &mut data))?;
        if data.len() == wanted {
            return Ok(data.into());
        }
        let message = format!("the type wants {} elements, the list has {}", wanted / elem.bytes(), items.len());
        Err(self.fail_at(span, "const-data", message))
    }

    fn element(&mut self, elem: Elem, data: &mut Vec<u8>) -> Parsed<()> {
        let span = self.token.span;
        let Some((lo, hi)) = elem.range() else {
            let exact = matches!(self.token.kind, Kind::Word(word) if word.contains("0x"));
            let value = self.real()?;
            let narrow = to_f32(value, exact);
            let narrow = narrow.ok_or_else(|| self.fail_at(span, "range", "this number is not an f32"))?;
            data.extend(narrow.to_le_bytes());
            return Ok(());
        };
        let value = self.int()?;
        if !(lo..=hi).contains(&value) {
            return Err(self.fail_at(span, "range", format!("{value} is not of type {elem}")));
        }
        data.extend(&value.to_le_bytes()[..elem.bytes()]);
        Ok(())
    }

    // ---- graph

    fn graph(&mut self) -> Parsed<()> {
        let outputs = match self.graph_header() {
            Ok(outputs) => outputs,
            Err(fail) => {
                self.report(fail);
                self.skip_block();
                return Err(Fail::Known);
            }
        };
        self.statements(Self::node)?;
        for (operand, name, span) in outputs {
            match self.resolve(operand, span) {
                Ok(value) => self.module.output(name, value),
                Err(fail) => self.report(fail),
            }
        }
        Ok(())
    }

    fn graph_header(&mut self) -> Parsed<Vec<(Ref, String, Span)>> {
        if std::mem::replace(&mut self.has_graph, true) {
            return Err(self.fail("duplicate-name", "a module has one graph"));
        }
        self.bump();
        self.list('(', ')', Self::graph_input)?;
        self.arrow()?;
        let outputs = self.list('(', ')', Self::graph_output)?;
        if self.token.kind != Kind::Punct('{') {
            return self.unexpected("`{`");
        }
        Ok(outputs)
    }

    fn graph_input(&mut self) -> Parsed<()> {
        let span = self.token.span;
        let Kind::Input(name) = &self.token.kind else { return self.unexpected("an input's name with `%`") };
        self.check_name(name)?;
        let name = name.clone();
        if self.inputs.contains_key(&name) {
            return Err(self.fail_at(span, "duplicate-name", "this input is given twice"));
        }
        self.bump();
        self.expect(':')?;
        let ty = self.ty()?;
        let value = self.module.input(name.clone(), ty);
        self.inputs.insert(name, value);
        Ok(())
    }

    fn graph_output(&mut self) -> Parsed<(Ref, String, Span)> {
        let span = self.token.span;
        let operand = self.operand()?;
        let name = self.string()?;
        self.check_name(&name)?;
        Ok((operand, name, span))
    }

    fn operand(&mut self) -> Parsed<Ref> {
        if !matches!(self.token.kind, Kind::Result(_) | Kind::Input(_) | Kind::Symbol(_)) {
            return self.unexpected("an operand");
        }
        match self.bump() {
            Kind::Result(n) => Ok(Ref::Result(n)),
            Kind::Input(name) => Ok(Ref::Input(name)),
            Kind::Symbol(name) => Ok(Ref::Const(name)),
            _ => Err(Fail::Known),
        }
    }

    fn resolve(&self, operand: Ref, span: Span) -> Parsed<ValueId> {
        let known = match operand {
            Ref::Result(n) => self.results.get(&n).copied(),
            Ref::Input(name) => self.inputs.get(&name).map(|v| Some(*v)),
            Ref::Const(name) => self.consts.get(&name).copied(),
        };
        match known {
            Some(value) => value.ok_or(Fail::Known),
            None => Err(self.fail_at(span, "unknown-name", "this value is not defined before its use")),
        }
    }

    fn node(&mut self) -> Parsed<()> {
        let span = self.token.span;
        let number = self.result_number()?;
        if self.results.contains_key(&number) {
            return Err(self.fail_at(span, "duplicate-name", format!("%{number} is defined twice")));
        }
        if self.module.nodes.len() >= limits::NODES {
            return Err(self.fail_at(span, "limit-nodes", format!("more than {} nodes", limits::NODES)));
        }
        let (value, outcome) = split(self.node_body());
        self.results.insert(number, value);
        outcome
    }

    fn node_body(&mut self) -> Parsed<ValueId> {
        self.expect('=')?;
        let span = self.token.span;
        let name = self.word("an op")?;
        let operands = self.operands()?;
        let attrs = match self.token.kind {
            Kind::Punct('{') => self.list('{', '}', Self::attr)?,
            _ => Vec::new(),
        };
        let op = Op::from_attrs(name, &attrs).map_err(|e| self.fail_at(span, "op", e))?;
        self.expect(':')?;
        let ty = self.ty()?;
        let place = if self.eat_word("at") { Some(self.count()?) } else { None };
        let region = if self.eat_word("region") { Some(self.count()?) } else { None };
        let loc = if self.eat_word("loc") { Some(self.loc()?) } else { None };
        Ok(self.add_node(Node { op, operands, result: ValueId(0), loc, place, region }, ty))
    }

    fn operands(&mut self) -> Parsed<Vec<ValueId>> {
        let mut operands = Vec::new();
        while matches!(self.token.kind, Kind::Result(_) | Kind::Input(_) | Kind::Symbol(_)) || !operands.is_empty() {
            let span = self.token.span;
            let operand = self.operand()?;
            operands.push(self.resolve(operand, span)?);
            if !self.eat(',') {
                break;
            }
        }
        Ok(operands)
    }

    fn loc(&mut self) -> Parsed<Arc<str>> {
        self.expect('(')?;
        let name = self.string()?;
        self.expect(')')?;
        Ok(name.into())
    }

    fn attr(&mut self) -> Parsed<(String, AttrValue)> {
        let name = self.word("an attribute")?;
        self.expect('=')?;
        Ok((name.into(), self.attr_value(0)?))
    }

    fn attr_value(&mut self, depth: usize) -> Parsed<AttrValue> {
        if depth > limits::NESTING {
            return Err(self.fail("limit-nesting", format!("lists nested deeper than {}", limits::NESTING)));
        }
        match self.token.kind {
            Kind::Punct('[') => self.list('[', ']', |p| p.attr_value(depth + 1)).map(AttrValue::List),
            Kind::Symbol(_) => self.symbol().map(AttrValue::Symbol),
            Kind::Word(word) => {
                self.bump();
                Ok(word_value(word))
            }
            _ => self.unexpected("an attribute's value"),
        }
    }

    // ---- the module being built

    fn add_value(&mut self, def: Def, ty: TensorType) -> ValueId {
        let id = ValueId(self.module.values.len() as u32);
        self.module.values.push(Value { def, ty });
        id
    }

    /// [`Module::constant`] would search all names again; here they are known to be unique.
    fn add_constant(&mut self, c: Const) -> ValueId {
        let value = self.add_value(Def::Const(self.module.consts.len()), c.ty.clone());
        self.module.consts.push(c);
        value
    }

    fn add_node(&mut self, node: Node, ty: TensorType) -> ValueId {
        let result = self.add_value(Def::Node(self.module.nodes.len()), ty);
        self.module.nodes.push(Node { result, ..node });
        result
    }
}

/// The value, if there is one, and the outcome.
fn split<T>(parsed: Parsed<T>) -> (Option<T>, Parsed<()>) {
    match parsed {
        Ok(value) => (Some(value), Ok(())),
        Err(fail) => (None, Err(fail)),
    }
}

fn parse_int(word: &str) -> Option<i64> {
    match word.strip_prefix("0x") {
        Some(hex) if !hex.starts_with('-') => i64::from_str_radix(hex, 16).ok(),
        _ => word.parse().ok(),
    }
}

fn parse_dim(word: &str) -> Option<Dim> {
    let (digits, batch) = word.strip_suffix('N').map_or((word, false), |digits| (digits, true));
    let size = match digits {
        "" if batch => 1,
        _ if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    Some(Dim { size, batch })
}

fn word_value(word: &str) -> AttrValue {
    if let Some(v) = parse_int(word) {
        return AttrValue::Int(v);
    }
    if let Some(dim) = parse_dim(word).filter(|d| d.batch) {
        return AttrValue::Dim(dim);
    }
    real::parse(word).map_or_else(|| AttrValue::Word(word.into()), AttrValue::Real)
}

/// The `f32` of this value; a decimal is rounded, a hexadecimal float is meant exactly.
fn to_f32(v: f64, exact: bool) -> Option<f32> {
    if v.is_nan() {
        return Some(f32::NAN);
    }
    let narrow = v as f32;
    let fits = if exact { f64::from(narrow) == v } else { narrow.is_finite() || v.is_infinite() };
    fits.then_some(narrow)
}
