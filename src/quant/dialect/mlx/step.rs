//! What a family's `sanitize` does to names and shapes, as a list of steps; and their interpreter.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    draft::Draft,
    glob::{any, captures, fill, matches},
};

/// One step of a family's arrangement. Patterns and templates are `glob`'s.
#[derive(Debug)]
pub(super) enum Step {
    /// Tensors that the model does not have, with the reason.
    Drop(&'static [&'static str], &'static str),
    /// `lm_head.weight` where `tie_word_embeddings` holds; the value where config.json is silent.
    Tied(bool),
    /// Layers at and beyond `num_hidden_layers`; the prefix ends before the number.
    PastLayers(&'static str),
    /// A new name.
    Rename(&'static str, &'static str),
    /// A prefix before every name that does not begin with it.
    Under(&'static str),
    /// Tensors that differ in one number stacked along a new first axis: pattern (its last `#` is
    /// the number), template without it, the key of config.json that says how many.
    Stack(&'static str, &'static str, &'static str),
    /// The two last axes exchanged.
    Swap(&'static str),
    /// The two last axes of a convolution exchanged where the last one is not of length one.
    Channels(&'static str),
    /// The axis before the last cut into halves.
    Halves(&'static str, [&'static str; 2]),
    /// The axis (counted from the last) dealt out in turn.
    Deal(&'static str, usize, [&'static str; 2]),
    /// One added to vectors stored as `w - 1`.
    PlusOne(&'static [&'static str]),
    /// The same elements under a second name, where that is absent.
    Copy(&'static str, &'static str),
    /// Axes of length one left out.
    Squeeze(&'static [&'static str]),
    /// `kv_b_proj` of latent attention cut into `embed_q` (transposed) and `unembed_out` by head.
    Absorb,
    /// Keys and values of the last `num_kv_shared_layers` layers, which use those of earlier ones.
    SharedKeys,
    /// Steps taken only where the source is as the guard says.
    If(Guard, &'static [Self]),
    /// Tensors whose values the reference computes: such a source cannot be shown.
    Refuse(&'static [&'static str], &'static str),
}

/// A question about the source, asked before any step.
#[derive(Clone, Copy, Debug)]
pub(super) enum Guard {
    /// Some tensor has such a name.
    Has(&'static str),
    /// No tensor has such a name.
    Lacks(&'static str),
    /// Some convolution's last axis is not of length one.
    Unswapped(&'static str),
    /// A boolean of config.json, and its value where that is silent.
    Flag(&'static str, bool),
}

/// Drafts on their way through the steps.
#[derive(Debug)]
pub(super) struct Drafts {
    pub(super) list: Vec<Draft>,
    pub(super) dropped: Vec<(usize, String)>,
}

impl Guard {
    fn holds(self, drafts: &[Draft], config: &Value) -> bool {
        match self {
            Self::Has(name) => drafts.iter().any(|d| matches(name, &d.name)),
            Self::Lacks(name) => !drafts.iter().any(|d| matches(name, &d.name)),
            Self::Unswapped(name) => drafts.iter().any(|d| unswapped(d) && matches(name, &d.name)),
            Self::Flag(key, default) => config.get(key).and_then(Value::as_bool).unwrap_or(default),
        }
    }
}

fn unswapped(draft: &Draft) -> bool {
    draft.axes().last().is_some_and(|a| a.len != 1)
}

/// A whole number of config.json.
fn number(config: &Value, key: &str) -> Option<usize> {
    config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok())
}

/// A whole number of config.json, or of the text model in it.
fn number_within(config: &Value, key: &str) -> Option<usize> {
    number(config, key).or_else(|| number(config.get("text_config")?, key))
}

impl Drafts {
    /// Takes all steps in order. Guards look at the source as it was.
    pub(super) fn run(mut self, steps: &'static [Step], config: &Value) -> Result<Self, String> {
        let mut due: Vec<&Step> = Vec::new();
        for step in steps {
            match step {
                Step::If(guard, inner) if guard.holds(&self.list, config) => due.extend(*inner),
                Step::If(..) => {}
                step => due.push(step),
            }
        }
        due.into_iter().try_for_each(|step| self.take(step, config))?;
        Ok(self)
    }

    fn take(&mut self, step: &Step, config: &Value) -> Result<(), String> {
        match *step {
            Step::Drop(names, why) => self.drop_where(why, |d| any(names, &d.name)),
            Step::Tied(default) => {
                if Guard::Flag("tie_word_embeddings", default).holds(&[], config) {
                    self.drop_where("tied to the embedding", |d| d.name == "lm_head.weight");
                }
            }
            Step::PastLayers(prefix) => {
                let layers = number(config, "num_hidden_layers");
                self.drop_where("a layer past num_hidden_layers", |d| {
                    let number = d.name.strip_prefix(prefix).and_then(|r| r.split('.').next()?.parse().ok());
                    layers.zip(number).is_some_and(|(layers, n): (usize, usize)| n >= layers)
                });
            }
            Step::Rename(from, to) => self.each(from, |d, c| Ok(vec![Draft { name: fill(to, c), ..d }]))?,
            Step::Under(prefix) => self.list.iter_mut().filter(|d| !d.name.starts_with(prefix)).for_each(|d| {
                d.name.insert_str(0, prefix);
            }),
            Step::Stack(from, to, count) => self.stack(from, to, (count, number_within(config, count)))?,
            Step::Swap(name) => self.each(name, |d, _| Ok(vec![d.swap()?]))?,
            Step::Channels(name) => self.each(name, |d, _| Ok(vec![if unswapped(&d) { d.swap()? } else { d }]))?,
            Step::Halves(from, to) => self.each(from, |d, c| halves(&d, to.map(|t| fill(t, c))))?,
            Step::Deal(from, axis, to) => self.each(from, |d, c| deal(&d, axis, to.map(|t| fill(t, c))))?,
            Step::PlusOne(names) => self
                .list
                .iter_mut()
                .filter(|d| d.axes().len() == 1 && !d.stacked && any(names, &d.name))
                .for_each(|d| d.plus_one = true),
            Step::Copy(from, to) => self.copy(from, to),
            Step::Squeeze(names) => self.list.iter_mut().filter(|d| any(names, &d.name)).for_each(Draft::squeeze),
            Step::Absorb => self.each("*.kv_b_proj.weight", |d, c| absorb(d, c[0], config))?,
            Step::Refuse(names, why) => {
                if let Some(d) = self.list.iter().find(|d| any(names, &d.name)) {
                    return Err(format!("{}: {why}", d.name));
                }
            }
            Step::SharedKeys => self.drop_shared_keys(config),
            Step::If(guard, _) => unreachable!("{guard:?}: guards are opened before the steps and do not nest"),
        }
        Ok(())
    }

    fn drop_where(&mut self, why: &str, gone: impl Fn(&Draft) -> bool) {
        let (gone, kept) = std::mem::take(&mut self.list).into_iter().partition(|d| gone(d));
        self.list = kept;
        let tensors = gone.into_iter().flat_map(|d: Draft| d.pieces.into_iter().map(|p| p.tensor));
        self.dropped.extend(tensors.map(|t| (t, why.to_owned())));
    }

    fn drop_shared_keys(&mut self, config: &Value) {
        // The defaults are those of mlx_lm's gemma4_text.
        let layers = number(config, "num_hidden_layers").unwrap_or(35);
        let own = layers.saturating_sub(number(config, "num_kv_shared_layers").unwrap_or(20));
        self.drop_where("the layer uses an earlier layer's keys and values", |d| {
            let keys = ["k_proj", "v_proj", "k_norm"].iter().any(|k| d.name.contains(&format!(".self_attn.{k}")));
            let layer = d.name.split_once("layers.").and_then(|(_, rest)| rest.split('.').next()?.parse().ok());
            keys && layer.is_some_and(|layer: usize| layer >= own)
        });
    }

    /// Replaces every draft that matches.
    fn each(
        &mut self,
        pattern: &str,
        make: impl Fn(Draft, &[&str]) -> Result<Vec<Draft>, String>,
    ) -> Result<(), String> {
        let mut out = Vec::with_capacity(self.list.len());
        for draft in std::mem::take(&mut self.list) {
            let name = draft.name.clone();
            match captures(pattern, &name) {
                Some(captures) => out.extend(make(draft, &captures)?),
                None => out.push(draft),
            }
        }
        self.list = out;
        Ok(())
    }

    fn copy(&mut self, from: &str, to: &str) {
        if self.list.iter().all(|d| d.name != to)
            && let Some(source) = self.list.iter().find(|d| d.name == from)
        {
            let copy = Draft { name: to.to_owned(), ..source.clone() };
            self.list.push(copy);
        }
    }

    fn stack(&mut self, from: &str, to: &str, count: (&str, Option<usize>)) -> Result<(), String> {
        let mut stacks: Vec<(String, Vec<(usize, Draft)>)> = Vec::new();
        let mut at: HashMap<String, usize> = HashMap::new();
        let mut rest = Vec::new();
        for draft in std::mem::take(&mut self.list) {
            let Some((name, number)) = member(from, to, &draft.name) else {
                rest.push(draft);
                continue;
            };
            let index = *at.entry(name.clone()).or_insert_with(|| {
                stacks.push((name, Vec::new()));
                stacks.len() - 1
            });
            stacks[index].1.push((number, draft));
        }
        self.list = rest;
        for (name, members) in stacks {
            self.list.push(stacked(name, members, count)?);
        }
        Ok(())
    }
}

/// The stack that a tensor belongs to, and its number there: the capture of the pattern's last `#`.
fn member(from: &str, to: &str, name: &str) -> Option<(String, usize)> {
    let mut found = captures(from, name)?;
    let wild = from.bytes().filter(|b| matches!(b, b'*' | b'#')).collect::<Vec<u8>>();
    let number = found.remove(wild.iter().rposition(|&b| b == b'#')?).parse().ok()?;
    Some((fill(to, &found), number))
}

fn stacked(name: String, mut members: Vec<(usize, Draft)>, count: (&str, Option<usize>)) -> Result<Draft, String> {
    members.sort_by_key(|(number, _)| *number);
    let n = members.len();
    if members.iter().enumerate().any(|(at, (number, _))| at != *number) {
        return Err(format!("{name}: its {n} tensors are not numbered 0 to {}; one is missing or given twice", n - 1));
    }
    if let (key, Some(said)) = count
        && said != n
    {
        return Err(format!("{name}: config.json says {key} = {said}, but there are {n} tensors"));
    }
    let first = &members[0].1;
    if let Some((_, odd)) = members.iter().find(|(_, d)| d.dtype != first.dtype || d.shape() != first.shape()) {
        let (a, b) = (first.shape(), odd.shape());
        return Err(format!(
            "{}: {:?} {b:?}, but {} is {:?} {a:?}; they cannot be stacked",
            odd.name, odd.dtype, first.name, first.dtype
        ));
    }
    let dtype = first.dtype;
    let pieces = members.into_iter().flat_map(|(_, d)| d.pieces).collect();
    Ok(Draft { name, dtype, pieces, stacked: true, plus_one: false })
}

/// The length of an axis counted from the last one, where it is even.
fn even(draft: &Draft, axis: usize) -> Result<usize, String> {
    let len = draft.axes().iter().rev().nth(axis).map_or(0, |a| a.len);
    if len == 0 || !len.is_multiple_of(2) {
        return Err(format!("{}: shape {:?} cannot be cut into two", draft.name, draft.shape()));
    }
    Ok(len / 2)
}

fn halves(draft: &Draft, [first, second]: [String; 2]) -> Result<Vec<Draft>, String> {
    let half = even(draft, 1)?;
    Ok(vec![draft.take(first, 1, 0, half, 1)?, draft.take(second, 1, half, half, 1)?])
}

fn deal(draft: &Draft, axis: usize, [first, second]: [String; 2]) -> Result<Vec<Draft>, String> {
    let half = even(draft, axis)?;
    Ok(vec![draft.take(first, axis, 0, half, 2)?, draft.take(second, axis, 1, half, 2)?])
}

fn absorb(draft: Draft, prefix: &str, config: &Value) -> Result<Vec<Draft>, String> {
    let key = |key| number(config, key).ok_or_else(|| format!("{prefix}.kv_b_proj: config.json has no {key}"));
    let (heads, nope, value) = (key("num_attention_heads")?, key("qk_nope_head_dim")?, key("v_head_dim")?);
    let draft = draft.unflatten(&[heads, nope.saturating_add(value)])?;
    let keys = draft.take(format!("{prefix}.embed_q.weight"), 1, 0, nope, 1)?.swap()?;
    Ok(vec![keys, draft.take(format!("{prefix}.unembed_out.weight"), 1, nope, value, 1)?])
}
