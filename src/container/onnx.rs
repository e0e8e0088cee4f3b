//! ONNX models whose weights lie in other files: parse, and render with weights moved and products
//! replaced.
//!
//! A model is a message of Protocol Buffers. It is walked where it lies, and rendered by copying every
//! field that does not change, in order, whether this module knows it or not. What it looks for is
//! every tensor whose bytes lie outside (at any depth: initializers, attributes, the bodies of `If` and
//! `Loop`, functions), and the `MatMul` nodes of the graph and of the bodies in it.
//!
//! A parsed model says nothing wrong of its tensors: each has a location, dimensions that can be
//! counted, and a range; initializers have names of their own. Whether the files are there, and
//! whether the operators make sense, it does not know.

mod render;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use crate::{
    container::{
        Malformed,
        protobuf::{Field, Message, Value},
        quoted,
    },
    tensor::{Dtype, byte_len},
};

pub use render::{Edit, NBits, Part, render};

/// Longest model in bytes. The graph of the largest models takes some MiB when their weights lie
/// elsewhere; this much is read and kept.
pub const MAX_MODEL: u64 = 64 << 20;

/// Most messages within messages; Protocol Buffers' own parsers stop there.
const MAX_DEPTH: usize = 100;

/// Most fields of all messages; the largest graphs have some hundred thousand, and without a cap a file of the
/// greatest length would be walked for a minute.
const MAX_FIELDS: usize = 4_000_000;

/// Most names, and most tensors outside, of a model: without a cap a file of the greatest length could
/// ask for twenty times its size.
const MAX_NAMES: usize = 1_000_000;

/// Most dimensions of a tensor, as in the other containers.
const MAX_RANK: usize = 64;

/// The domain of the operators that are onnxruntime's own.
const MICROSOFT: &str = "com.microsoft";

/// The word for tensors in another file, `TensorProto.EXTERNAL`.
const EXTERNAL: u64 = 1;

/// What is read of a model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Every tensor whose bytes lie outside, in the order of the file.
    pub tensors: Vec<External>,
    /// How many `MatMul` nodes have a second factor that lies in the model itself.
    pub inline: usize,
    /// How many nodes are `MatMulNBits`.
    pub nbits: usize,
    /// Of each plain `MatMul` in the order of the file, which of the tensors is its second factor.
    factors: Vec<Option<usize>>,
    /// Everything that has a name: inputs, outputs and initializers at any depth.
    names: HashSet<String>,
}

/// A tensor whose bytes lie in another file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct External {
    /// Its name; empty in attributes.
    pub name: String,
    /// Element type by ONNX's number.
    pub element: u64,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// The file, as the model names it: a path from the model's directory.
    pub location: String,
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes, where the model says it.
    pub len: Option<u64>,
    /// Of how many products it is the second factor.
    pub products: usize,
    /// Whether anything beside these products needs it.
    pub needed: bool,
    /// Number of the graph that it is an initializer of, in the order of the file.
    graph: Option<usize>,
}

impl Model {
    /// Whether something in the model has a name.
    #[must_use]
    pub fn is_taken(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

impl External {
    /// The element type in the words of the other containers, where they have one.
    #[must_use]
    pub fn dtype(&self) -> Option<Dtype> {
        Some(match self.element {
            1 => Dtype::F32,
            2 => Dtype::U8,
            3 => Dtype::I8,
            4 => Dtype::U16,
            5 => Dtype::I16,
            6 => Dtype::I32,
            7 => Dtype::I64,
            9 => Dtype::BOOL,
            10 => Dtype::F16,
            11 => Dtype::F64,
            12 => Dtype::U32,
            13 => Dtype::U64,
            14 => Dtype::C64,
            16 => Dtype::BF16,
            17 => Dtype::F8_E4M3,
            18 => Dtype::F8_E4M3FNUZ,
            19 => Dtype::F8_E5M2,
            20 => Dtype::F8_E5M2FNUZ,
            24 => Dtype::F8_E8M0,
            _ => return None,
        })
    }

    /// Its bytes within a file of `file_len` bytes.
    ///
    /// # Errors
    /// Past the end of the file, another length than type and shape make.
    pub fn range(&self, file_len: u64) -> Result<Range<u64>, Malformed> {
        let wrong = |why: String| Malformed::new(format!("tensor {}: {why}", quoted(&self.name)));
        let counted = match self.dtype() {
            Some(dtype) => Some(byte_len(dtype, &self.shape).ok_or_else(|| {
                wrong(format!("{dtype} with shape {:?} has no size in whole bytes that can be counted", self.shape))
            })? as u64),
            None => None,
        };
        let len = match (counted, self.len) {
            (Some(counted), Some(said)) if said != counted => {
                return Err(wrong(format!(
                    "{counted} bytes by its type and shape, but {said} are said to lie outside"
                )));
            }
            (Some(len), _) | (None, Some(len)) => len,
            (None, None) => file_len.saturating_sub(self.offset),
        };
        let end = self.offset.checked_add(len).filter(|end| *end <= file_len);
        let end = end.ok_or_else(|| {
            wrong(format!(
                "{len} bytes from offset {} of {} on, which ends at {file_len}: it is truncated; download or write it again",
                self.offset,
                quoted(&self.location)
            ))
        })?;
        Ok(self.offset..end)
    }
}

/// The messages that tensors may lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
}

/// A message and where it stands.
#[derive(Clone, Copy, Debug)]
struct At {
    kind: Kind,
    within: Kind,
    depth: usize,
    /// Whether what computes the outputs of the model, as functions and training do not by themselves.
    computes: bool,
}

impl At {
    const MODEL: Self = Self { kind: Kind::Model, within: Kind::Model, depth: 0, computes: true };

