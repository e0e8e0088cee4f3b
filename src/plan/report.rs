//! The plan as people and programs read it: what becomes of each tensor, and why.

use serde::Serialize;

use crate::{
    plan::{Content, File, Plan},
    tensor::Dtype,
};

/// What becomes of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Directory of its component, empty at the root.
    pub component: String,
    /// Name in the view; for a dropped tensor its name in the source.
    pub name: String,
    /// Dtype in the source.
    pub dtype: Dtype,
    /// Shape in the view.
    pub shape: Vec<usize>,
    /// A spec, `kept`, `cast to BF16`, or `dropped`.
    pub becomes: String,
    /// Why; empty where the view's spec says it all.
    pub why: String,
    /// Bytes in the source.
    pub bytes_before: u64,
    /// Bytes in the view, all parts.
    pub bytes_after: u64,
    /// Names of the source tensors it is made of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Index into [`Plan::weights`] of what it is stored as; `None` where it is not quantized.
    #[serde(skip)]
    pub weight: Option<u32>,
    /// Whether it is quantized as the view's own spec says, which neither a rule nor the model's predicate changed.
    #[serde(skip)]
    pub by_spec: bool,
}

impl Row {
    /// Bits that an element takes in the view.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        let elements: usize = self.shape.iter().product();
        if elements == 0 { 0.0 } else { self.bytes_after as f64 * 8.0 / elements as f64 }
    }
}

/// Sums over a plan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Totals {
    /// Tensors that are quantized.
    pub quantized: usize,
    /// Tensors that stay dense.
    pub dense: usize,
    /// Source tensors that are not shown.
    pub dropped: usize,
    /// Bytes of the shown and dropped tensors in the source.
    pub bytes_before: u64,
    /// Bytes of the tensors in the view.
    pub bytes_after: u64,
    /// Bits that an element of the view takes on average, over all shown tensors.
    pub bits_per_weight: f64,
}

impl Plan {
    /// Sums over all tensors.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let shown = |r: &&Row| r.becomes != "dropped";
        let dense = self.rows.iter().filter(|r| r.becomes == "kept" || r.becomes.starts_with("cast to ")).count();
        let dropped = self.rows.iter().filter(|r| !shown(r)).count();
        let elements: u64 = self.rows.iter().filter(shown).map(|r| r.shape.iter().product::<usize>() as u64).sum();
        let bytes_after = self.rows.iter().map(|r| r.bytes_after).sum::<u64>();
        Totals {
            quantized: self.rows.len() - dense - dropped,
            dense,
            dropped,
            bytes_before: self.rows.iter().map(|r| r.bytes_before).sum(),
            bytes_after,
            bits_per_weight: if elements == 0 { 0.0 } else { bytes_after as f64 * 8.0 / elements as f64 },
        }
    }

    /// Bytes of the files that hold tensors, headers included.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        let holds = |file: &&File| {
            let parts = file.extents.iter().any(|extent| matches!(extent.content, Content::Part { .. }));
            parts || file.path.ends_with(".safetensors")
        };
        self.files.iter().filter(holds).map(|file| file.len).sum()
    }

    /// The plan as JSON: spec, source, totals, tensors, files, warnings.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let files: Vec<_> = self.files.iter().map(|f| serde_json::json!({ "path": f.path, "bytes": f.len })).collect();
        serde_json::json!({
            "spec": self.spec,
            "source": self.source,
            "totals": self.totals(),
            "warnings": self.warnings,
            "hidden": self.hidden,
            "tensors": self.rows,
            "files": files,
        })
    }
}
