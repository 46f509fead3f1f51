"""Rows of a Hugging Face `datasets` set, read like picture files: our gate decodes them, `datasets` decodes nothing."""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from seecoder.checks import choice, require


class ImageRow(NamedTuple):
    """A row that holds a picture.

    Attributes:
        name: Folder that `save_to_disk` wrote, or one of Parquet files; or the name of a set on the Hub.
        split: Such as "train".
        column: Column of the picture.
        from_hub: A set that is no folder is downloaded.
        number: Number of the row.
    """

    name: str
    split: str = "train"
    column: str = "image"
    from_hub: bool = False
    number: int = 0

    def read_bytes(self) -> bytes:
        """The picture's file, from the row or from the path that stands there; nothing where there is neither."""
        value = open_rows(self._replace(number=0))[self.number][self.column] or {}
        path = Path(value.get("path") or "")
        if value.get("path") and not value.get("bytes") and not path.is_file():
            raise FileNotFoundError("its path is that of no file here")  # addresses have secrets: it is not shown
        return value.get("bytes") or (path.read_bytes() if path.is_file() else b"")


@lru_cache(2)  # each process opens a set once
def open_rows(row: ImageRow) -> Any:
    """Open the set of a row, with the one column alone.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The set has no such split or column, or `datasets` is not installed.
    """
    folder = Path(row.name)
    if not folder.is_dir() and not row.from_hub:
        raise FileNotFoundError(
            f"`dataset`={row.name} does not exist; give a folder. A set of the Hub is downloaded only with "
            "--data.dataset_from_hub true."
        )
    if find_spec("datasets") is None:
        raise ValueError(f"`dataset`={row.name} needs `datasets`. Install it (pip install 'seecoder[datasets]').")
    import datasets

    if any((folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
        found: Any = datasets.load_from_disk(row.name)
        if isinstance(found, datasets.DatasetDict):
            require("dataset_split", row.split, choice(*map(str, found)))
            found = found[row.split]
    elif folder.is_dir():  # by its files alone: what its README says might lead to the network
        found = datasets.load_dataset("parquet", data_dir=row.name, split=row.split)
    else:
        found = datasets.load_dataset(row.name, split=row.split)
    require("image_column", row.column, choice(*found.column_names))
    try:
        return found.select_columns([row.column]).cast_column(row.column, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # pyarrow's
        kind = " ".join(str(found.features[row.column]).split())
        raise ValueError(f"`image_column`={row.column} must be a column of pictures; it is {kind:.99}.") from error
