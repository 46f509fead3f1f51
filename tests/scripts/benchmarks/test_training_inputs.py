from pathlib import Path

from data.shards.manifest import read_manifest
from scripts.benchmarks.training_inputs import toy_workload, write_pictures


def test_pictures_are_written_as_shards_of_jpeg_with_the_bytes_of_photographs(tmp_path: Path):
    write_pictures(tmp_path / "shards", shards=2, count=3)
    assert sum(shard.samples for shard in read_manifest(tmp_path / "shards").shards) == 6


def test_the_toy_workload_has_the_same_samples_with_and_without_latents(tmp_path: Path):
    work = toy_workload(tmp_path)
    raw, cached = read_manifest(work.raw), read_manifest(work.cached)
    assert [shard.samples for shard in raw.shards] == [shard.samples for shard in cached.shards]
    assert sum(shard.bytes for shard in cached.shards) > sum(shard.bytes for shard in raw.shards)
    assert work.flops(work.naive) > 0
