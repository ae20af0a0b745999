"""What a model card is made from, and what its sections ask of it alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqa.convert.data import OWN_TEXT
from gqa.convert.push.results import Results


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that a card says, as the JSON files say it."""

    repo_id: str
    revision: str
    """the branch that it is published on"""
    config: Mapping[str, Any]
    """config.json"""
    stages: Sequence[Mapping[str, Any]]
    """those that made the checkpoint out of its original, oldest first, as in gqa.json"""
    results: Results | None
    """what gqa-eval measured; None where it was not run"""
    base_model: str | None
    """the original's name on the Hub"""
    inherited: Mapping[str, Any]
    """licence and languages, by their keys in a card's metadata"""
    hub_data: frozenset[str]
    """of the names of data, those of datasets on the Hub"""

    @property
    def conversions(self) -> list[Mapping[str, Any]]:
        """The stages in which heads were merged, or would have been."""
        return [stage for stage in self.stages if stage["stage"] == "convert"]

    @property
    def trainings(self) -> list[Mapping[str, Any]]:
        """The stages in which weights were trained."""
        return [stage for stage in self.stages if stage["stage"] == "uptrain"]

    @property
    def heads(self) -> tuple[list[int], list[int]]:
        """KV heads before and after, of every attention that was converted; empty lists where none was."""
        if not self.conversions:
            return [], []
        return list(self.conversions[0]["kv_heads_before"]), list(self.conversions[-1]["kv_heads_after"])

    @property
    def latent(self) -> Mapping[str, Any] | None:
        """The sizes of latent attention, where heads became that."""
        return self.conversions[-1].get("latent") if self.conversions else None

    @property
    def merged(self) -> bool:
        """Whether heads share what they had alone, not where they were only repeated; or a latent is in their place."""
        return bool(self.latent) or not only_repeated(*self.heads)

    @property
    def own_code(self) -> str | None:
        """The file of code that goes with the checkpoint, where no class of transformers holds it."""
        return self.conversions[-1].get("own_code") if self.conversions else None

    @property
    def original(self) -> str:
        """What the original is called in a sentence."""
        if self.base_model:
            return f"[{self.base_model}](https://huggingface.co/{self.base_model})"
        return f"`{Path(self.stages[0]['source']['path']).name}`"

    def data_name(self, data: str) -> str:
        """Data as a reader elsewhere may know them: a dataset by its link, a file by its name without its folders."""
        if data == OWN_TEXT:
            return "text that the original wrote itself"
        if data in self.hub_data:
            return f"[{data}](https://huggingface.co/datasets/{data})"
        return f"`{Path(data).name}`"


def only_repeated(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether KV heads are as they were, or repeated."""
    return len(before) == len(after) and all(now % old == 0 for old, now in zip(before, after, strict=True))


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
