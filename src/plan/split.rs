//! All-in-one checkpoints: a denoiser, text encoders and a VAE in one file, told apart by the prefixes of their names.
//!
//! The prefixes are those of ComfyUI's and the original diffusion checkpoints. A set of that kind is shown as it is, or as the
//! component directories of a pipeline, with the prefixes taken off. What a pipeline needs beside the weights (configs,
//! tokenizers, a scheduler) is not in such a file, and is reported as missing.

use std::collections::BTreeMap;

use crate::{
    plan::{
        Error,
        snapshot::{Set, Shard, Snapshot},
    },
    source::Source,
};

/// What a prefix stands before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Denoiser,
    TextEncoder,
    Vae,
}

/// Prefixes that are the same in every checkpoint, the longest first.
const PREFIXES: [(&str, Role); 8] = [
    ("conditioner.embedders.0.transformer.", Role::TextEncoder),
    ("conditioner.embedders.1.model.", Role::TextEncoder),
    ("conditioner.embedders.0.model.", Role::TextEncoder),
    ("cond_stage_model.transformer.", Role::TextEncoder),
    ("model.diffusion_model.", Role::Denoiser),
    ("first_stage_model.", Role::Vae),
    ("diffusion_model.", Role::Denoiser),
    ("vae.", Role::Vae),
];

/// The prefix of a tensor's name, and what it stands before: `text_encoders.<name>.transformer.` has any name in it.
fn prefix(name: &str) -> Option<(&str, Role)> {
    if let Some(rest) = name.strip_prefix("text_encoders.") {
        let (encoder, behind) = rest.split_once('.')?;
        let bare = behind.strip_prefix("transformer.")?;
        return (!encoder.is_empty()).then(|| (&name[..name.len() - bare.len()], Role::TextEncoder));
    }
    PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix)).copied()
}

/// What the names of a set's tensors say of it.
#[derive(Debug, Default)]
struct Contents<'a> {
    /// Numbers of tensors by prefix.
    parts: BTreeMap<&'a str, (Role, Vec<usize>)>,
    /// Tensors without one.
    rest: Vec<usize>,
}

impl<'a> Contents<'a> {
    fn of(set: &'a Set) -> Self {
        let mut found = Self::default();
        for (number, info) in set.tensors.iter().enumerate() {
            match prefix(&info.name) {
                Some((prefix, role)) => found.parts.entry(prefix).or_insert((role, vec![])).1.push(number),
                None => found.rest.push(number),
            }
        }
        found
    }

    fn has(&self, role: Role) -> bool {
        self.parts.values().any(|(r, _)| *r == role)
    }

    /// A denoiser with something that no denoiser has.
    fn is_all_in_one(&self) -> bool {
        self.has(Role::Denoiser) && (self.has(Role::TextEncoder) || self.has(Role::Vae))
    }
}

/// Shows all-in-one checkpoints as component directories where that is asked for; says where it might be.
///
/// # Errors
/// Where it is asked for and no set of the snapshot is of that kind.
pub(crate) fn apply(
    source: &dyn Source,
    snapshot: &mut Snapshot,
    split: bool,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    let (all, others): (Vec<Set>, Vec<Set>) = std::mem::take(&mut snapshot.sets)
        .into_iter()
        .partition(|set| set.graph.is_none() && Contents::of(set).is_all_in_one());
    snapshot.sets = others;
    if all.is_empty() && split {
        return Err(Error::spec(format!(
            "--split: {} is no all-in-one checkpoint; one has tensors model.diffusion_model.*, and vae.* or \
             text_encoders.NAME.transformer.* beside them",
            source.name()
        )));
    }
    for set in all {
        // It names files that are not shown.
        snapshot.others.retain(|other| !split || set.index != Some(*other));
        let file = set.path(&format!("{}.safetensors", set.stem));
        if split {
            let (sets, report) = components(set);
            warnings.extend(report.into_iter().map(|line| format!("{file}: {line}")));
            snapshot.sets.extend(sets);
        } else {
            warnings.push(format!("{file}: an all-in-one checkpoint, shown as one file; --split shows its components"));
            snapshot.sets.push(set);
        }
    }
    Ok(())
}

