"""Stand-in for gqa.eval.data and gqa.eval.model until they are there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_documents(data: str, text_column: str) -> Iterator[str]:
    with Path(data).open() as file:
        for line in file:
            yield json.loads(line)[text_column]


def load_tokenizer(checkpoint: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint)
