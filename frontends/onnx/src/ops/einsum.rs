//! `Einsum` as transposes, sums, reshapes and matrix products: operands are joined two by two, from the left.

use vitc_ir::{Dim, Op, Shape, ValueId};

use super::Table;
use crate::call::Call;
use crate::import::shorten;
use crate::problem::{Fallible, Problem, invalid, unsupported};

pub(super) const OPS: Table = &[("Einsum", einsum)];

/// A dimension's name: a letter, or a number from 256 on for the dimensions that `...` stands for, the last one first.
type Label = u32;

/// The last of the dimensions that `...` stands for.
const ELLIPSIS: Label = 256;

/// A value with a name for each dimension.
#[derive(Clone, Debug, PartialEq)]
struct Term {
    value: ValueId,
    labels: Vec<Label>,
}

/// Operands at most, and bytes of the equation: the work grows with their square.
const MOST_OPERANDS: usize = 16;
const LONGEST: usize = 1000;

fn einsum(call: &mut Call<'_, '_>) -> Fallible<()> {
    let text = call.word_or("equation", "")?;
    if text.len() > LONGEST || call.node.input.len() > MOST_OPERANDS {
        return Err(unsupported("a long equation, or many operands"));
    }
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (text.as_str(), None),
    };
    let parts: Vec<&str> = left.split(',').collect();
    if parts.len() != call.node.input.len() {
        return Err(invalid(format!(
            "the equation `{}` is not about {} operands",
            shorten(&text),
            call.node.input.len()
        )));
    }
    let (mut terms, mut all) = (Vec::new(), Vec::new());
    for (i, part) in parts.iter().enumerate() {
        let value = call.tensor(i)?;
        let labels = labels(part, call.shape_of(value).rank()).ok_or_else(|| misread(&text))?;
        all.extend_from_slice(&labels);
        terms.push(diagonals(call, Term { value, labels })?);
    }
    let dots = all.iter().filter(|l| **l >= ELLIPSIS).max().map_or(0, |l| l - ELLIPSIS + 1);
    let wanted = match right {
        Some(right) => labels_after(right, dots as usize).ok_or_else(|| misread(&text))?,
        None => implied(&all, dots),
    };
    if wanted.iter().enumerate().any(|(i, l)| !all.contains(l) || wanted.iter().skip(i + 1).any(|o| o == l)) {
        return Err(misread(&text));
    }
    let mut terms = terms.into_iter();
    let mut result = terms.next().ok_or_else(|| misread(&text))?;
    while let Some(next) = terms.next() {
        let later = terms.as_slice().iter().flat_map(|t| t.labels.iter().copied());
        let kept: Vec<Label> = wanted.iter().copied().chain(later).collect();
        result = product(call, result, next, &kept)?;
    }
    let result = summed(call, result, &wanted)?;
    let value = arranged(call, &result, &wanted)?;
    call.give_value(value);
    Ok(())
}

fn misread(text: &str) -> Problem {
    invalid(format!("the equation `{}` does not fit its operands", shorten(text)))
}

/// Names of `rank` dimensions written as `b...ij`.
fn labels(part: &str, rank: usize) -> Option<Vec<Label>> {
    let letters = part.chars().filter(|c| *c != '.').count();
    labels_after(part, rank.checked_sub(letters)?).filter(|l| l.len() == rank)
}

/// Names where `...` stands for `dots` dimensions.
fn labels_after(part: &str, dots: usize) -> Option<Vec<Label>> {
    let letters =
        |s: &str| s.chars().map(|c| c.is_ascii_alphabetic().then_some(c as Label)).collect::<Option<Vec<_>>>();
    match part.split_once("...") {
        None => letters(part),
        Some((before, after)) => {
            let between = (0..dots as Label).rev().map(|i| ELLIPSIS + i);
            Some(letters(before)?.into_iter().chain(between).chain(letters(after)?).collect())
        }
    }
}

/// The result's names when none are given: those of `...`, then letters that occur once, in order.
fn implied(all: &[Label], dots: Label) -> Vec<Label> {
    let mut letters: Vec<Label> = all.iter().copied().filter(|l| *l < ELLIPSIS).collect();
    letters.sort_unstable();
    let once = letters.chunk_by(|a, b| a == b).filter_map(|same| if let [one] = same { Some(*one) } else { None });
    (0..dots).rev().map(|i| ELLIPSIS + i).chain(once).collect()
}