    /// The message of a field that tensors may lie in; `onnx.proto` of ONNX 1.23.
    fn child(self, number: u32) -> Option<Self> {
        let kind = match (self.kind, number) {
            (Kind::Model, 7) | (Kind::Attribute, 6 | 11) | (Kind::Training, 1 | 2) => Kind::Graph,
            (Kind::Model, 20) => Kind::Training,
            (Kind::Model, 25) => Kind::Function,
            (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
            (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::Sparse, 1 | 2) => Kind::Tensor,
            (Kind::Graph, 15) | (Kind::Attribute, 22 | 23) => Kind::Sparse,
            _ => return None,
        };
        let computes = self.computes && !matches!(kind, Kind::Function | Kind::Training);
        Some(Self { kind, within: self.kind, depth: self.depth + 1, computes })
    }

    /// Whether a field holds one message, which Protocol Buffers would merge out of several.
    fn is_single(self, number: u32) -> bool {
        matches!(
            (self.kind, number),
            (Kind::Model, 7) | (Kind::Attribute, 5 | 6 | 22) | (Kind::Training | Kind::Sparse, 1 | 2)
        )
    }

    /// The second factor of a plain `MatMul` of a graph.
    fn factor(self, node: Message<'_>) -> Result<Option<&str>, Malformed> {
        if self.computes && self.kind == Kind::Node { second_factor(node) } else { Ok(None) }
    }

    /// The fields of a message and, for those that tensors may lie in, what they are.
    fn fields(self, message: Message<'_>) -> impl Iterator<Item = Result<(Field<'_>, Option<Inner<'_>>), Malformed>> {
        let mut single = 0u32;
        message.fields().map(move |field| {
            let field = field?;
            let (Some(at), Value::Bytes(inner)) = (self.child(field.number), field.value) else {
                return Ok((field, None));
            };
            if at.depth > MAX_DEPTH {
                return Err(inner.malformed(format!("over {MAX_DEPTH} messages within messages")));
            }
            if self.is_single(field.number) {
                let bit = 1 << field.number;
                if single & bit != 0 {
                    return Err(inner.malformed(format!("a second field {} of a {:?}", field.number, self.kind)));
                }
                single |= bit;
            }
            Ok((field, Some((at, inner))))
        })
    }
}

type Inner<'a> = (At, Message<'a>);

/// Reads a model.
///
/// # Errors
/// What is no model, is cut short, or says two things about one tensor.
pub fn parse(bytes: &[u8]) -> Result<Model, Malformed> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Malformed::new("this is a Git LFS pointer and not the file itself: run `git lfs pull`"));
    }
    if bytes.len() as u64 > MAX_MODEL {
        return Err(Malformed::new(format!("{} bytes are over the cap of {MAX_MODEL} for a graph", bytes.len())));
    }
    let mut census = Census::default();
    census.visit(At::MODEL, Message::new(bytes))?;
    if census.graphs.is_empty() {
        return Err(Malformed::new("there is no graph in it: this is no ONNX model, whatever its name says"));
    }
    Ok(census.finish())
}

