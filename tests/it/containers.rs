//! Containers against their references: the `safetensors` crate, and Python's `json` module.

use std::collections::BTreeMap;

use ::safetensors::{SafeTensors, tensor::TensorView};
use proptest::prelude::*;
use quantfs::{
    container::{Malformed, index, json, safetensors},
    tensor::{Dtype, TensorInfo},
};
use serde_json::Value;

use crate::common::headers::{file, header};

const DTYPES: [Dtype; 22] = [
    Dtype::BOOL,
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::F6_E3M2,
    Dtype::U8,
    Dtype::I8,
    Dtype::F8_E5M2,
    Dtype::F8_E4M3,
    Dtype::F8_E8M0,
    Dtype::F8_E4M3FNUZ,
    Dtype::F8_E5M2FNUZ,
    Dtype::I16,
    Dtype::U16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::I32,
    Dtype::U32,
    Dtype::F32,
    Dtype::C64,
    Dtype::F64,
    Dtype::I64,
    Dtype::U64,
];

type Metadata = BTreeMap<String, String>;

/// Tensors with distinct names (any characters at all), whole bytes, some of them empty.
fn tensors() -> impl Strategy<Value = Vec<TensorInfo>> {
    let tensor = (any::<String>(), prop::sample::select(&DTYPES[..]), prop::collection::vec(0usize..5, 0..4));
    prop::collection::vec(tensor, 0..8).prop_map(|drawn| {
        let drawn: BTreeMap<_, _> = drawn.into_iter().map(|(name, dtype, shape)| (name, (dtype, shape))).collect();
        let infos = drawn.into_iter().map(|(name, (dtype, shape))| TensorInfo { name, dtype, shape });
        infos.filter(|info| info.byte_len().is_some()).collect()
    })
}

fn metadata() -> impl Strategy<Value = Option<Metadata>> {
    prop::option::of(prop::collection::btree_map(any::<String>(), any::<String>(), 0..4))
}

/// A file as the crate writes it.
fn written_by_the_crate(infos: &[TensorInfo], metadata: Option<Metadata>) -> Vec<u8> {
    let data = vec![0; infos.iter().map(|info| info.byte_len().unwrap()).max().unwrap_or(0)];
    let view =
        |info: &TensorInfo| TensorView::new(info.dtype, info.shape.clone(), &data[..info.byte_len().unwrap()]).unwrap();
    let views: Vec<_> = infos.iter().map(|info| (info.name.clone(), view(info))).collect();
    ::safetensors::serialize(views, metadata.map(|m| m.into_iter().collect())).unwrap()
}

/// What a header says, in a form that both readers' answers have: dtype, shape and range by name.
type Said = (Metadata, BTreeMap<String, (Dtype, Vec<usize>, usize, usize)>);

fn said_by_the_crate(file: &[u8]) -> Result<Said, String> {
    let (len, read) = SafeTensors::read_metadata(file).map_err(|e| e.to_string())?;
    let start = len + 8;
    let tensors = read
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.dtype, t.shape.clone(), start + t.data_offsets.0, start + t.data_offsets.1)));
    let tensors = tensors.collect();
    Ok((read.metadata().clone().unwrap_or_default().into_iter().collect(), tensors))
}

fn said_by_us(file: &[u8]) -> Result<Said, Malformed> {
    let header = header(file)?;
    let offset = |at: u64| usize::try_from(at).unwrap();
    assert!(header.tensors.is_sorted_by_key(|t| t.range.start), "in the order of the data");
    let tensors = header
        .tensors
        .into_iter()
        .map(|t| (t.info.name, (t.info.dtype, t.info.shape, offset(t.range.start), offset(t.range.end))));
    let tensors = tensors.collect();
    Ok((header.metadata.into_iter().collect(), tensors))
}

