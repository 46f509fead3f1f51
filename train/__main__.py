"""`python -m train`."""

import os
from contextlib import suppress
from pathlib import Path

from data.hidden_secrets import hide_secrets
from train.cli import main

if __name__ == "__main__":
    hide_secrets()
    code = main()
    if "TRAIN_EXIT_FILE" in os.environ:  # for launchers that turn every failure into 1; the first process says why
        with suppress(FileExistsError), Path(os.environ["TRAIN_EXIT_FILE"]).open("x") as file:
            file.write(str(code))
    raise SystemExit(code)