/// A name as it is written in a graph, `None` within functions.
type Mention<'a> = (Option<usize>, &'a str);

/// What is counted on a walk through a model.
#[derive(Default)]
struct Census<'a> {
    fields: usize,
    nbits: usize,
    /// For each graph the one around it.
    graphs: Vec<Option<usize>>,
    /// The graph that is walked through.
    within: Option<usize>,
    names: HashSet<&'a str>,
    /// What is read, and how often.
    read: HashMap<Mention<'a>, usize>,
    /// Second factors, in the order of the file.
    factors: Vec<Mention<'a>>,
    /// Initializers, and their number among the tensors that lie outside.
    initializers: HashMap<Mention<'a>, Option<usize>>,
    tensors: Vec<External>,
}

impl<'a> Census<'a> {
    fn visit(&mut self, at: At, message: Message<'a>) -> Result<(), Malformed> {
        let around = self.within;
        self.fields += message.fields().take(MAX_FIELDS + 1).count();
        if self.fields > MAX_FIELDS {
            return Err(message.malformed(format!("over {MAX_FIELDS} fields in the model")));
        }
        match at.kind {
            Kind::Model => domains(message).try_for_each(|domain| domain.map(drop))?,
            Kind::Function => self.within = None,
            Kind::Graph => {
                self.graphs.push(around);
                self.within = Some(self.graphs.len() - 1);
                self.graph(message)?;
            }
            Kind::Node => self.node(at, message)?,
            Kind::Tensor => self.tensor(at, message)?,
            _ => {}
        }
        for field in at.fields(message) {
            if let (_, Some((at, inner))) = field? {
                self.visit(at, inner)?;
            }
        }
        self.within = around;
        Ok(())
    }

    fn name(&mut self, name: &'a str, read: bool) -> Result<(), Malformed> {
        self.names.insert(name);
        if read {
            *self.read.entry((self.within, name)).or_default() += 1;
        }
        if self.names.len().max(self.read.len()).max(self.graphs.len()) > MAX_NAMES {
            return Err(Malformed::new(format!("there are over {MAX_NAMES} names in the model")));
        }
        Ok(())
    }

    fn node(&mut self, at: At, node: Message<'a>) -> Result<(), Malformed> {
        for field in node.fields() {
            if let Field { number: number @ (1 | 2), value: Value::Bytes(name), .. } = field? {
                self.name(name.text()?, number == 1)?;
            }
        }
        self.nbits += usize::from(node.string(4)? == "MatMulNBits" && node.string(7)? == MICROSOFT);
        let within = self.within;
        self.factors.extend(at.factor(node)?.map(|name| (within, name)));
        Ok(())
    }

