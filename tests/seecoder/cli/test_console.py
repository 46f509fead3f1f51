"""Safe names, and files that are kept."""

import pytest

from seecoder.cli.console import check_new, safe_name


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("", "picture"),
        ("猫.png", "png"),
        ("a b\x00c", "a-b-c"),
        ("x" * 99, "x" * 40),
    ],
)
def test_names_become_safe(name, safe):
    assert safe_name(name) == safe


def test_existing_files_are_kept(tmp_path):
    (tmp_path / "a").write_text("x")
    check_new([tmp_path / "b"], overwrite=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_new([tmp_path / "a"], overwrite=False)
    check_new([tmp_path / "a"], overwrite=True)
    with pytest.raises(NotADirectoryError, match="is a file"):
        check_new([tmp_path / "a" / "b"], overwrite=True)
