//! From a source and options to a plan.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde_json::Value;

use crate::{
    plan::{
        Content, Error, File, Options, Plan, Planned, Row, Spec, adapters,
        decide::{Decider, Decision, Scope},
        dense,
        graph::{self, Drafted},
        importance::{Asked, Binder, with_note},
        layout::{self, Output, Unit},
        origin, overrides,
        rename::Renames,
        snapshot::{self, Place, Set, Snapshot},
        split, survey,
    },
    quant::{
        self, Content as PartContent, Scheme, Weight,
        dialect::{Arranged, Arrangement, Component, Decided, Slice, mlx::Mixed},
        format::cast::Cast,
        manifest,
    },
    source::{FileId, Source},
    tensor::TensorInfo,
};

/// Plans the view of a source. Reads headers, indexes and configs, and no weight.
///
/// # Errors
/// What cannot be shown, with the file, tensor or option and what to do.
pub fn build(source: &dyn Source, options: &Options) -> Result<Plan, Error> {
    arranged(source, options, |mut builder, snapshot, decider| {
        let binder = std::mem::replace(&mut builder.binder, Binder::new(None));
        binder.check(&mut builder.plan.warnings)?;
        builder.finish(snapshot, decider)
    })
}

/// What the importance of these options says of each weight of their plan, in the order of [`Plan::weights`], whether the
/// weight's method weighs errors or not: just that which [`build`] has schemes weigh them by.
///
/// # Errors
/// As [`build`], but for importance that no method weighs.
pub fn importance_of_weights(source: &dyn Source, options: &Options) -> Result<Vec<Option<quant::Importance>>, Error> {
    arranged(source, options, |builder, _, _| Ok(builder.binder.told(builder.plan.weights.len())))
}