/// Dimensions of the same name joined to their diagonal.
fn diagonals(call: &mut Call<'_, '_>, mut term: Term) -> Fallible<Term> {
    let repeated = |labels: &[Label]| {
        let mut pairs = (0..labels.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        pairs.find(|&(i, j)| labels.get(i) == labels.get(j))
    };
    while let Some((first, second)) = repeated(&term.labels) {
        let rank = term.labels.len();
        let shape = call.shape_of(term.value);
        let perm: Vec<usize> = (0..rank).filter(|a| *a != first && *a != second).chain([first, second]).collect();
        let dims = [first, second].map(|a| shape.0.get(a).copied().and_then(Dim::as_fixed));
        let [Some(size), Some(other)] = dims else { return Err(unsupported("a diagonal over the batch")) };
        if size != other {
            return Err(invalid(format!("a diagonal of {size} by {other}")));
        }
        let kept = perm.iter().take(rank - 2).filter_map(|&a| shape.0.get(a)).copied();
        let count = size.checked_mul(size).ok_or_else(|| invalid("too many elements"))?;
        let turned = call.transpose(term.value, perm.clone())?;
        let flat = call.reshape(turned, Shape(kept.chain([Dim::fixed(count)]).collect()))?;
        super::map::room(call, flat, size)?;
        term.value = super::map::choose(call, flat, rank - 2, (0..size).map(|i| i * (size + 1)).collect())?;
        term.labels = perm.iter().take(rank - 1).filter_map(|&a| term.labels.get(a)).copied().collect();
    }
    Ok(term)
}

/// Sums over the dimensions that nobody wants.
fn summed(call: &mut Call<'_, '_>, term: Term, kept: &[Label]) -> Fallible<Term> {
    let axes: Vec<usize> =
        (0..term.labels.len()).filter(|&a| term.labels.get(a).is_some_and(|l| !kept.contains(l))).collect();
    if axes.is_empty() {
        return Ok(term);
    }
    let value = call.push(Op::ReduceSum { axes, keep: false }, &[term.value])?;
    Ok(Term { value, labels: term.labels.into_iter().filter(|l| kept.contains(l)).collect() })
}

/// The value with its dimensions in this order, which has the same names.
fn arranged(call: &mut Call<'_, '_>, term: &Term, order: &[Label]) -> Fallible<ValueId> {
    let perm: Option<Vec<usize>> = order.iter().map(|l| term.labels.iter().position(|o| o == l)).collect();
    let perm = perm.filter(|p| p.len() == term.labels.len()).ok_or_else(|| invalid("a dimension is missing"))?;
    call.transpose(term.value, perm)
}

/// The product of two terms, summed over the dimensions that are not kept.
fn product(call: &mut Call<'_, '_>, a: Term, b: Term, kept: &[Label]) -> Fallible<Term> {
    // What one operand alone has and nobody wants is summed first.
    let (for_a, for_b) = ([&b.labels, kept].concat(), [&a.labels, kept].concat());
    let (a, b) = (summed(call, a, &for_a)?, summed(call, b, &for_b)?);
    let both = |l: &&Label| b.labels.contains(l);
    let batch: Vec<Label> = a.labels.iter().filter(both).filter(|l| kept.contains(l)).copied().collect();
    let inner: Vec<Label> = a.labels.iter().filter(both).filter(|l| !kept.contains(l)).copied().collect();
    let rows: Vec<Label> = a.labels.iter().filter(|l| !both(l)).copied().collect();
    let columns: Vec<Label> = b.labels.iter().filter(|l| !a.labels.contains(l)).copied().collect();
    let left = matrices(call, &a, &batch, &rows, &inner)?;
    let right = matrices(call, &b, &batch, &inner, &columns)?;
    let product = call.push(Op::MatMul {}, &[left, right])?;
    let outer = call.shape_of(product).0.into_iter().take(batch.len()).collect::<Vec<_>>();
    let shape = [outer, dims_of(call, &a, &rows)?, dims_of(call, &b, &columns)?].concat();
    let value = call.reshape(product, Shape(shape))?;
    Ok(Term { value, labels: [batch, rows, columns].concat() })
}

fn dims_of(call: &Call<'_, '_>, term: &Term, labels: &[Label]) -> Fallible<Vec<Dim>> {
    let shape = call.shape_of(term.value);
    let dim = |l: &Label| term.labels.iter().position(|o| o == l).and_then(|a| shape.0.get(a)).copied();
    labels.iter().map(dim).collect::<Option<_>>().ok_or_else(|| invalid("a dimension is missing"))
}

/// The term as matrices: `rows` joined to one dimension, and so `columns`.
fn matrices(
    call: &mut Call<'_, '_>,
    term: &Term,
    batch: &[Label],
    rows: &[Label],
    columns: &[Label],
) -> Fallible<ValueId> {
    let turned = arranged(call, term, &[batch, rows, columns].concat())?;
    let joined = |dims: Vec<Dim>| dims.into_iter().try_fold(Dim::fixed(1), |acc, d| acc.times(d));
    let mut shape = dims_of(call, term, batch)?;
    for labels in [rows, columns] {
        let dim = joined(dims_of(call, term, labels)?);
        shape.push(dim.ok_or_else(|| unsupported("too many elements, or the batch twice"))?);
    }
    call.reshape(turned, Shape(shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_their_dots() {
        assert_eq!(labels("bij", 3), Some(vec![98, 105, 106]));
        assert_eq!(labels("...ij", 4), Some(vec![257, 256, 105, 106]));
        assert_eq!(labels("b...", 1), Some(vec![98]));
        assert_eq!(labels("bij", 2), None);
        assert_eq!(labels("b.ij", 4), None);
        assert_eq!(labels("b1", 2), None);
    }
}
