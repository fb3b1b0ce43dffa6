//! Counts the fields of an encoded model before it is decoded, so that a small file cannot ask for a large memory: an empty
//! node takes two bytes encoded and a few hundred decoded.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::limits::Limits;

/// Which of a message's fields are messages worth counting, and what they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Other,
}

impl Message {
    fn child(self, tag: u32) -> Option<Message> {
        match (self, tag) {
            (Message::Model, 7) => Some(Message::Graph),
            (Message::Model, 8 | 25) => Some(Message::Other),
            (Message::Graph, 1) => Some(Message::Node),
            (Message::Graph, 5) => Some(Message::Tensor),
            (Message::Graph, 11 | 12 | 15) => Some(Message::Other),
            (Message::Node, 5) => Some(Message::Attribute),
            (Message::Attribute, 5) => Some(Message::Tensor),
            (Message::Tensor, 13) => Some(Message::Other),
            _ => None,
        }
    }
}

/// What was counted.
#[derive(Default)]
struct Counts {
    fields: usize,
    nodes: usize,
    initializers: usize,
}

/// Checks the counts against the limits; an error says which limit, or that this is not protobuf.
pub(crate) fn check(bytes: &[u8], limits: &Limits) -> Result<(), String> {
    let mut counts = Counts::default();
    // Work list instead of recursion: the depth of messages is the file's to choose.
    let mut work = vec![(Message::Model, bytes)];
    while let Some((message, body)) = work.pop() {
        scan(message, body, &mut counts, &mut work, limits)?;
    }
    Ok(())
}

fn scan<'a>(
    message: Message,
    mut body: &'a [u8],
    counts: &mut Counts,
    work: &mut Vec<(Message, &'a [u8])>,
    limits: &Limits,
) -> Result<(), String> {
    let damaged = |e: prost::DecodeError| format!("not a readable ONNX file: {e}");
    while !body.is_empty() {
        let (tag, wire) = decode_key(&mut body).map_err(damaged)?;
        counts.fields += 1;
        counts.nodes += usize::from(message == Message::Graph && tag == 1);
        counts.initializers += usize::from(message == Message::Graph && tag == 5);
        check_count("encoded fields", counts.fields, limits.fields)?;
        check_count("nodes", counts.nodes, limits.nodes)?;
        check_count("initializers", counts.initializers, limits.initializers)?;
        match (message.child(tag), wire) {
            (Some(child), WireType::LengthDelimited) => {
                let len = decode_varint(&mut body).map_err(damaged)?;
                let split = usize::try_from(len).ok().and_then(|len| body.split_at_checked(len));
                let (inner, rest) = split.ok_or("not a readable ONNX file: it ends in the middle of a message")?;
                work.push((child, inner));
                body = rest;
            }
            _ => skip_field(wire, tag, &mut body, DecodeContext::default()).map_err(damaged)?,
        }
    }
    Ok(())
}

fn check_count(what: &str, count: usize, limit: usize) -> Result<(), String> {
    if count <= limit { Ok(()) } else { Err(format!("the model has more than {limit} {what}")) }
}