/// What becomes of a builder that knows all weights.
fn arranged<T>(
    source: &dyn Source,
    options: &Options,
    then: impl FnOnce(Builder<'_>, &Snapshot, &Decider<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    // The source's own dtypes and sizes are those of its models already.
    let graphs = reads_graphs(&options.spec);
    if let Some(other) =
        options.components.iter().find(|c| reads_graphs(&c.spec) != graphs && c.spec.format().name() != "source")
    {
        let why = "ONNX models and other weights are views of their own; mount a second one";
        return Err(Error::spec(format!(
            "component {}: {} in a view of {}: {why}",
            other.dir, other.spec, options.spec
        )));
    }
    let mut snapshot = snapshot::read(source, &options.show, graphs)?;
    let mut plan = Plan::new(source, options);
    split::apply(source, &mut snapshot, options.split, &mut plan.warnings)?;
    overrides::apply(source, &mut snapshot, &options.overrides, &mut plan.warnings)?;
    adapters::apply(source, &mut snapshot, &options.adapters, &mut plan.warnings)?;
    let mut decider = Decider::new(options)?;
    let mut builder = Builder {
        source,
        options,
        plan,
        layers: vec![],
        patched: BTreeMap::new(),
        renames: Renames::new(&options.renames),
        drafted: vec![],
        binder: Binder::new(options.importance.as_deref()),
    };
    let mut by_size: Vec<&Set> = snapshot.sets.iter().collect();
    // Where several sets share a directory, its config.json speaks of the largest.
    by_size.sort_by_key(|s| std::cmp::Reverse(s.places.iter().map(|p| p.range.end - p.range.start).sum::<u64>()));
    for set in by_size {
        builder.add(set, &mut decider)?;
    }
    decider.check_components(&snapshot.sets.iter().map(|set| set.dir.as_str()).collect::<Vec<_>>())?;
    decider.check_rules()?;
    builder.renames.check()?;
    then(builder, &snapshot, &decider)
}

struct Builder<'a> {
    source: &'a dyn Source,
    options: &'a Options,
    plan: Plan,
    layers: Vec<manifest::Layer>,
    /// Files of the source that the view shows otherwise, or not at all where there is no content.
    patched: BTreeMap<String, Option<File>>,
    renames: Renames<'a>,
    /// Models that are laid out when all of them are known, since they may share files.
    drafted: Vec<Drafted<'a>>,
    binder: Binder<'a>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, set: &'a Set, decider: &mut Decider<'_>) -> Result<(), Error> {
        let scope = decider.scope(&set.dir).clone();
        let (dialect, default) = (scope.dialect, scope.default.as_deref());
        let component = component(set, self.options);
        let arrangement =
            dialect.arrange(&component).map_err(|why| Error::refused(format!("{}: {why}", self.place_of(set))))?;
        for (tensor, why) in &arrangement.dropped {
            decider.dropped(&component, *tensor, why);
        }
        let mixed = self.mixed(&component, &scope, &arrangement)?;
        let component = Component { mixed: mixed.as_ref(), ..component };
        if scope.spec.is_dense() {
            return self.add_dense(set, &component, &arrangement, decider);
        }
        for warning in &arrangement.warnings {
            self.plan.warnings.push(format!("{}: {warning}", self.place_of(set)));
        }
        self.report_dropped(set, &arrangement);
        let mut units = vec![];
        let mut decisions = vec![];
        let (first, mut modules) = (self.plan.weights.len(), BTreeMap::new());
        let mut arrangement = arrangement;
        for tensor in &mut arrangement.tensors {
            let mut decision = decider.decide(&component, tensor)?;
            self.binder.weigh(self.plan.weights.len(), set, tensor, &mut decision)?;
            modules.extend(decision.stored.iter().map(|s| (self.plan.weights.len(), s.weight.stem.clone())));
            if set.graph.is_none() {
                self.rename(tensor, &mut decision)?;
            }
            let dense = set.graph.as_ref().filter(|_| decision.stored.is_none()).map(|_| as_it_lies(set, tensor));
            let tensor = dense.as_ref().unwrap_or(tensor);
            units.push(self.unit(set, tensor, &decision)?);
            self.report(set, tensor, &decision, units.last().map_or(0, Unit::len) + beside(set, tensor, &decision));
            decisions.push(decision);
        }
        self.distinct(set, &arrangement)?;
        survey::plan(&mut self.plan, first, &modules, dialect);
        if let Some(graph) = &set.graph {
            // A model says itself what is quantized in it and how; no manifest lists it.
            self.drafted.push(Drafted { set, graph, units, decisions });
            return Ok(());
        }
        // A component that a quantizing view leaves dense is nobody's but its own.
        let own = default.is_some() && decisions.iter().all(|d| d.stored.is_none());
        let metadata = |source: &[(String, String)]| {
            if own { source.to_vec() } else { dialect.metadata(&component, source) }
        };
        let laid = layout::lay(self.source, set, &metadata, &units, self.options.shard_size)?;
        let decided = decided(scope.spec, &arrangement, &decisions, &units, &laid.names);
        let said = dialect.check(default, &decided);
        said.map_err(|why| Error::refused(format!("{}: {why}", self.place_of(set))))?;
        for warning in dialect.misread(default, &decided) {
            self.plan.warnings.push(format!("{}: {warning}", self.place_of(set)));
        }
        self.list_layers(set, &arrangement, &decisions, &laid.names);
        self.plan.files.extend(laid.files);
        if laid.rewritten {
            self.write_documents(set, &component, &scope, &decided);
        }
        Ok(())
    }

    /// The recipe by name for a component, where one is asked for and anything of it is quantized.
    fn mixed(
        &self,
        component: &Component<'_>,
        scope: &Scope<'_>,
        arrangement: &Arrangement,
    ) -> Result<Option<Mixed>, Error> {
        let (Some(asked), Some(default)) = (&self.options.predicate, &scope.default) else { return Ok(None) };
        let stated = asked.group_size.is_some();
        let mixed = scope.dialect.mixed(component, &asked.name, stated, default.as_ref(), &arrangement.tensors);
        mixed.map(Some).map_err(|why| Error::spec(format!("{}: {why}", self.source.name())))
    }

    /// A set of a view that shows values in the source's own names and sizes.
    fn add_dense(
        &mut self,
        set: &Set,
        component: &Component<'_>,
        arrangement: &Arrangement,
        decider: &mut Decider<'_>,
    ) -> Result<(), Error> {
        let decide = |tensor| decider.decide(component, tensor);
        let decisions = arrangement.tensors.iter().map(decide).collect::<Result<Vec<_>, _>>()?;
        let first = self.plan.weights.len();
        let options = self.options;
        let (spec, dialect) = (decider.scope(&set.dir).spec, decider.scope(&set.dir).dialect);
        let flags = [
            ("--shard-size", options.shard_size.is_some()),
            ("--rename", !options.renames.is_empty()),
            ("--split", options.split),
        ];
        if let Some((flag, _)) = flags.into_iter().find(|(_, given)| *given) {
            let why = "keeps the names and sizes of the source; leave it out";
            return Err(Error::spec(format!("{flag}: {spec} {why}")));
        }
        let mut replaced = vec![];
        for (number, shown) in dense::shown(set, &arrangement.tensors, &decisions).into_iter().enumerate() {
            let info = &set.tensors[number];
            let place = &set.places[number];
            let bytes = place.range.end - place.range.start;
            if info.dtype != place.dtype {
                return Err(Error::refused(format!(
                    "tensor {}: what overrides it is {}, and a dense view keeps the snapshot's dtypes ({}); cast it first",
                    info.name, info.dtype, place.dtype
                )));
            }
            let same = Arranged { info: info.clone(), from: vec![Slice::whole(number, info)], plus_one: false };
            let (becomes, why, weight) = match shown {
                Err(why) => {
                    let plain = Decision::dense(why.clone());
                    if !place.is_own(set) {
                        let mut outputs = self.unit(set, &same, &plain)?.outputs.into_iter().flat_map(|o| o.contents);
                        replaced.extend(outputs.next().map(|(content, _)| (number, content)));
                    }
                    ("kept".to_owned(), why, None)
                }
                Ok(mut shown) => {
                    let from = origin::origin(set, &same)?;
                    let (weight, spec, scheme) = (&shown.weight, &shown.spec, shown.scheme.as_ref());
                    let asked = Asked { number: self.plan.weights.len(), weight, spec, scheme };
                    let weighted = self.binder.weighted(set, &same, &asked)?;
                    if let Some(scheme) = weighted {
                        (shown.scheme, shown.why) = (scheme, with_note(&shown.why));
                    }
                    let planned = origin::planned(self.source, shown.weight, from, shown.scheme, shown.parts);
                    let mut outputs = self.weigh(planned)?.into_iter().flat_map(|output| output.contents);
                    replaced.extend(outputs.next().map(|(content, _)| (number, content)));
                    (shown.spec.to_string(), shown.why, self.last_weight())
                }
            };
            self.plan.rows.push(Row {
                component: set.dir.clone(),
                name: info.name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                becomes,
                why: told(&why, set, std::iter::once(place)),
                bytes_before: bytes,
                bytes_after: bytes,
                sources: vec![info.name.clone()],
                weight,
                by_spec: false,
            });
        }
        survey::plan(&mut self.plan, first, &BTreeMap::new(), dialect);
        self.plan.files.extend(dense::lay(self.source, set, &replaced));
        Ok(())
    }

    /// Refuses two tensors of the same name, which renames may give them, or a snapshot that has experts both fused and
    /// one by one.
    fn distinct(&self, set: &Set, arrangement: &Arrangement) -> Result<(), Error> {
        let mut seen = HashSet::new();
        match arrangement.tensors.iter().find(|tensor| !seen.insert(&tensor.info.name)) {
            None => Ok(()),
            Some(twice) => {
                let (place, name) = (self.place_of(set), &twice.info.name);
                let hint = if self.options.renames.is_empty() { "" } else { "; change a --rename" };
                Err(Error::refused(format!("{place}: two tensors would have the same name, {name}{hint}")))
            }
        }
    }

    /// Gives a tensor the name that was asked for.
    fn rename(&mut self, tensor: &mut Arranged, decision: &mut Decision) -> Result<(), Error> {
        let name = self.renames.apply(&tensor.info.name);
        if name == tensor.info.name {
            return Ok(());
        }
        if let Some(stored) = &mut decision.stored {
            let stem = name.strip_suffix(".weight").filter(|stem| !stem.is_empty());
            let stem = stem.ok_or_else(|| {
                let why = "the names of quantized weights end in .weight";
                Error::spec(format!("--rename: {} would be {name}; {why}", tensor.info.name))
            })?;
            stem.clone_into(&mut stored.weight.stem);
        }
        if name.is_empty() {
            return Err(Error::spec(format!("--rename: {} would have no name", tensor.info.name)));
        }
        tensor.info.name = name;
        Ok(())
    }

    /// The set as messages call it: its directory, and its stem where that is not the usual one.
    fn place_of(&self, set: &Set) -> String {
        let dir = if set.dir.is_empty() { String::new() } else { format!("/{}", set.dir) };
        let stem = if set.stem == "model" { String::new() } else { format!(" ({}.safetensors)", set.stem) };
        format!("{}{dir}{stem}", self.source.name())
    }

    /// The tensors that one tensor of the arrangement becomes.
    fn unit(&mut self, set: &Set, tensor: &Arranged, decision: &Decision) -> Result<Unit, Error> {
        let Some(first) = tensor.from.first() else {
            return Ok(nothing(tensor));
        };
        let place = &set.places[first.tensor];
        let own = |p: &Place| p.shard == place.shard && p.is_own(set);
        let at_home = tensor.from.iter().all(|s| own(&set.places[s.tensor]));
        let unit = |outputs, as_is| Unit { home: place.shard, offset: place.range.start, as_is, at_home, outputs };
        if let Some(stored) = &decision.stored {
            let from = origin::origin(set, tensor)?;
            let planned =
                origin::planned(self.source, stored.weight.clone(), from, stored.scheme.clone(), stored.parts.clone());
            return Ok(unit(self.weigh(planned)?, false));
        }
        let len = tensor
            .info
            .byte_len()
            .ok_or_else(|| Error::refused(format!("tensor {}: its size overflows", tensor.info.name)))?
            as u64;
        if let Some(runs) = origin::runs(set, tensor) {
            let contents = runs.into_iter().map(|(file, offset, n)| (Content::Source { file, offset }, n)).collect();
            let as_is = tensor.from.len() == 1 && set.tensors[first.tensor] == tensor.info && place.is_own(set);
            return Ok(unit(vec![Output { info: tensor.info.clone(), len, contents }], as_is));
        }
        let from = origin::origin(set, tensor)?;
        let weight = Weight { stem: tensor.info.name.clone(), float: from.float, shape: tensor.info.shape.clone() };
        let scheme = std::sync::Arc::new(Cast);
        let parts = scheme.parts(&weight).map_err(|e| Error::refused(format!("tensor {}: {e}", tensor.info.name)))?;
        let planned = origin::planned(self.source, weight, from, scheme, parts);
        Ok(unit(self.weigh(planned)?, false))
    }

    /// Adds a weight to the plan; the tensors that hold its parts.
    fn weigh(&mut self, planned: Planned) -> Result<Vec<Output>, Error> {
        let overflow = || Error::refused("more weights than a plan can hold".to_owned());
        let weight = u32::try_from(self.plan.weights.len()).map_err(|_| overflow())?;
        let mut outputs = vec![];
        for (number, part) in planned.parts.iter().enumerate() {
            let info = TensorInfo {
                name: format!("{}{}", planned.weight.stem, part.suffix),
                dtype: part.dtype,
                shape: part.shape.clone(),
            };
            let len = part.len() as u64;
            let content = match &part.content {
                PartContent::Constant(bytes) => Content::Bytes(bytes.clone()),
                PartContent::Tiled { .. } | PartContent::First => {
                    Content::Part { weight, part: u16::try_from(number).map_err(|_| overflow())? }
                }
            };
            outputs.push(Output { info, len, contents: vec![(content, len)] });
        }
        self.plan.weights.push(planned);
        Ok(outputs)
    }

    /// The weight that was added last.
    fn last_weight(&self) -> Option<u32> {
        self.plan.weights.len().checked_sub(1).and_then(|last| u32::try_from(last).ok())
    }

    fn write_documents(&mut self, set: &Set, component: &Component<'_>, scope: &Scope<'_>, decided: &[Decided<'_>]) {
        let dialect = scope.dialect;
        let shards = || set.shards.iter().map(|s| s.file);
        let name = set.path(&format!("{}.safetensors.index.json", set.stem));
        let modified = layout::newest(self.source, shards().chain(set.index));
        let index = layout::known(name.clone(), modified, dialect.index(component, decided));
        self.patched.insert(name, Some(index));
        let Some(config) = &set.config else { return };
        let path = set.path("config.json");
        if self.patched.contains_key(&path) {
            return;
        }
        if let Some(bytes) = dialect.config(component, scope.default.as_deref(), decided) {
            let inputs = [Some(config.file), set.generation_config.as_ref().map(|g| g.file)];
            let modified = layout::newest(self.source, inputs.into_iter().flatten());
            self.patched.insert(path.clone(), Some(layout::known(path, modified, bytes)));
        }
    }

    fn list_layers(&mut self, set: &Set, arrangement: &Arrangement, decisions: &[Decision], names: &[String]) {
        for ((tensor, decision), file) in arrangement.tensors.iter().zip(decisions).zip(names) {
            let Some(stored) = &decision.stored else { continue };
            let from = tensor.from.first().map(|s| set.shards[set.places[s.tensor].shard].file);
            self.layers.push(manifest::Layer {
                component: set.dir.clone(),
                base: stored.weight.stem.clone(),
                shape: stored.weight.shape.clone(),
                file: from.map_or_else(String::new, |f| self.source.entry(f).path.clone()),
                quant_file: set.path(file),
                facts: stored.scheme.facts(),
                format: stored.spec.format().name(),
                spec: stored.spec.to_string(),
            });
        }
    }

    fn report_dropped(&mut self, set: &Set, arrangement: &Arrangement) {
        for (tensor, why) in &arrangement.dropped {
            let info = &set.tensors[*tensor];
            let before = info.byte_len().unwrap_or(0) as u64;
            self.plan.rows.push(Row {
                component: set.dir.clone(),
                name: info.name.clone(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                becomes: "dropped".to_owned(),
                why: why.clone(),
                bytes_before: before,
                bytes_after: 0,
                sources: vec![],
                weight: None,
                by_spec: false,
            });
        }
    }

    fn report(&mut self, set: &Set, tensor: &Arranged, decision: &Decision, bytes_after: u64) {
        let sources: Vec<&TensorInfo> = tensor.from.iter().map(|s| &set.tensors[s.tensor]).collect();
        let read = |s: &Slice| s.elements() as u64 * set.tensors[s.tensor].dtype.bitsize() as u64 / 8;
        let mut names: Vec<String> = sources.iter().map(|i| i.name.clone()).collect();
        names.dedup();
        let dtype = sources.first().map_or(tensor.info.dtype, |i| i.dtype);
        let dense =
            || if dtype == tensor.info.dtype { "kept".to_owned() } else { format!("cast to {}", tensor.info.dtype) };
        self.plan.rows.push(Row {
            component: set.dir.clone(),
            name: tensor.info.name.clone(),
            dtype,
            shape: tensor.info.shape.clone(),
            becomes: decision.stored.as_ref().map_or_else(dense, |s| s.spec.to_string()),
            why: told(&decision.why, set, tensor.from.iter().map(|slice| &set.places[slice.tensor])),
            bytes_before: tensor.from.iter().map(read).sum(),
            bytes_after,
            sources: names,
            weight: decision.stored.as_ref().and_then(|_| self.last_weight()),
            by_spec: decision.by_spec,
        });
    }

    /// Adds what is no weight, the manifest, and checks the whole.
    fn finish(mut self, snapshot: &Snapshot, decider: &Decider<'_>) -> Result<Plan, Error> {
        self.plan.hidden.clone_from(&snapshot.hidden);
        if decider.quantizes() && self.plan.weights.is_empty() {
            return Err(Error::refused(self.nothing_quantized()));
        }
        self.plan.warnings.extend_from_slice(&snapshot.warnings);
        for file in graph::lay(self.source, &self.drafted)? {
            self.patched.insert(file.path.clone(), Some(file));
        }
        let quantized_shards = self.plan.files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        for &file in &snapshot.others {
            let path = self.source.entry(file).path.clone();
            if !self.patched.contains_key(&path) && !quantized_shards.contains(&path) {
                self.plan.files.push(layout::whole(self.source, file, path));
            }
        }
        self.plan.files.extend(std::mem::take(&mut self.patched).into_values().flatten());
        self.add_manifests(decider);
        self.plan.files.sort_by(|a, b| a.path.cmp(&b.path));
        if let Some(pair) = self.plan.files.windows(2).find(|p| p[0].path == p[1].path) {
            return Err(Error::refused(format!(
                "{}: two files of the view would have this name; rename one in the source",
                pair[0].path
            )));
        }
        Ok(self.plan)
    }

    /// Adds what lists the quantized layers of the whole view.
    fn add_manifests(&mut self, decider: &Decider<'_>) {
        let view = decider.of_view();
        let default = view.default.as_ref().filter(|_| !view.spec.is_dense()).map(|scheme| scheme.facts());
        // A view that is dense but for some rules states the first layer's parameters as its default.
        let Some(default) = default.or_else(|| self.layers.first().map(|l| l.facts.clone())) else { return };
        let all = (0..self.source.entries().len()).filter_map(|i| u32::try_from(i).ok()).map(FileId);
        let modified = layout::newest(self.source, all);
        let head = manifest::Head { default: &default, repo: self.source.repo(), options: self.options.to_json() };
        let bytes = manifest::render(&head, &self.layers);
        let components: BTreeSet<&str> = self.layers.iter().map(|layer| layer.component.as_str()).collect();
        let components: Vec<&str> = components.into_iter().collect();
        let dialects = components.iter().map(|dir| decider.scope(dir).dialect).chain([view.dialect]);
        let names: BTreeSet<&str> = dialects.flat_map(|dialect| dialect.manifests(&components)).collect();
        for name in names {
            self.plan.files.push(layout::known(name.to_owned(), modified, bytes.clone()));
        }
    }

    fn nothing_quantized(&self) -> String {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for row in &self.plan.rows {
            *reasons.entry(&row.why).or_default() += 1;
        }
        let mut reasons: Vec<_> = reasons.into_iter().filter(|(why, _)| !why.is_empty()).collect();
        reasons.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        let reasons: Vec<String> = reasons.into_iter().take(3).map(|(why, n)| format!("{n} tensors: {why}")).collect();
        format!(
            "{}: not one weight would be quantized as {} ({}); choose another group size or format, or `source` for a plain mirror",
            self.source.name(),
            self.options.spec,
            reasons.join("; ")
        )
    }
}

/// Whether a view of this spec shows ONNX models as quantized ones.
fn reads_graphs(spec: &Spec) -> bool {
    spec.format().dialect().reads_graphs() && !spec.is_dense()
}

fn decided<'t>(
    spec: &Spec,
    arrangement: &'t Arrangement,
    decisions: &[Decision],
    units: &[Unit],
    names: &[String],
) -> Vec<Decided<'t>> {
    let each = arrangement.tensors.iter().zip(decisions).zip(units.iter().zip(names));
    each.map(|((tensor, decision), (unit, file))| Decided {
        tensor,
        facts: decision.stored.as_ref().map(|s| s.scheme.facts()),
        config: decision.stored.as_ref().map_or(Value::Null, |s| s.scheme.config()),
        listed: decision.stored.as_ref().is_some_and(|s| s.spec != *spec || s.entry.is_some()),
        entry: decision.stored.as_ref().and_then(|s| s.entry.clone()),
        bytes: unit.len(),
        shown: unit.outputs.iter().map(|o| (o.info.name.clone(), file.clone())).collect(),
    })
    .collect()
}

