//! NumPy's `.npy` (format 1, 2 and 3) and `.npz` (stored or deflated) files.
//!
//! Read: little-endian f4, f8, i1, u1, i2, i4, i8 in C order; write: f4 and i4. The header's claims are checked against
//! the bytes that are there before anything is allocated, and the payload must fill the file exactly.

use super::atomic::write_atomically;
use super::read_bounded;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;

/// Largest file, and largest sum of unpacked arrays of an archive.
pub const MAX_BYTES: u64 = 4 << 30;
/// Most arrays of an archive.
pub const MAX_ARRAYS: usize = 10_000;
/// Highest rank of an array.
pub const MAX_RANK: usize = 8;

const MAGIC: &[u8] = b"\x93NUMPY";
const MAX_HEADER: usize = 64 << 10;

/// The elements of an array, in C order.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// `<f4`
    F32(Vec<f32>),
    /// `<f8`
    F64(Vec<f64>),
    /// `|i1`
    I8(Vec<i8>),
    /// `|u1`
    U8(Vec<u8>),
    /// `<i2`
    I16(Vec<i16>),
    /// `<i4`
    I32(Vec<i32>),
    /// `<i8`
    I64(Vec<i64>),
}

impl Elements {
    /// NumPy's name of the element type, such as `float32`.
    pub fn dtype(&self) -> &'static str {
        match self {
            Elements::F32(_) => "float32",
            Elements::F64(_) => "float64",
            Elements::I8(_) => "int8",
            Elements::U8(_) => "uint8",
            Elements::I16(_) => "int16",
            Elements::I32(_) => "int32",
            Elements::I64(_) => "int64",
        }
    }

    /// The elements as f32, rounded where f32 cannot hold them.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Elements::F32(v) => v.clone(),
            Elements::F64(v) => v.iter().map(|x| *x as f32).collect(),
            Elements::I8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Elements::U8(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Elements::I16(v) => v.iter().map(|x| f32::from(*x)).collect(),
            Elements::I32(v) => v.iter().map(|x| *x as f32).collect(),
            Elements::I64(v) => v.iter().map(|x| *x as f32).collect(),
        }
    }
}

/// An array in C order.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Extent of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many elements as the product of the shape.
    pub elements: Elements,
}

/// Reads a `.npy` file.
pub fn read_npy(path: &Path) -> Result<Array> {
    let bytes = read_bounded(path, MAX_BYTES, "a .npy file")?;
    parse_npy(&bytes).with_context(|| format!("array file '{}'", path.display()))
}

/// Reads all arrays of a `.npz` file, by name.
pub fn read_npz(path: &Path) -> Result<BTreeMap<String, Array>> {
    let bytes = read_bounded(path, MAX_BYTES, "a .npz file")?;
    parse_npz(&bytes).with_context(|| format!("array archive '{}'", path.display()))
}

/// Writes an f32 array, whole or not at all.
pub fn write_npy_f32(path: &Path, shape: &[usize], values: &[f32]) -> Result<()> {
    write_npy(path, "<f4", shape, values, |v| v.to_le_bytes())
}

/// Writes an i32 array, whole or not at all.
pub fn write_npy_i32(path: &Path, shape: &[usize], values: &[i32]) -> Result<()> {
    write_npy(path, "<i4", shape, values, |v| v.to_le_bytes())
}

fn write_npy<T>(path: &Path, descr: &str, shape: &[usize], values: &[T], le: impl Fn(&T) -> [u8; 4]) -> Result<()> {
    let (count, stands) = (element_count(shape)?, values.len());
    ensure!(count == stands, "shape {shape:?} has {count} elements, but there are {stands} to write");
    write_atomically(path, |file| {
        file.write_all(&header(descr, shape))?;
        values.iter().try_for_each(|v| file.write_all(&le(v)))?;
        Ok(())
    })
}

/// A format 1 header, padded with spaces so that the data is aligned to 64 bytes.
fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({dims}), }}");
    let unpadded = MAGIC.len() + 4 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(64) - unpadded));
    text.push('\n');
    [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// Parses the bytes of a `.npy` file.
pub fn parse_npy(file: &[u8]) -> Result<Array> {
    let (header, data) = split_header(file)?;
    let Header { descr, fortran, shape } = parse_header(header)?;
    ensure!(!fortran, "is in Fortran order; save it with numpy.ascontiguousarray(x)");
    ensure!(shape.len() <= MAX_RANK, "has rank {}; at most {MAX_RANK} is read; reshape it", shape.len());
    let elements = decode(&descr, element_count(&shape)?, data)?;
    Ok(Array { shape, elements })
}

fn element_count(shape: &[usize]) -> Result<usize> {
    let product = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    product.ok_or_else(|| anyhow!("shape {shape:?} has too many elements"))
}

/// The header's text and the bytes after it.
fn split_header(file: &[u8]) -> Result<(&str, &[u8])> {
    let rest = file.strip_prefix(MAGIC).context("is not a .npy file; write it with numpy.save")?;
    let (version, rest) = take(rest, 2)?;
    let (length, rest) = match version[0] {
        1 => take(rest, 2)?,
        2 | 3 => take(rest, 4)?,
        other => bail!("has .npy format {other}; formats 1, 2 and 3 are read"),
    };
    let length = length.iter().rev().fold(0usize, |n, b| n << 8 | usize::from(*b));
    ensure!(length <= MAX_HEADER, "claims a header of {length} bytes; at most {MAX_HEADER} are read");
    let (text, data) = take(rest, length)?;
    Ok((std::str::from_utf8(text).context("has a header that is not text; the file is damaged")?, data))
}

fn take(bytes: &[u8], count: usize) -> Result<(&[u8], &[u8])> {
    bytes.split_at_checked(count).context("ends inside its header; the file is incomplete")
}

/// The three fields of a header.
#[derive(Debug, Default, PartialEq)]
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

/// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`, keys in any order, each once.
fn parse_header(text: &str) -> Result<Header> {
    let mut scan = Scan(text);
    let (mut descr, mut fortran, mut shape) = (None, None, None);
    scan.expect("{")?;
    while !scan.eat("}") {
        let key = scan.string()?;
        scan.expect(":")?;
        let repeated = match key {
            "descr" => descr.replace(scan.descr()?).is_some(),
            "fortran_order" => fortran.replace(scan.boolean()?).is_some(),
            "shape" => shape.replace(scan.tuple()?).is_some(),
            other => bail!("has an unknown header field '{other}'; write it with numpy.save"),
        };
        ensure!(!repeated, "has the header field '{key}' twice; write it with numpy.save");
        if !scan.eat(",") {
            scan.expect("}")?;
            break;
        }
    }
    ensure!(scan.0.trim().is_empty(), "has text after its header; write it with numpy.save");
    let missing = |name| format!("has no header field '{name}'; write it with numpy.save");
    Ok(Header {
        descr: descr.with_context(|| missing("descr"))?,
        fortran: fortran.with_context(|| missing("fortran_order"))?,
        shape: shape.with_context(|| missing("shape"))?,
    })
}

/// What is left of a header.
struct Scan<'a>(&'a str);