    fn graph(&mut self, graph: Message<'a>) -> Result<(), Malformed> {
        for field in graph.fields() {
            if let Field { number: number @ (11 | 12), value: Value::Bytes(value), .. } = field? {
                self.name(value.string(1)?, number == 12)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, at: At, tensor: Message<'a>) -> Result<(), Malformed> {
        let name = tensor.string(8)?;
        self.name(name, false)?;
        let outside = is_external(tensor)?.then_some(self.tensors.len());
        let graph = self.within.filter(|_| at.within == Kind::Graph);
        if graph.is_some() && self.initializers.insert((graph, name), outside).is_some() {
            return Err(tensor.malformed(format!("initializer {} is there twice", quoted(name))));
        }
        if outside.is_some() {
            let parsed = external(tensor, graph);
            self.tensors.push(parsed.map_err(|e| Malformed::new(format!("tensor {}: {e}", quoted(name))))?);
        }
        if self.initializers.len().max(self.tensors.len()) > MAX_NAMES {
            return Err(Malformed::new(format!("there are over {MAX_NAMES} tensors in the model")));
        }
        Ok(())
    }

    /// The initializer that a name stands for: of its graph, or of one around it. `None` where it is none, and within
    /// that `None` where it lies in the model itself.
    fn resolve(&self, (mut graph, name): Mention<'a>) -> Option<Option<usize>> {
        while graph.is_some() {
            if let Some(found) = self.initializers.get(&(graph, name)) {
                return Some(*found);
            }
            graph = graph.and_then(|g| self.graphs[g]);
        }
        None
    }

    fn finish(mut self) -> Model {
        let found: Vec<_> = self.factors.iter().map(|factor| self.resolve(*factor)).collect();
        let inline = found.iter().filter(|found| **found == Some(None)).count();
        let factors: Vec<Option<usize>> = found.into_iter().map(Option::flatten).collect();
        let mut reads = vec![0; self.tensors.len()];
        for (mention, count) in &self.read {
            self.resolve(*mention).flatten().into_iter().for_each(|tensor| reads[tensor] += count);
        }
        factors.iter().flatten().for_each(|tensor| self.tensors[*tensor].products += 1);
        for (tensor, reads) in self.tensors.iter_mut().zip(reads) {
            tensor.needed = tensor.products == 0 || reads > tensor.products;
        }
        let names = self.names.into_iter().map(str::to_owned).collect();
        Model { tensors: self.tensors, inline, nbits: self.nbits, factors, names }
    }
}

/// The domains that a model imports operators of.
fn domains(model: Message<'_>) -> impl Iterator<Item = Result<&str, Malformed>> {
    model.fields().filter_map(|field| match field {
        Ok(Field { number: 8, value: Value::Bytes(import), .. }) => Some(import.string(1)),
        Ok(_) => None,
        Err(e) => Some(Err(e)),
    })
}

/// The second factor of a node that is a plain `MatMul`.
fn second_factor(node: Message<'_>) -> Result<Option<&str>, Malformed> {
    if node.string(4)? != "MatMul" || !matches!(node.string(7)?, "" | "ai.onnx") {
        return Ok(None);
    }
    let (mut inputs, mut outputs) = (vec![], 0);
    for field in node.fields() {
        match field? {
            Field { number: 1, value: Value::Bytes(name), .. } => inputs.push(name.text()?),
            Field { number: 2, .. } => outputs += 1,
            // Its own name is that of what replaces it.
            Field { number: 3, value: Value::Bytes(name), .. } => {
                name.text()?;
            }
            Field { number: 5, .. } => return Ok(None),
            _ => {}
        }
    }
    Ok(if let ([_, factor], 1) = (&inputs[..], outputs) { Some(factor) } else { None })
}

fn is_external(tensor: Message<'_>) -> Result<bool, Malformed> {
    Ok(tensor.number(14)? == EXTERNAL)
}

/// An entry of `external_data`: key and value.
fn entry(field: &Field<'_>) -> Result<Option<(String, String)>, Malformed> {
    let Field { number: 13, value: Value::Bytes(entry), .. } = field else { return Ok(None) };
    Ok(Some((entry.string(1)?.to_owned(), entry.string(2)?.to_owned())))
}

fn external(tensor: Message<'_>, graph: Option<usize>) -> Result<External, Malformed> {
    let (mut location, mut offset, mut len) = (None, 0, None);
    for field in tensor.fields() {
        let Some((key, value)) = entry(&field?)? else { continue };
        let number =
            || value.parse::<u64>().map_err(|e| Malformed::new(format!("its {key} is {}: {e}", quoted(&value))));
        match key.as_str() {
            "location" => location = Some(value),
            "offset" => offset = number()?,
            // ONNX's own reader takes 0 for no length.
            "length" => len = Some(number()?).filter(|len| *len > 0),
            _ => {}
        }
    }
    let location = location.ok_or_else(|| Malformed::new("it lies in another file, but no location says in which"))?;
    Ok(External {
        name: tensor.string(8)?.to_owned(),
        element: tensor.number(2)?,
        shape: shape(tensor)?,
        location,
        offset,
        len,
        products: 0,
        needed: true,
        graph,
    })
}

fn shape(tensor: Message<'_>) -> Result<Vec<usize>, Malformed> {
    let mut shape = vec![];
    let mut push = |dim: u64| {
        // A negative one is a number over half of all.
        let dim = i64::try_from(dim).ok().and_then(|dim| usize::try_from(dim).ok());
        shape.push(dim.ok_or_else(|| Malformed::new("a dimension that is no size"))?);
        if shape.len() > MAX_RANK { Err(Malformed::new(format!("over {MAX_RANK} dimensions"))) } else { Ok(()) }
    };
    for field in tensor.fields() {
        match field? {
            Field { number: 1, value: Value::Number(dim), .. } => push(dim)?,
            Field { number: 1, value: Value::Bytes(dims), .. } => dims.packed().try_for_each(|dim| push(dim?))?,
            _ => {}
        }
    }
    Ok(shape)
}