/// Why, and what lies beside the source and goes into it.
fn told<'p>(why: &str, set: &Set, places: impl Iterator<Item = &'p Place>) -> String {
    let (mut adapted, mut overridden) = (false, false);
    for place in places {
        adapted |= !place.deltas.is_empty();
        overridden |= place.file != set.shards[place.shard].file;
    }
    let notes = [(adapted, "adapted"), (overridden, "overridden")].into_iter().filter(|(so, _)| *so);
    let all: Vec<&str> =
        Some(why).filter(|why| !why.is_empty()).into_iter().chain(notes.map(|(_, note)| note)).collect();
    all.join("; ")
}

/// A tensor without elements lies nowhere in particular.
fn nothing(tensor: &Arranged) -> Unit {
    let outputs = vec![Output { info: tensor.info.clone(), len: 0, contents: vec![] }];
    Unit { home: 0, offset: 0, as_is: false, at_home: true, outputs }
}

/// A tensor of a model that is not quantized, however its dialect would show it then.
fn as_it_lies(set: &Set, tensor: &Arranged) -> Arranged {
    tensor.from.first().map_or_else(|| tensor.clone(), |s| Arranged::same(s.tensor, &set.tensors[s.tensor], None))
}

/// Bytes of a quantized weight of a model that lie beside its parts, since something else needs them.
fn beside(set: &Set, tensor: &Arranged, decision: &Decision) -> u64 {
    let (Some(graph), Some(_), Some(slice)) = (&set.graph, &decision.stored, tensor.from.first()) else { return 0 };
    let place = &set.places[slice.tensor];
    if graph.model.tensors[slice.tensor].needed { place.range.end - place.range.start } else { 0 }
}

fn component<'a>(set: &'a Set, options: &Options) -> Component<'a> {
    Component {
        dir: &set.dir,
        set: &set.stem,
        tensors: &set.tensors,
        config: set.config.as_ref().map(|d| &d.value),
        generation_config: set.generation_config.as_ref().map(|d| &d.value),
        dtype: options.dtype,
        mixed: None,
        graph: set.graph.as_ref().map(|g| &g.model),
    }
}
