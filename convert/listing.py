"""The families that can be converted and those that can't, with the reasons, for people and for programs.

All of it is read from the families' own data, so nothing heavy is imported.
"""

from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gqa.convert.families.refused import REFUSED
from gqa.convert.families.rewritten import REWRITTEN, Rewritten
from gqa.convert.families.wrappers import WRAPPERS
from gqa.convert.family import Family, all_families
from gqa.convert.limits import limits_of
from gqa.convert.method import method_names

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = ("model type", "checkpoints", "output", "keys", "values")
LEGEND = (
    "Every method takes every family. Those that rewrite queries and output projections (aligned, lowrank) map keys\n"
    "and values onto each other before they merge; where a norm, a gate or a clamp sees single components, they are\n"
    "averaged, as mean does, and where a norm sees the size alone, turned. Stock: the output loads with transformers\n"
    "alone; own code: it brings the file of code that it needs.\n"
)

_KEYS = {"free": "mapped", "scaled": "mapped", "turned": "turned", "normed": "averaged", "clipped": "averaged"}
_VALUES = {"free": "mapped", "gated": "averaged", "normed": "averaged", "fixed": "averaged"}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What a user wants to know of one family."""

    model_type: str
    known_as: str
    """checkpoints of the family"""
    output: list[str]
    """the model type of what is written: its own, or, where its class has no KV heads, what it is rewritten into"""
    kv_heads: str
    """how many can be kept: `any` that divide those there are, or `one`"""
    code: str
    """whose code loads the output: `stock` is transformers alone, `own` the file that goes with it"""
    more_heads: str | None
    """where stock code holds one KV head only, the model type in our own code that holds any number"""
    methods: list[str]
    """those that apply"""
    keys: str
    """what the methods that rewrite queries do with keys: `mapped`, `turned` or `averaged`, and with which setting
    otherwise"""
    values: str
    """the same of values"""
    reasons: list[str]
    """why something is averaged, as ends of sentences"""

    @property
    def row(self) -> tuple[str, ...]:
        """What stands under `COLUMNS`."""
        output = f"{' or '.join(self.output)}, {'own code' if self.code == 'own' else self.code}"
        if self.more_heads:
            output += f", with one KV head; {self.more_heads}, own code, with more"
        elif self.kv_heads == "one":
            output += "; one KV head"
        return (self.model_type, self.known_as, output, self.keys, self.values)


def listed() -> list[Listed]:
    """Every model type that can be converted, in alphabetical order."""
    own = [_listed(family, family.model_type, family.known_as) for family in all_families().values()]
    rewritten = [_listed_rewrite(name, rewrite) for name, rewrite in REWRITTEN.items()]
    return sorted(own + rewritten, key=lambda entry: entry.model_type)


def refusals() -> list[tuple[str, list[str]]]:
    """The reasons for refusing, each with its model types."""
    ordered = sorted(REFUSED, key=lambda model_type: (list(REFUSED.values()).index(REFUSED[model_type]), model_type))
    return [(reason, list(model_types)) for reason, model_types in groupby(ordered, key=REFUSED.__getitem__)]


def to_json() -> dict[str, Any]:
    """All of it as JSON values."""
    return {"families": [asdict(entry) for entry in listed()], "multimodal": sorted(WRAPPERS), "refused": REFUSED}


def show_families(console: "Console") -> None:
    """All of it as tables."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    families, refused = Table(box=SIMPLE_HEAD), Table("refused", "because", box=SIMPLE_HEAD)
    for column in COLUMNS:
        families.add_column(column, no_wrap=column == "model type")
    for entry in listed():
        families.add_row(*entry.row)
    for reason, model_types in refusals():
        refused.add_row(", ".join(model_types), reason)
    console.print(families, LEGEND, f"Inside multimodal checkpoints: {', '.join(sorted(WRAPPERS))}.", refused, sep="\n")


def _plain(family: Family) -> Family:
    """A family as rewrites write it: with none of its optional norms."""
    return replace(family, k_norm_scope="none", k_norm_key=None) if family.k_norm_key else family


def _listed_rewrite(name: str, rewrite: Rewritten) -> Listed:
    becomes = rewrite.becomes or ((rewrite.own,) if rewrite.own else ())
    entry = replace(_listed(_plain(all_families()[becomes[0]]), name, rewrite.known_as), output=[*becomes])
    if rewrite.becomes and rewrite.own:
        return replace(entry, kv_heads="any", more_heads=rewrite.own)
    return entry


def _listed(family: Family, model_type: str, known_as: str) -> Listed:
    """What is said of a model type that is written as one of `family`."""
    plain = limits_of(family, {family.k_norm_key: False} if family.k_norm_key else {})
    settings = [key for key in (family.k_norm_key, family.clip_key) if key]
    limited = {key: limits_of(family, {key: True}) for key in settings}
    reasons = [reason for limits in (plain, *limited.values()) for reason in limits.reasons]
    return Listed(
        model_type=model_type,
        known_as=known_as,
        output=[family.model_type],
        kv_heads="one" if family.multi_query_key else "any",
        code="own" if family.own_code else "stock",
        more_heads=None,
        methods=method_names(),
        keys=_with_settings(_KEYS[plain.keys], {key: _KEYS[limits.keys] for key, limits in limited.items()}),
        values=_with_settings(_VALUES[plain.values], {key: _VALUES[limits.values] for key, limits in limited.items()}),
        reasons=list(dict.fromkeys(reasons)),
    )


def _with_settings(plain: str, limited: dict[str, str]) -> str:
    """`mapped; averaged with clip_qkv`."""
    return "; ".join([plain, *(f"{done} with {key}" for key, done in limited.items() if done != plain)])
