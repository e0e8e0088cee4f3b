"""What a mount tells of itself, read by others' parsers: metrics, plan, status, attributes, the HF cache as a source."""

import json
import os
import shutil

from prometheus_client.parser import text_string_to_metric_families

from conftest import mounted, run


def test_what_a_mount_tells(snapshots):
    source = snapshots("llama", shards=2)
    with mounted(source, "--spec", "4bit-g32", "--rule", "lm_head=8bit") as view:
        for shard in view.glob("*.safetensors"):
            shard.read_bytes()
        families = {f.name: f for f in text_string_to_metric_families((view / ".quantfs/metrics").read_text())}
        assert families["quantfs_served_bytes"].type == "counter" and families["quantfs_cache_bytes"].type == "gauge"
        assert families["quantfs_served_bytes"].samples[0].value > 0
        plan = json.loads((view / ".quantfs/plan.json").read_text())
        assert plan == json.loads(run("inspect", source, "--spec", "4bit-g32", "--rule", "lm_head=8bit", "--json").stdout)
        status = json.loads(run("status", view, "--json").stdout)
        assert status["spec"] == "mlx-4bit-g32" and status["counters"]["errors"] == 0
        assert json.loads((view / ".quantfs/status.json").read_text())["pid"] == status["pid"]
        assert os.getxattr(view / "config.json", "user.quantfs.spec") == b"mlx-4bit-g32"
        assert ".quantfs" not in os.listdir(view)


def test_nan_and_infinity_are_counted(snapshots, tmp_path):
    import numpy as np

    source = shutil.copytree(snapshots("llama"), tmp_path / "model")
    path = source / "model.safetensors"
    data = bytearray(path.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = 8 + size + json.loads(data[8 : 8 + size])["model.embed_tokens.weight"]["data_offsets"][0]
    data[start : start + 6] = np.array([0x7FC0, 0xFF80, 0x7F80], np.uint16).tobytes()
    path.write_bytes(data)
    with mounted(source, "--bits", 4) as view:
        (view / "model.safetensors").read_bytes()
        assert json.loads(run("status", view, "--json").stdout)["counters"]["not_finite"] == 3


def test_a_repo_of_the_cache(snapshots, tmp_path):
    """org/name[@revision] is found in the Hugging Face cache, whose snapshots are links to blobs."""
    repo, commit = tmp_path / "hub/models--org--name", "0123456789abcdef0123456789abcdef01234567"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    source = snapshots("qwen2", shards=2)
    for i, file in enumerate(source.iterdir()):
        shutil.copy(file, repo / f"blobs/{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    cache = dict(os.environ, HF_HOME=str(tmp_path))
    cache.pop("HF_HUB_CACHE", None)
    for name in ("org/name", "org/name@main", f"org/name@{commit}"):
        plan = json.loads(run("inspect", name, "--json", env=cache).stdout)
        assert plan["totals"]["quantized"] > 10 and len(plan["files"]) == len(list(source.iterdir())) + 1, name
    out = tmp_path / "out"
    run("export", "org/name", out, "--bits", 4, env=cache)
    manifest = json.loads((out / "quantization.json").read_text())
    assert (manifest["model_id"], manifest["revision"]) == ("org/name", commit)
    missing = run("inspect", "org/other", check=False, env=cache)
    assert missing.returncode == 1 and "org/other" in missing.stderr and str(tmp_path) in missing.stderr
