//! Views of directories, read whole, and what safetensors files hold.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use quantfs::{
    plan::{self, Error, Options, Parts, Rule, Spec},
    source::{self, Caches, Source},
    tensor::Dtype,
    view::{self, Engine, View},
};

use safetensors::SafeTensors;

use super::tables::select_kernels;

/// Dtype, shape and bytes of tensors, by name.
pub(crate) type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The tensors of a file, as the `safetensors` crate reads it.
pub(crate) fn tensors(file: &[u8]) -> Tensors {
    let found = SafeTensors::deserialize(file).unwrap().tensors().into_iter();
    found.map(|(name, t)| (name, (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

/// The tensors of `tests/golden/PATH.safetensors`.
pub(crate) fn golden(path: &str) -> Tensors {
    select_kernels();
    let path = format!("{}/tests/golden/{path}.safetensors", env!("CARGO_MANIFEST_DIR"));
    tensors(&fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")))
}

pub(crate) fn open(path: &Path) -> Box<dyn Source> {
    source::open(path.to_str().unwrap(), &Caches { hub: vec![] }).unwrap()
}

/// A spec with rules.
pub(crate) fn options(spec: &str, rules: &[&str]) -> Result<Options, Error> {
    let mut options = Options::new(Spec::parse(Some(spec), &Parts::default())?);
    options.rules = rules.iter().map(|rule| Rule::parse(rule, &options.spec)).collect::<Result<_, _>>()?;
    Ok(options)
}

/// The view of a source.
pub(crate) fn view(source: Arc<dyn Source>, options: &Options) -> Result<Arc<View>, Error> {
    select_kernels();
    let plan = plan::build(source.as_ref(), options)?;
    Ok(View::new(Arc::new(plan), source, Engine::new(view::Options::default()).unwrap()))
}

/// The view of a directory or file.
pub(crate) fn view_of(path: &Path, spec: &str, rules: &[&str]) -> Result<Arc<View>, Error> {
    view(open(path).into(), &options(spec, rules)?)
}

/// Every file of a view by its path.
pub(crate) fn files(view: &Arc<View>) -> BTreeMap<String, Vec<u8>> {
    let read = |(number, file): (usize, &plan::File)| {
        let mut bytes = vec![0; usize::try_from(file.len).unwrap()];
        assert_eq!(view.read_at(number, 0, &mut bytes).unwrap(), bytes.len());
        (file.path.clone(), bytes)
    };
    view.plan().files.iter().enumerate().map(read).collect()
}
