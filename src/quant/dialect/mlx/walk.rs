//! The modules of a family in the order in which mlx_lm walks them.
//!
//! The order of a module's attributes decides the order of entries in `config.json`, which
//! parameters are counted, and which modules can be quantized at all. It is written down as text:
//!
//! ```text
//! model{embed_tokens layers.*{self_attn{q_proj k_proj q_norm!} A_log= gate!(weight,bias2)}} lm_head
//! ```
//!
//! `name` is a module that can be quantized (mlx's `to_quantized`), `name!` one that cannot, `name=`
//! a bare parameter of a module that has children; braces or a dot hold a module's children; `*` is
//! the index of a list. Parameters are `weight` and `bias` where none are listed.

/// What mlx_lm holds a tensor in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A module that can be quantized.
    Quantizable,
    /// A module that cannot.
    Plain,
    /// A parameter beside child modules: not in the reference's count of parameters.
    Bare,
}

/// Where a tensor stands in the walk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Sorts as the reference walks.
    pub(super) order: Vec<usize>,
    pub(super) kind: Kind,
}

#[derive(Debug)]
struct Node {
    name: &'static str,
    what: What,
}

#[derive(Debug)]
enum What {
    Group(Vec<Node>),
    Leaf { kind: Kind, parameters: Vec<&'static str> },
    Bare,
}

/// The text, parsed.
#[derive(Debug)]
pub(super) struct Walk(Vec<Node>);

impl Walk {
    pub(super) fn new(mut text: &'static str) -> Self {
        Self(parse(&mut text))
    }

    /// The place of a tensor's name; `None` where the family has no such parameter.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let mut nodes = &self.0;
        let mut order = Vec::new();
        let mut parts = name.split('.');
        loop {
            let (index, node, number) = find(nodes, parts.next()?)?;
            order.extend([index, number]);
            match &node.what {
                What::Group(children) => nodes = children,
                What::Bare => return parts.next().is_none().then_some(Place { order, kind: Kind::Bare }),
                What::Leaf { kind, parameters } => {
                    let parameter = parts.next()?;
                    order.push(parameters.iter().position(|p| *p == parameter)?);
                    return parts.next().is_none().then_some(Place { order, kind: *kind });
                }
            }
        }
    }
}

/// The child of a name: its position, itself, and the index where it is a list's.
fn find<'n>(nodes: &'n [Node], part: &str) -> Option<(usize, &'n Node, usize)> {
    nodes.iter().enumerate().find_map(|(at, node)| match node.name {
        "*" => Some((at, node, part.parse().ok()?)),
        name => (name == part).then_some((at, node, 0)),
    })
}

/// Nodes up to a closing brace or the end.
fn parse(text: &mut &'static str) -> Vec<Node> {
    let mut nodes = Vec::new();
    loop {
        *text = text.trim_start();
        if text.is_empty() || text.starts_with('}') {
            return nodes;
        }
        nodes.push(node(text));
    }
}

fn node(text: &mut &'static str) -> Node {
    let name = cut(text, |c| "{}.!=( \n".contains(c));
    let what = match text.chars().next() {
        Some('{') => {
            skip(text);
            let children = parse(text);
            skip(text);
            What::Group(children)
        }
        Some('.') => {
            skip(text);
            What::Group(vec![node(text)])
        }
        Some('=') => {
            skip(text);
            What::Bare
        }
        other => {
            let kind = if other == Some('!') { Kind::Plain } else { Kind::Quantizable };
            if kind == Kind::Plain {
                skip(text);
            }
            What::Leaf { kind, parameters: parameters(text) }
        }
    };
    Node { name, what }
}

fn parameters(text: &mut &'static str) -> Vec<&'static str> {
    if !text.starts_with('(') {
        return vec!["weight", "bias"];
    }
    skip(text);
    let list = cut(text, |c| c == ')');
    skip(text);
    list.split(',').collect()
}

fn cut(text: &mut &'static str, end: impl Fn(char) -> bool) -> &'static str {
    let (head, rest) = text.split_at(text.find(end).unwrap_or(text.len()));
    *text = rest;
    head
}

fn skip(text: &mut &'static str) {
    *text = text.get(1..).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_orders_and_knows_kinds() {
        let walk = Walk::new("model{embed layers.*{attn{q norm!} A_log= gate!(weight,extra)} list.*.x norm!} head");
        let names = [
            "model.embed.weight",
            "model.layers.2.attn.q.weight",
            "model.layers.2.attn.q.bias",
            "model.layers.2.attn.norm.weight",
            "model.layers.2.A_log",
            "model.layers.2.gate.extra",
            "model.layers.10.attn.q.weight",
            "model.list.3.x.weight",
            "model.norm.weight",
            "head.weight",
        ];
        let places: Vec<Place> = names.iter().map(|n| walk.place(n).expect(n)).collect();
        assert!(places.is_sorted_by(|a, b| a.order < b.order));
        let kinds: Vec<Kind> = places.iter().map(|p| p.kind).collect();
        assert_eq!(kinds[3..6], [Kind::Plain, Kind::Bare, Kind::Plain]);
        assert_eq!(kinds[9], Kind::Quantizable);
        for unknown in
            ["model", "model.embed", "model.embed.scales", "model.layers.x.attn.q.weight", "head.weight.x", ""]
        {
            assert_eq!(walk.place(unknown), None, "{unknown}");
        }
    }
}