impl<'a> Scan<'a> {
    fn eat(&mut self, token: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(token);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, token: &str) -> Result<()> {
        let found: String = self.0.trim_start().chars().take(20).collect();
        ensure!(self.eat(token), "has a malformed header: '{token}' expected at '{found}'; write it with numpy.save");
        Ok(())
    }

    fn string(&mut self) -> Result<&'a str> {
        let quote = if self.eat("\"") { '"' } else { self.expect("'").map(|()| '\'')? };
        let (text, rest) = self.0.split_once(quote).context("has a malformed header: a string without end")?;
        self.0 = rest;
        Ok(text)
    }

    fn descr(&mut self) -> Result<String> {
        ensure!(!self.0.trim_start().starts_with('['), "holds records; save each field as an array of its own");
        self.string().map(str::to_owned)
    }

    fn boolean(&mut self) -> Result<bool> {
        if self.eat("True") { Ok(true) } else { self.expect("False").map(|()| false) }
    }

    fn tuple(&mut self) -> Result<Vec<usize>> {
        let mut items = Vec::new();
        self.expect("(")?;
        while !self.eat(")") {
            items.push(self.integer()?);
            if !self.eat(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(items)
    }

    fn integer(&mut self) -> Result<usize> {
        let text = self.0.trim_start();
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        self.0 = text[end..].strip_prefix('L').unwrap_or(&text[end..]);
        text[..end].parse().with_context(|| format!("has a malformed shape: '{}'", &text[..end]))
    }
}

/// Decodes `count` elements of the type `descr`, which must be all of `data`.
fn decode(descr: &str, count: usize, data: &[u8]) -> Result<Elements> {
    Ok(match descr {
        "<f4" => Elements::F32(values(count, data, f32::from_le_bytes)?),
        "<f8" => Elements::F64(values(count, data, f64::from_le_bytes)?),
        "|i1" | "<i1" => Elements::I8(values(count, data, i8::from_le_bytes)?),
        "|u1" | "<u1" => Elements::U8(values(count, data, u8::from_le_bytes)?),
        "<i2" => Elements::I16(values(count, data, i16::from_le_bytes)?),
        "<i4" => Elements::I32(values(count, data, i32::from_le_bytes)?),
        "<i8" => Elements::I64(values(count, data, i64::from_le_bytes)?),
        other => bail!("has the element type '{other}'; convert it, for example with x.astype('<f4')"),
    })
}

fn values<T, const N: usize>(count: usize, data: &[u8], from: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let (chunks, rest) = data.as_chunks::<N>();
    let (have, want) = (data.len(), count.saturating_mul(N));
    ensure!(rest.is_empty() && chunks.len() == count, "holds {have} bytes of data where its shape needs {want}");
    Ok(chunks.iter().map(|c| from(*c)).collect())
}

/// Parses the bytes of a `.npz` archive.
pub fn parse_npz(file: &[u8]) -> Result<BTreeMap<String, Array>> {
    let mut archive =
        zip::ZipArchive::new(Cursor::new(file)).context("is not a .npz file; write it with numpy.savez")?;
    ensure!(archive.len() <= MAX_ARRAYS, "has {} entries; at most {MAX_ARRAYS} are read", archive.len());
    let mut arrays = BTreeMap::new();
    let mut budget = MAX_BYTES;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).with_context(|| format!("entry {index} cannot be read"))?;
        let name = entry.name().context("has an entry whose name is not text")?.into_owned();
        let array = read_entry(entry, &mut budget).with_context(|| format!("entry '{name}'"))?;
        arrays.insert(name.strip_suffix(".npy").unwrap_or(&name).to_owned(), array);
    }
    Ok(arrays)
}

/// Unpacks one entry, growing with the bytes that come out and not with what the archive claims.
fn read_entry(entry: impl Read, budget: &mut u64) -> Result<Array> {
    let mut bytes = Vec::new();
    entry.take(*budget + 1).read_to_end(&mut bytes).context("is damaged")?;
    *budget = budget
        .checked_sub(bytes.len() as u64)
        .with_context(|| format!("exceeds {MAX_BYTES} bytes unpacked; split the archive"))?;
    parse_npy(&bytes)
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;
