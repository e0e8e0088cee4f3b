//! What a program expects of a directory, compared with what is there. Reads no weight.

use crate::runtime::Weights;

/// How many names a list shows.
const SAMPLES: usize = 5;

/// A tensor of another shape than expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The tensor.
    pub name: String,
    /// What was expected.
    pub expected: Vec<usize>,
    /// What is there.
    pub found: Vec<usize>,
}

/// What an audit found; names in the order of what was expected, extra ones sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Tensors that were expected and are there, with the expected shape.
    pub matched: usize,
    /// Tensors that were expected and are not there.
    pub missing: Vec<String>,
    /// Tensors that nobody expected; parts of expected weights are none of them.
    pub extra: Vec<String>,
    /// Tensors that are there with another shape.
    pub mismatched: Vec<Mismatch>,
}

impl Audit {
    /// Whether everything that was expected is there; extra tensors do not count.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty()
    }
}

impl std::fmt::Display for Audit {
    /// Counts, and the first names of each list.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} matched", self.matched)?;
        let mismatched: Vec<String> =
            self.mismatched.iter().map(|m| format!("{} {:?}, not {:?}", m.name, m.found, m.expected)).collect();
        let lists = [("missing", &self.missing), ("extra", &self.extra), ("of another shape", &mismatched)];
        for (what, names) in lists.into_iter().filter(|(_, names)| !names.is_empty()) {
            let more = if names.len() > SAMPLES { ", ..." } else { "" };
            write!(f, "; {} {what}: {}{more}", names.len(), names[..names.len().min(SAMPLES)].join(", "))?;
        }
        Ok(())
    }
}

impl Weights {
    /// Compares names and shapes with what a program expects. A weight is expected under its dense
    /// name and shape (`X.weight`, `[out, in]`), however it is stored.
    ///
    /// ```
    /// use quantfs::runtime::Weights;
    /// # let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mlx_lm/llama_q4_g64");
    /// let weights = Weights::open(dir)?;
    /// let audit = weights.audit([
    ///     ("model.norm.weight", &[64][..]),
    ///     ("model.layers.0.mlp.up_proj.weight", &[128, 64]), // 4-bit codes, scales and biases
    ///     ("model.layers.0.mlp.gate_proj.weight", &[64, 64]),
    ///     ("model.layers.7.mlp.up_proj.weight", &[128, 64]),
    /// ]);
    /// assert_eq!((audit.matched, audit.is_sound()), (2, false));
    /// assert_eq!(audit.missing, ["model.layers.7.mlp.up_proj.weight"]);
    /// assert_eq!(audit.mismatched[0].found, [128, 64]);
    /// assert!(audit.to_string().starts_with("2 matched; 1 missing: model.layers.7.mlp.up_proj.weight; "));
    /// # Ok::<(), quantfs::runtime::Error>(())
    /// ```
    #[must_use]
    pub fn audit<'a>(&self, expected: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Audit {
        let mut audit = Audit::default();
        let mut seen = std::collections::BTreeSet::new();
        for (name, shape) in expected {
            let module = name.strip_suffix(".weight");
            let found = module.and_then(|stem| self.weight_shape(stem)).or_else(|| self.shape_of(name));
            seen.extend(module.map(|stem| self.weight_parts(stem)).unwrap_or_default());
            seen.insert(name.to_owned());
            match found {
                None => audit.missing.push(name.to_owned()),
                Some(found) if found == shape => audit.matched += 1,
                Some(found) => {
                    audit.mismatched.push(Mismatch { name: name.to_owned(), expected: shape.to_vec(), found });
                }
            }
        }
        audit.extra = self.names().filter(|name| !seen.contains(*name)).map(str::to_owned).collect();
        audit
    }
}
