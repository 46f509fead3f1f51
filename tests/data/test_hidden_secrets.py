"""Nothing that leaves a program holds a login or a token, however it leaves."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from data import hidden_secrets
from data.hidden_secrets import hide_secrets, learn_secrets, scrubbed

ADDRESS = "https://me:pass%20word@host/a?X-Sig=abcdef123&size=1024#fragment"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(hidden_secrets, "_known", set())


def test_addresses_in_any_text_are_shown_without_secrets():
    text = f'failed: \'{ADDRESS}\', then [{ADDRESS},{ADDRESS}] and {{"url": "s3://key:secret@bucket/x"}}.'
    shown = scrubbed(text)
    assert shown.count("https://host/a") == 2
    assert "s3://bucket/x" in shown
    assert not any(word in shown for word in ("pass", "abcdef123", "secret", "fragment"))


def test_what_a_library_quotes_of_a_known_address_is_hidden_and_plain_numbers_are_not():
    assert not learn_secrets("https://host/a nothing secret")
    assert learn_secrets(f"shards: {ADDRESS}")
    for quoted in ("nonnumeric port: 'pass%20word@host'", "401 for pass word", "signature abcdef123 has ended"):
        assert "..." in scrubbed(quoted)
        assert not any(word in scrubbed(quoted) for word in ("pass", "abcdef123"))
    learn_secrets("https://host/a?format=parquet")
    assert scrubbed("loss of 1024 samples of parquet") == "loss of 1024 samples of parquet"


PROGRAM = """
import logging, sys
from pathlib import Path
from data.hidden_secrets import hide_secrets
hide_secrets()
print("reads", sys.argv[1])
logging.warning("cannot read %s", sys.argv[1])
print(Path("/proc/self/cmdline").read_text() if Path("/proc/self/cmdline").exists() else "")
raise ValueError(f"nonnumeric port: '{sys.argv[1][8:30]}'")
"""


def test_prints_logs_tracebacks_and_the_title_of_a_process_hide_them():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, ADDRESS], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert "reads https://host/a" in done.stdout
    assert "cannot read https://host/a" in done.stderr
    assert "Traceback" in done.stderr
    assert not any(word in done.stdout + done.stderr for word in ("pass%20word", "pass word", "abcdef123"))


@pytest.mark.parametrize("password", ["pa#ss-word", "pa?ss-word", "se/cret-word", "p@ss:w0rd-1"])
def test_a_password_that_nobody_escaped_is_hidden_as_a_whole_and_in_parts(password: str):
    address = f"https://me:{password}@host:8443/a@b/0.tar"
    assert scrubbed(f"cannot read {address}") == "cannot read https://host:8443/a@b/0.tar"
    learn_secrets(address)
    assert password not in scrubbed(f"port could not be cast: {password!r}")
    longest = max(password.replace("?", "#").replace("/", "#").split("#"), key=len)
    assert longest not in scrubbed(f"nonnumeric port: '{longest}'")


def test_secrets_of_the_environment_are_hidden_and_switches_are_not(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train"])
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2)]  # one that nobody keeps closes what it wraps
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    shown = {
        "TOKENIZERS_PARALLELISM": "disabled",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path),
        "MAX_TOKENS": "100000",
    }
    kept = {"AWS_SECRET_ACCESS_KEY": "/abc+def/1", "WANDB_API_KEY": "0123abc", "HF_TOKEN": "tok-1234"}
    for name, value in {**shown, **kept}.items():
        monkeypatch.setenv(name, value)
    hide_secrets()
    print(*shown.values(), *kept.values())
    sys.stdout.flush()
    assert streams[0].buffer.getvalue().decode().split() == [*shown.values(), "...", "...", "..."]
