"""Options of what goes into a run and what comes out."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the data that a run trains on."""

    data: str
    subset: str | None
    split: str
    text_column: str

    def __str__(self) -> str:
        """Its name, for the user."""
        return f"{self.data} ({self.subset})" if self.subset else self.data


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Checkpoint, data and places."""

    checkpoint: str
    """Checkpoint to train: a directory, or a Hub id."""

    data: str | tuple[str, ...]
    """Training text: a text, jsonl or parquet file, a folder of these, or the name of a dataset on the Hub; several are
    mixed. An encoder-decoder trains on pairs where the data has them (source_column, target_column), and otherwise, if
    it has T5's sentinels, on span corruption of the text: 15% of the tokens, in spans of 3 on average. Whisper trains
    on recordings (source_column, or audio) and their transcripts (target_column, or text_column)."""

    data_weights: tuple[float, ...] = ()
    """Shares of the sequences that come from each of several data, in their order: 0.7,0.3 [default: by their tokens].
    Only their ratios count."""

    output: Path | None = None
    """Directory of the finished checkpoint [default: beside the input, CHECKPOINT-uptrained]."""

    run_dir: Path | None = None
    """Directory of the run's own state: config, metrics, checkpoints [default: OUTPUT.run]."""

    overwrite: bool = False
    """Replace an existing output, and an existing run that can't be or shall not be resumed."""

    resume: str = "auto"
    """auto: go on from the run's newest complete checkpoint, if any; never: start anew; or the path of one of its
    checkpoints (later ones are then made again)."""

    text_column: str | tuple[str, ...] = "text"
    """Column that holds the text, where data has columns; of several data one for all, or one for each in their
    order."""

    source_column: str = "source"
    """Column of what goes into an encoder-decoder."""

    target_column: str = "target"
    """Column of what is to come out of it."""

    subset: str | tuple[str, ...] | None = None
    """Subset (configuration) of the dataset, where data is on the Hub; of several data one for all, or one for each
    ('' for none)."""

    split: str | tuple[str, ...] = "train"
    """Split of the dataset, where data is on the Hub; of several data one for all, or one for each."""

    validation_data: str | None = None
    """Validation text, as data [default: a held-out share of data]. Its column is that of the first data."""

    validation_subset: str | None = None
    """Subset of validation_data, where that is a dataset on the Hub."""

    validation_split: str = "validation"
    """Split of validation_data, where that is a dataset on the Hub."""

    validation_share: float = 0.01
    """Share of data's documents held out for validation when there is no validation_data; chosen by their hash."""

    validation_tokens: int = 262_144
    """Validation reads at most so many tokens; 0 turns it off."""

    cache_dir: Path | None = None
    """Where tokenised text is kept for the next run [default: $XDG_CACHE_HOME/gqa, or ~/.cache/gqa]."""

    tokenizing_processes: int | None = None
    """Processes that tokenise [default: one for every core, once there is enough text to be worth their start]."""
