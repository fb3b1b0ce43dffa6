//! One node being imported: its operands, attributes and results, and the means to add nodes to the module.

use std::rc::Rc;
use std::sync::Arc;

use vitc_ir::{Op, Quant, Shape, ValueId};

use crate::import::{Importer, Repeated, Slot, listed, shorten};
use crate::known::{Kind, Known, Linear};
use crate::problem::{Fallible, invalid, unsupported};
use crate::proto::{self, kind};

/// Float constants up to this many elements are evaluated at import; larger ones are left to the passes.
pub(crate) const SMALL: usize = 64;

/// A node being imported.
pub(crate) struct Call<'i, 'a> {
    pub(crate) importer: &'i mut Importer<'a>,
    pub(crate) node: &'a proto::Node,
    /// What was computed for each output; filled by the handler.
    pub(crate) outputs: Vec<Option<Slot<'a>>>,
    loc: Arc<str>,
    /// Known elements of all operands, once counted.
    operand_elements: Option<usize>,
}

impl<'i, 'a> Call<'i, 'a> {
    pub(crate) fn new(importer: &'i mut Importer<'a>, node: &'a proto::Node, loc: Arc<str>) -> Call<'i, 'a> {
        Call { importer, node, outputs: Vec::new(), loc, operand_elements: None }
    }

    // ---- operands