/// Asserts that both readers say the same, or that we refuse on purpose what the crate takes.
fn agree(file: &[u8]) {
    match (said_by_us(file), said_by_the_crate(file)) {
        (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs),
        (Err(_), Err(_)) => {}
        (Err(ours), Ok(_)) => assert!(is_deliberate(&ours.what), "we alone refuse: {ours}"),
        (Ok(_), Err(theirs)) => panic!("the crate alone refuses: {theirs}"),
    }
}

/// What only we refuse; the module documentation lists it.
fn is_deliberate(why: &str) -> bool {
    why.contains("is there twice")
        || why.contains("over 64 dimensions")
        || why.contains("invalid type: sequence, expected an object with dtype")
}

proptest! {
    #[test]
    fn what_the_crate_writes_parses_equal(infos in tensors(), metadata in metadata()) {
        // With neither tensors nor pairs the crate (0.8.0) writes `{}"__metadata__":{}`, which it cannot read either.
        prop_assume!(!infos.is_empty() || metadata.as_ref().is_none_or(|m| !m.is_empty()));
        let file = written_by_the_crate(&infos, metadata);
        prop_assert_eq!(said_by_us(&file).unwrap(), said_by_the_crate(&file).unwrap());
    }

    #[test]
    fn what_we_render_parses_in_the_crate(infos in tensors(), metadata in metadata(), align in prop::sample::select(vec![0, 1, 8, 64, 4096])) {
        let pairs: Option<Vec<_>> = metadata.clone().map(|m| m.into_iter().collect());
        let rendered = safetensors::render(&infos, pairs.as_deref(), align).unwrap();
        prop_assert_eq!(rendered.preamble.len() % align.max(1), 0);
        let mut file = rendered.preamble;
        file.resize(usize::try_from(rendered.len).unwrap(), 0);
        let said = said_by_the_crate(&file).unwrap();
        prop_assert_eq!(&said, &said_by_us(&file).unwrap());
        prop_assert_eq!(said.0, metadata.unwrap_or_default());
        prop_assert_eq!(said.1.len(), infos.len());
        for (info, offset) in infos.iter().zip(rendered.offsets) {
            let (dtype, shape, start, _) = &said.1[&info.name];
            prop_assert_eq!((*dtype, shape, *start as u64), (info.dtype, &info.shape, offset));
        }
    }

    #[test]
    fn mutated_headers_are_accepted_alike(
        infos in tensors(),
        metadata in metadata(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&b"0123456789{}[]\",:. eE-\\ntUF\x00\xff"[..]), 0..3), 1..4),
    ) {
        let mut file = written_by_the_crate(&infos, metadata);
        for (at, byte, kind) in edits {
            let at = at.index(file.len());
            match kind {
                0 => file[at] = byte,
                1 => file.insert(at, byte),
                _ => { file.remove(at); }
            }
            // The length follows, so that not every edit ends in the first check.
            if kind != 0 && at >= 8 {
                let len = u64::from_le_bytes(file[..8].try_into().unwrap());
                let len = if kind == 1 { len + 1 } else { len.saturating_sub(1) };
                file[..8].copy_from_slice(&len.to_le_bytes());
            }
            prop_assume!(file.len() > 8);
        }
        agree(&file);
    }
}