/// The components of a checkpoint, and what is missing.
fn components(set: Set) -> (Vec<Set>, Vec<String>) {
    let contents = Contents::of(&set);
    let mut report = missing(&set, &contents);
    let (mut sets, mut encoders) = (vec![], 0usize);
    for (prefix, (role, tensors)) in &contents.parts {
        let (dir, stem) = match role {
            Role::Denoiser if is_unet(&set, prefix) => ("unet".to_owned(), "diffusion_pytorch_model"),
            Role::Denoiser => ("transformer".to_owned(), "diffusion_pytorch_model"),
            Role::Vae => ("vae".to_owned(), "diffusion_pytorch_model"),
            Role::TextEncoder => {
                encoders += 1;
                let number = if encoders == 1 { String::new() } else { format!("_{encoders}") };
                (format!("text_encoder{number}"), "model")
            }
        };
        report.push(format!("{} tensors {prefix}* are {dir}/{stem}.safetensors", tensors.len()));
        let dir = if set.dir.is_empty() { dir } else { format!("{}/{dir}", set.dir) };
        sets.push(component(&set, tensors, prefix, dir, stem));
    }
    if !contents.rest.is_empty() {
        let names: Vec<String> = contents.rest.iter().map(|t| set.tensors[*t].name.clone()).collect();
        let listed = super::overrides::listed(&names);
        report.push(format!("{} tensors belong to no component and are not shown: {listed}", names.len()));
    }
    (sets, report)
}

fn is_unet(set: &Set, prefix: &str) -> bool {
    set.tensors.iter().any(|info| info.name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with("input_blocks.")))
}

fn component(of: &Set, tensors: &[usize], prefix: &str, dir: String, stem: &str) -> Set {
    let bare = |number: &usize| {
        let mut info = of.tensors[*number].clone();
        info.name = info.name[prefix.len()..].to_owned();
        info
    };
    let shards = of.shards.iter().map(|shard| Shard { file: shard.file, metadata: vec![], tensors: 0 }).collect();
    Set {
        dir,
        stem: stem.to_owned(),
        shards,
        tensors: tensors.iter().map(bare).collect(),
        places: tensors.iter().map(|number| of.places[*number].clone()).collect(),
        index: None,
        config: None,
        generation_config: None,
        is_part: true,
        graph: None,
    }
}

/// What a pipeline of these components would lack.
fn missing(set: &Set, contents: &Contents<'_>) -> Vec<String> {
    let has = |role: Role, of: &[&str]| {
        let prefixes = contents.parts.iter().filter(|(_, (r, _))| *r == role);
        let mut bare =
            prefixes.flat_map(|(prefix, (_, tensors))| tensors.iter().map(|t| &set.tensors[*t].name[prefix.len()..]));
        bare.any(|name| of.iter().any(|wanted| name.contains(wanted)))
    };
    let checks: [(bool, &str); 5] = [
        (contents.has(Role::TextEncoder), "it has no text encoder (text_encoders.NAME.transformer.*)"),
        (
            !contents.has(Role::TextEncoder)
                || has(Role::TextEncoder, &["embed_tokens.weight", "token_embedding", "shared.weight", "embeddings."]),
            "its text encoder has no token embeddings",
        ),
        (contents.has(Role::Vae), "it has no VAE (vae.*)"),
        (
            !contents.has(Role::Vae) || has(Role::Vae, &["decoder.conv_in.weight"]),
            "its VAE has no decoder.conv_in.weight",
        ),
        (
            !contents.has(Role::Vae) || has(Role::Vae, &["decoder.conv_out.weight"]),
            "its VAE has no decoder.conv_out.weight",
        ),
    ];
    let found = checks.into_iter().filter(|(there, _)| !there).map(|(_, what)| format!("missing: {what}"));
    let beside = "missing: model_index.json, configs, tokenizers and scheduler, which no such file holds; take them from the \
                  model's repository";
    found.chain([beside.to_owned()]).collect()
}
