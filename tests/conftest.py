"""Fixtures of all tests; each part's lie in a file of `tests/fixtures`."""

pytest_plugins = [f"tests.fixtures.{part}" for part in ("pipelines", "sampling", "shards", "text", "training")]