/// Headers by hand, each with its data length: whatever the verdict, both readers have it.
#[test]
fn headers_by_hand_are_judged_alike() {
    let t = |rest: &str| format!(r#"{{"t":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]{rest}}}}}"#);
    let many =
        |n: usize| format!(r#"{{"t":{{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}}}}"#, vec!["1"; n].join(","));
    let cases = [
        (t(""), 2), (t(""), 1), (t(""), 3), (t(r#","more":[1,{"a":null}]"#), 2), (t(r#","dtype":"U8""#), 2),
        (t(&format!(r#","deep":{}{}"#, "[".repeat(200), "]".repeat(200))), 2),
        (t(&format!(r#","deep":{}{}"#, "[".repeat(100), "]".repeat(100))), 2),
        (t(&format!(r#","deep":{}1{}"#, r#"{"a":"#.repeat(200), "}".repeat(200))), 2),
        (t(r#","odd":"\ud800""#), 2), (t(r#","big":1e999"#), 2), (t(r#","big":123456789012345678901234567890"#), 2),
        (format!("  {}  \n", t("")), 2), (format!("{}x", t("")), 2), ("{}".into(), 0), ("{}".into(), 1), (String::new(), 0),
        ("null".into(), 0), ("[]".into(), 0), (r#"{"__metadata__":null}"#.into(), 0), (r#"{"__metadata__":{}}"#.into(), 0),
        (r#"{"__metadata__":{"a":1}}"#.into(), 0), (r#"{"__metadata__":{"a":null}}"#.into(), 0), (r#"{"__metadata__":[]}"#.into(), 0),
        (r#"{"__metadata__":{"a":"1"},"__metadata__":{}}"#.into(), 0), (r#"{"__metadata__":{"a":"1","a":"2"}}"#.into(), 0),
        (r#"{"t":["U8",[2],[0,2]]}"#.into(), 2), (r#"{"t":null}"#.into(), 0), (r#"{"t":{}}"#.into(), 0),
        (r#"{"t":{"dtype":{"U8":null},"shape":[2],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"u8","shape":[2],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2,4]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[0]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}"#.into(), 0),
        (r#"{"t":{"dtype":"U8","shape":[-1],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":["2"],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#.into(), 1),
        (r#"{"t":{"dtype":"U8","shape":[0,18446744073709551615,2],"data_offsets":[0,0]}}"#.into(), 0),
        (r#"{"t":{"dtype":"U8","shape":[18446744073709551615,2],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[2,0]}}"#.into(), 2),
        (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#.into(), 3),
        (r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.into(), 2),
        (r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.into(), 3),
        (r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.into(), 4),
        (many(64), 1), (many(65), 1),
    ];
    for (json, data) in &cases {
        agree(&file(json, *data));
    }
    let accepted = cases.iter().filter(|(json, data)| header(&file(json, *data)).is_ok()).count();
    assert_eq!(accepted, 15, "the table holds both kinds");
}

#[test]
fn what_mlx_writes_parses() {
    let json = r#"{"__metadata__":null,"b":{"data_offsets":[4,6],"dtype":"BF16","shape":[1]},"a":{"data_offsets":[0,4],"dtype":"U32","shape":[1]}}"#;
    let header = header(&file(json, 6)).unwrap();
    assert!(header.metadata.is_empty());
    let names: Vec<_> = header.tensors.iter().map(|t| t.info.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(header.data_start, 8 + json.len() as u64);
    assert_eq!(header.tensors[1].range, header.data_start + 4..header.data_start + 6);
}

#[test]
fn errors_name_the_tensor_and_the_place() {
    let cases = [
        (r#"{"t":{"dtype":"Q9","shape":[2],"data_offsets":[0,2]}}"#, ["tensor `t`", "`Q9`", "at offset 25"]),
        (r#"{"t":{"dtype":"U8","shape":[3],"data_offsets":[0,2]}}"#, ["tensor `t`", "takes 3 bytes", "give 2"]),
        (r#"{"t":{"dtype":"U8","shape":[2],"data_offsets":[7,9]}}"#, ["tensor `t`", "7 bytes before", "offset 0"]),
        (r#"{"t":{"dtype":"U8","data_offsets":[0,2]}}"#, ["tensor `t`", "missing field `shape`", "at offset 47"]),
    ];
    for (json, expected) in cases {
        let error = header(&file(json, 2)).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{error:?} should say {part:?}");
        }
    }
}

#[test]
fn render_refuses_what_no_reader_takes() {
    let info = |name: &str, dtype, shape: &[usize]| TensorInfo { name: name.into(), dtype, shape: shape.into() };
    let a = info("a", Dtype::U8, &[1]);
    let refused = |tensors: &[TensorInfo], what: &str| {
        let error = safetensors::render(tensors, None, 8).unwrap_err().to_string();
        assert!(error.contains(what), "{error:?} should say {what:?}");
    };
    refused(&[a.clone(), a.clone()], "`a` would be there twice");
    refused(&[info("__metadata__", Dtype::U8, &[1])], "reserved");
    refused(&[info("f", Dtype::F4, &[3])], "no size in whole bytes");
    refused(&[info("f", Dtype::U8, &[usize::MAX, 2])], "no size in whole bytes");
    let twice = [("k".to_owned(), "1".to_owned()), ("k".to_owned(), "2".to_owned())];
    assert!(safetensors::render(&[a], Some(&twice), 8).unwrap_err().to_string().contains("`k` would be"));
}

#[test]
fn an_index_is_read_in_order_and_strictly() {
    let read = index::parse(
        br#"{"metadata":{"total_size":7},"weight_map":{"b":"x-1.safetensors","a":"x-2.safetensors"},"more":[]}"#,
    )
    .unwrap();
    assert_eq!(read.metadata["total_size"], 7);
    assert_eq!(read.weight_map[0], ("b".to_owned(), "x-1.safetensors".to_owned()));
    assert_eq!(index::parse(br#"{"metadata":null,"weight_map":{}}"#).unwrap(), index::Index::default());
    let refused = [
        (r#"{"weight_map":{"a":"../x"}}"#, "tensor `a`"),
        (r#"{"weight_map":{"a":".."}}"#, "no file name"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "no plain file name"),
        (r#"{"weight_map":{"a":"d\\x"}}"#, "no plain file name"),
        (r#"{"weight_map":{"a":"x\u0000"}}"#, "control characters"),
        (r#"{"weight_map":{"a":"x","a":"y"}}"#, "`a` is there twice"),
        (r#"{"weight_map":{},"weight_map":{}}"#, "`weight_map` is there twice"),
        (r#"{"metadata":null,"metadata":null,"weight_map":{}}"#, "`metadata` is there twice"),
        (r#"{"weight_map":{"a":1}}"#, "`a`: invalid type"),
        (r#"{"metadata":{}}"#, "no `weight_map`"),
        (r#"{"metadata":{"a":1,"a":2},"weight_map":{}}"#, "`metadata`: `a` is there twice"),
        (r#"{"metadata":[],"weight_map":{}}"#, "`metadata`: invalid type"),
        ("[]", "expected an object"),
        ("", "EOF"),
    ];
    for (json, what) in refused {
        let error = index::parse(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(what), "{error:?} should say {what:?}");
    }
}

/// A table that `scripts/golden/python_json.py` wrote.
fn golden(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(format!("tests/golden/json/{name}")).unwrap();
    let table: Value = serde_json::from_str(&text).unwrap();
    table["cases"].as_array().unwrap().clone()
}

#[test]
fn json_is_read_and_written_as_python_does() {
    let cases = golden("read.json");
    assert!(cases.len() > 1000);
    for case in cases {
        let (text, indent) = (case[0].as_str().unwrap(), usize::try_from(case[1].as_u64().unwrap()).unwrap());
        let value = json::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{text:?}: {e}"));
        assert_eq!(json::render(&value, indent), case[2].as_str().unwrap(), "of {text:?} with indent {indent}");
    }
}

#[test]
fn json_that_python_refuses_is_refused() {
    for case in golden("refused.json") {
        let text = case.as_str().unwrap();
        assert!(json::parse(text.as_bytes()).is_err(), "{text:?} was accepted");
    }
}

#[test]
fn json_of_values_made_here_renders_as_python_would() {
    let value = serde_json::json!({"a": 1e16, "b": 0.1, "c": 1.0, "d": -7, "e": u64::MAX, "f": 1e-5f64});
    let expected =
        "{\n \"a\": 1e+16,\n \"b\": 0.1,\n \"c\": 1.0,\n \"d\": -7,\n \"e\": 18446744073709551615,\n \"f\": 1e-05\n}";
    assert_eq!(json::render(&value, 1), expected);
}
