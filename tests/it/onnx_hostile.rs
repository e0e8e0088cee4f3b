//! Hostile ONNX models: whatever the bytes, an answer, in bounded time and memory, without a panic.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use quantfs::container::onnx::{self, Edit, External, MAX_MODEL, NBits, Part};
use rustix::process::{Resource, Rlimit, setrlimit};

fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx/models").join(name)).unwrap()
}

/// An edit for every tensor: moved, quantized, or gone.
fn edit(at: usize, tensor: &External) -> Edit {
    let part = |name: &str| Part {
        name: format!("{}{name}", tensor.name),
        bytes: name == "_Q4",
        shape: vec![1, 2],
        range: 3..5,
    };
    let factor = tensor.products > 0 && tensor.shape.len() == 2;
    let product = factor.then(|| NBits { bits: 4, block: 32, parts: vec![part("_Q4"), part("_scales")] });
    Edit { range: (!at.is_multiple_of(3)).then_some(7..9), product }
}

/// Parses; what parses is rendered, and what is rendered parses.
fn feed(bytes: &[u8]) -> bool {
    let model = match onnx::parse(bytes) {
        Ok(model) => model,
        Err(e) => {
            assert!(e.what.len() < 4000, "no screen can show it");
            return false;
        }
    };
    for tensor in &model.tensors {
        if let Ok(range) = tensor.range(1 << 40) {
            assert!(range.start <= range.end && range.end <= 1 << 40);
        }
    }
    let edits: Vec<Edit> = model.tensors.iter().enumerate().map(|(at, tensor)| edit(at, tensor)).collect();
    let rendered = onnx::render(bytes, &model, &edits).unwrap();
    let parts: usize = edits.iter().filter_map(|e| e.product.as_ref()).map(|p| p.parts.len()).sum();
    let kept = edits.iter().filter(|e| e.range.is_some()).count();
    match onnx::parse(&rendered) {
        Ok(again) => assert_eq!(again.tensors.len(), parts + kept),
        // Names that are there already make a model that says two things; the dialect looks for them.
        Err(e) => assert!(e.what.contains("twice"), "{e}"),
    }
    true
}

#[test]
fn every_truncation_and_every_flipped_bit_is_survived() {
    for name in ["odd-f32/model.onnx", "plain-f16/model.onnx"] {
        let whole = golden(name);
        assert!(feed(&whole));
        for len in 0..whole.len() {
            feed(&whole[..len]);
        }
        let mut accepted = 0;
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            accepted += usize::from(feed(&flipped));
        }
        assert!(accepted > whole.len(), "most flips change a name or a number");
    }
}

/// A field of a message, a string or bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend(bytes);
    out
}

/// Messages of the fields that models have, with numbers that may lie, to any depth.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let name =
        prop::sample::select(vec!["a", "b", "MatMul", "location", "offset", "length", "99", "-1", "", "com.microsoft"]);
    let number = prop::sample::select(vec![0u8, 1, 2, 10, 127]);
    let leaf = prop_oneof![
        (1u8..16, name).prop_map(|(n, name)| field(n, name.as_bytes())),
        (1u8..16, number).prop_map(|(n, value)| vec![n << 3, value]),
        (1u8..16, any::<Vec<u8>>()).prop_map(|(n, bytes)| field(n, &bytes)),
        any::<[u8; 3]>().prop_map(|bytes| bytes.to_vec()),
    ];
    leaf.prop_recursive(6, 60, 8, |inner| {
        let fields = prop::sample::select(vec![1u8, 2, 5, 6, 7, 8, 11, 12, 13, 14, 15]);
        (fields, prop::collection::vec(inner, 0..8)).prop_map(|(n, members)| field(n, &members.concat()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn messages_nearly_right_never_panic(graph in prop::collection::vec(message(), 0..12), rest in message()) {
        feed(&[field(7, &graph.concat()), rest].concat());
    }

    #[test]
    fn any_bytes_never_panic(bytes in any::<Vec<u8>>()) {
        feed(&bytes);
    }
}

/// A graph in the attribute of a node in a graph, so many times.
fn nested(levels: usize, inside: &[u8]) -> Vec<u8> {
    let body = (0..levels).fold(inside.to_vec(), |graph, _| field(1, &field(5, &field(6, &graph))));
    field(7, &body)
}

#[test]
fn nesting_is_bounded() {
    assert!(onnx::parse(&nested(33, &[])).is_ok());
    let error = onnx::parse(&nested(34, &[])).unwrap_err().to_string();
    assert!(error.contains("over 100 messages within messages"), "{error}");
    assert!(onnx::parse(&nested(20_000, &[])).is_err());
}

/// An initializer in another file.
fn initializer(name: &str) -> Vec<u8> {
    let location = field(13, &[field(1, b"location"), field(2, b"x")].concat());
    field(5, &[field(8, name.as_bytes()), location, vec![14 << 3, 1]].concat())
}

/// `item` again and again in a graph, up to the cap.
fn many(item: impl Fn(usize) -> Vec<u8>) -> Vec<u8> {
    let room = usize::try_from(MAX_MODEL).unwrap() - 4096;
    let mut graph = Vec::with_capacity(room);
    for n in 0.. {
        let next = item(n);
        if graph.len() + next.len() > room {
            return field(7, &graph);
        }
        graph.extend(next);
    }
    unreachable!("the room is finite")
}

/// Runs alone in its own process, where memory is limited: see the test below.
#[test]
#[ignore = "started by bombs_cost_bounded_time_and_memory in a process of its own"]
fn bombs_in_this_process() {
    let limit = Some(20 * MAX_MODEL);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
    let node = |fields: &[u8]| field(1, fields);
    let product = |n: usize| {
        node(&[field(1, b"x"), field(1, b"w"), field(2, format!("{n:x}").as_bytes()), field(4, b"MatMul")].concat())
    };
    type Bomb<'a> = (&'a str, Box<dyn Fn() -> Vec<u8> + 'a>);
    let bombs: [Bomb<'_>; 9] = [
        ("empty nodes", Box::new(|| many(|_| node(&[])))),
        ("empty fields", Box::new(|| many(|_| field(9, &[])))),
        ("empty tensors", Box::new(|| many(|_| field(5, &[])))),
        ("names", Box::new(|| many(|n| node(&field(1, format!("{n:x}").as_bytes()))))),
        ("tensors outside", Box::new(|| many(|n| initializer(&format!("{n:x}"))))),
        ("products", Box::new(|| many(|n| if n == 0 { initializer("w") } else { product(n) }))),
        ("graphs", Box::new(|| many(|_| node(&field(5, &field(11, &[])))))),
        ("dimensions", Box::new(|| field(7, &field(5, &[8, 1].repeat(30 << 20))))),
        ("deep", Box::new(|| nested(33, &many(|_| node(&[]))))),
    ];
    for (name, make) in bombs {
        let bytes = make();
        let start = Instant::now();
        feed(&bytes);
        assert!(start.elapsed() < Duration::from_secs(60), "{name} took {:?}", start.elapsed());
    }
}

#[test]
fn bombs_cost_bounded_time_and_memory() {
    let test = std::env::current_exe().unwrap();
    let arguments = ["--exact", "onnx_hostile::bombs_in_this_process", "--ignored", "--test-threads=1", "--nocapture"];
    let ran = Command::new(test).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}