    /// The name of operand `i`, when it is given.
    pub(crate) fn name(&self, i: usize) -> Option<&'a str> {
        self.node.input.get(i).map(String::as_str).filter(|n| !n.is_empty())
    }

    fn required(&self, i: usize) -> Fallible<&'a str> {
        self.name(i).ok_or_else(|| invalid(format!("operand {i} is missing")))
    }

    /// What is known about operand `i`.
    pub(crate) fn slot(&self, i: usize) -> Fallible<Slot<'a>> {
        let name = self.required(i)?;
        self.importer.slots.get(name).cloned().ok_or_else(|| invalid(format!("operand {i} is not defined")))
    }

    /// Operand `i` as a float value of the module.
    pub(crate) fn tensor(&mut self, i: usize) -> Fallible<ValueId> {
        let name = self.required(i)?;
        self.importer.materialise(name)
    }

    /// Operand `i` as a float value of the module, when it is given.
    pub(crate) fn optional(&mut self, i: usize) -> Fallible<Option<ValueId>> {
        self.name(i).map(|name| self.importer.materialise(name)).transpose()
    }

    /// The content of operand `i`, when it is known and (for float constants) small.
    pub(crate) fn known(&mut self, i: usize) -> Fallible<Option<Rc<Known>>> {
        self.known_up_to(i, SMALL)
    }

    /// The content of operand `i`, when it is known and (for float constants) of at most `most` elements.
    pub(crate) fn known_up_to(&mut self, i: usize, most: usize) -> Fallible<Option<Rc<Known>>> {
        match self.name(i) {
            Some(name) => self.importer.known(name, most),
            None => Ok(None),
        }
    }

    /// The content of operand `i`, which the op needs to know; `what` names it.
    pub(crate) fn content(&mut self, i: usize, what: &str) -> Fallible<Rc<Known>> {
        self.required(i)?;
        let known = self.known_up_to(i, usize::MAX)?;
        let help = "vitc compiles fixed shapes: export with a fixed image size and constant indices";
        known.ok_or_else(|| unsupported(format!("{what} depends on the data of the image")).help(help))
    }

    /// The content of operand `i` for one image, when it is known and the same for every image; of float constants at most
    /// `most` elements.
    pub(crate) fn known_or_repeated(&mut self, i: usize, most: usize) -> Fallible<Option<Rc<Known>>> {
        match self.slot(i)?.repeated {
            Some(Repeated { content, .. }) => Ok(Some(content)),
            None => self.known_up_to(i, most),
        }
    }

    /// The content of operand `i`, which the op needs to know for one image; `what` names it. Says also whether it is repeated
    /// over the batch.
    pub(crate) fn content_of_image(&mut self, i: usize, what: &str) -> Fallible<(Rc<Known>, bool)> {
        match self.slot(i)?.repeated {
            Some(Repeated { content, .. }) => Ok((content, true)),
            None => Ok((self.content(i, what)?, false)),
        }
    }

    /// The shape that the first `count` operands broadcast to.
    pub(crate) fn joint_shape(&self, count: usize) -> Fallible<Shape> {
        (0..count)
            .try_fold(Shape::default(), |all, i| vitc_ir::infer::broadcast(&all, &self.shape(i)?).map_err(invalid))
    }

    /// Operand `i` as integers, when it is given.
    pub(crate) fn integers(&mut self, i: usize, what: &str) -> Fallible<Option<Vec<i64>>> {
        match self.name(i) {
            Some(_) => self.content(i, what)?.integers().map(Some),
            None => Ok(None),
        }
    }

    /// Numbers that are an operand in newer opsets and were an attribute in older ones, when they are given.
    pub(crate) fn number_or_attr(&mut self, i: usize, attr: &str, what: &str) -> Fallible<Option<f64>> {
        if self.name(i).is_none() {
            return Ok(self.attr(attr, kind::FLOAT)?.map(|a| a.f.into()));
        }
        let number = self.content(i, what)?.single().and_then(Linear::fixed);
        number.map(Some).ok_or_else(|| unsupported(format!("{what} is not one number")))
    }

    /// Integers that are an operand in newer opsets and were an attribute in older ones.
    pub(crate) fn integers_or_attr(&mut self, i: usize, attr: &str) -> Fallible<Option<Vec<i64>>> {
        match self.integers(i, attr)? {
            Some(list) => Ok(Some(list)),
            None => Ok(self.ints(attr)?.map(<[i64]>::to_vec)),
        }
    }

    /// The shape of operand `i`.
    pub(crate) fn shape(&self, i: usize) -> Fallible<Shape> {
        let name = self.required(i)?;
        self.importer.shape(name).ok_or_else(|| unsupported(format!("the shape of operand {i} is not known")))
    }

    /// The shape of a value of the module.
    pub(crate) fn shape_of(&self, value: ValueId) -> Shape {
        self.importer.module.ty(value).shape.clone()
    }

    // ---- attributes

    fn attr(&self, name: &str, kind: i32) -> Fallible<Option<&'a proto::Attribute>> {
        match self.node.attribute.iter().find(|a| a.name == name) {
            Some(a) if a.kind == kind => Ok(Some(a)),
            Some(_) => Err(invalid(format!("attribute `{name}` has the wrong type"))),
            None => Ok(None),
        }
    }

    /// An integer attribute, when it is given.
    pub(crate) fn int(&self, name: &str) -> Fallible<Option<i64>> {
        Ok(self.attr(name, kind::INT)?.map(|a| a.i))
    }

    /// An integer attribute or its default.
    pub(crate) fn int_or(&self, name: &str, default: i64) -> Fallible<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A list of integers, when it is given.
    pub(crate) fn ints(&self, name: &str) -> Fallible<Option<&'a [i64]>> {
        Ok(self.attr(name, kind::INTS)?.map(|a| a.ints.as_slice()))
    }

    /// A list of counts, when it is given.
    pub(crate) fn counts(&self, name: &str) -> Fallible<Option<Vec<usize>>> {
        let Some(list) = self.ints(name)? else { return Ok(None) };
        let counts: Option<Vec<usize>> = list.iter().map(|&v| usize::try_from(v).ok()).collect();
        counts.map(Some).ok_or_else(|| unsupported(format!("negative numbers in `{name}`: {}", listed(list))))
    }

    /// A float attribute or its default.
    pub(crate) fn float_or(&self, name: &str, default: f32) -> Fallible<f32> {
        Ok(self.attr(name, kind::FLOAT)?.map_or(default, |a| a.f))
    }

    /// A text attribute or its default.
    pub(crate) fn word_or(&self, name: &str, default: &'static str) -> Fallible<&'a str> {
        match self.attr(name, kind::STRING)? {
            Some(a) => std::str::from_utf8(&a.s).map_err(|_| invalid(format!("attribute `{name}` is not text"))),
            None => Ok(default),
        }
    }

    /// A tensor attribute, when it is given.
    pub(crate) fn tensor_attr(&self, name: &str) -> Fallible<Option<&'a proto::Tensor>> {
        Ok(self.attr(name, kind::TENSOR)?.and_then(|a| a.t.as_ref()))
    }

    /// A graph attribute, when it is given.
    pub(crate) fn graph_attr(&self, name: &str) -> Fallible<Option<&'a proto::Graph>> {
        Ok(self.attr(name, kind::GRAPH)?.and_then(|a| a.g.as_ref()))
    }

    /// An axis that may count from the end of `rank` dimensions.
    pub(crate) fn axis(&self, axis: i64, rank: usize) -> Fallible<usize> {
        resolve_axis(axis, rank)
    }

    /// Axes that may count from the end, each once.
    pub(crate) fn axes(&self, axes: &[i64], rank: usize) -> Fallible<Vec<usize>> {
        if axes.len() > rank {
            return Err(invalid(format!("{} axes of {rank} dimensions", axes.len())));
        }
        let mut list = Vec::with_capacity(axes.len());
        for &axis in axes {
            let axis = resolve_axis(axis, rank)?;
            if list.contains(&axis) {
                return Err(invalid(format!("axis {axis} is given twice")));
            }
            list.push(axis);
        }
        Ok(list)
    }

    // ---- results

    /// Adds a node.
    pub(crate) fn push(&mut self, op: Op, operands: &[ValueId]) -> Fallible<ValueId> {
        self.importer.push(op, operands, &self.loc)
    }

    /// Adds a node whose result has this quantization.
    pub(crate) fn push_as(&mut self, op: Op, operands: &[ValueId], quant: Quant) -> Fallible<ValueId> {
        self.importer.push_as(op, operands, Some(quant), &self.loc)
    }

    /// Adds a reshape, unless the shape is already that.
    pub(crate) fn reshape(&mut self, x: ValueId, shape: Shape) -> Fallible<ValueId> {
        if self.shape_of(x) == shape { Ok(x) } else { self.push(Op::Reshape { shape }, &[x]) }
    }

    /// Adds a transpose, unless it moves nothing.
    pub(crate) fn transpose(&mut self, x: ValueId, perm: Vec<usize>) -> Fallible<ValueId> {
        if perm.iter().copied().eq(0..perm.len()) { Ok(x) } else { self.push(Op::Transpose { perm }, &[x]) }
    }

    /// A float constant of one element.
    pub(crate) fn scalar(&mut self, value: f64) -> ValueId {
        let name = format!("{}.scalar", self.loc);
        self.importer.constant(&name, Shape::default(), (value as f32).to_le_bytes().to_vec().into())
    }

    /// A float constant with this content, made by the decomposition of the op.
    pub(crate) fn constant(&mut self, what: &str, known: &Known) -> Fallible<ValueId> {
        let name = format!("{}.{what}", self.loc);
        self.importer.constant_of_known(&name, known)
    }

    /// A float constant of `count` equal elements.
    pub(crate) fn filled(&mut self, what: &str, value: f32, dims: &[usize]) -> Fallible<ValueId> {
        let count = crate::known::count(dims).ok_or_else(|| invalid("too many elements"))?;
        self.room(count)?;
        let name = format!("{}.{what}", self.loc);
        let data = value.to_le_bytes().repeat(count);
        Ok(self.importer.constant(&name, Shape::fixed(dims), data.into()))
    }

    /// A float constant of these elements, made by the decomposition of the op. The caller has accounted for them.
    pub(crate) fn floats(&mut self, what: &str, dims: &[usize], elements: &[f32]) -> ValueId {
        let name = format!("{}.{what}", self.loc);
        let data: Vec<u8> = elements.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.importer.constant(&name, Shape::fixed(dims), data.into())
    }

    /// Accounts for a known result of `count` elements, before it is made.
    pub(crate) fn room(&mut self, count: usize) -> Fallible<()> {
        let operands = match self.operand_elements {
            Some(elements) => elements,
            None => self.count_operands(),
        };
        self.operand_elements = Some(operands);
        self.importer.grow(count, operands)
    }

    fn count_operands(&self) -> usize {
        let known = |name: &String| {
            let slot = self.importer.slots.get(name.as_str())?;
            let content = slot.known.as_ref().or(slot.repeated.as_ref().map(|r| &r.content));
            content.or(slot.counted.as_ref().map(|c| c.content())).map(|k| k.data.len())
        };
        self.node.input.iter().filter_map(known).fold(0usize, usize::saturating_add)
    }

    /// The next output is this slot.
    pub(crate) fn give(&mut self, slot: Slot<'a>) {
        self.outputs.push(Some(slot));
    }

    /// The next output is this value.
    pub(crate) fn give_value(&mut self, value: ValueId) {
        self.give(Slot { value: Some(value), ..Slot::default() });
    }

    /// The next output has this content.
    pub(crate) fn give_known(&mut self, known: Known) {
        self.give(Slot { known: Some(Rc::new(known)), ..Slot::default() });
    }

    /// The next output has this content for every image, and this shape.
    pub(crate) fn give_repeated(&mut self, known: Known, shape: Shape) {
        let repeated = Some(Repeated { content: Rc::new(known), shape });
        self.give(Slot { repeated, ..Slot::default() });
    }

    /// The next output is operand `i`.
    pub(crate) fn give_operand(&mut self, i: usize) -> Fallible<()> {
        let slot = self.slot(i)?;
        self.give(slot);
        Ok(())
    }

    /// An integer vector as the only output.
    pub(crate) fn give_vector(&mut self, data: Vec<Linear>) -> Fallible<()> {
        self.room(data.len())?;
        self.give_known(Known::vector(Kind::Int, data));
        Ok(())
    }

    /// An error when an output beyond the first `most` has users.
    pub(crate) fn only_outputs(&self, most: usize) -> Fallible<()> {
        match self.node.output.iter().skip(most).find(|o| self.importer.used.contains(o.as_str())) {
            Some(name) => Err(unsupported(format!("the additional output `{}` is not supported", shorten(name)))),
            None => Ok(()),
        }
    }
}

/// An axis that may count from the end.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Fallible<usize> {
    let from_start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let resolved = from_start.and_then(|a| usize::try_from(a).ok()).filter(|&a| a < rank);
    resolved.ok_or_else(|| invalid(format!("axis {axis} is outside a shape of rank {rank}")))
}
