"""What a recipe says, checked and complete: the checkpoint, the options of every stage, and where all of it goes.

A run has one directory; the stages find each other's outputs in it by name:

    runs/demo/
      recipe.toml       the recipe with every default filled in; `gqa.uptrain --recipe` reads it too
      corpus/           train.jsonl, heldout.jsonl, if the recipe has a [corpus]
      converted/        the checkpoint after [convert]
      uptrained/        the checkpoint after [uptrain]; its training state is in uptrained.run/
      report/           report.html, .md, .json: before, converted and uptrained, measured
      stages.json       which stages are done, and from what
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gqa.convert.errors import UserError, did_you_mean
from gqa.convert.options import build_options
from gqa.convert.tables import plain_options, to_toml
from gqa.eval.options import EvalOptions
from gqa.recipes.demo.corpus import HELD_OUT_FILE, TRAIN
from gqa.recipes.files import find_recipe, read_recipe
from gqa.recipes.overrides import apply_overrides
from gqa.uptrain.config import UptrainConfig

if TYPE_CHECKING:
    from gqa.convert.plan import ConvertOptions  # its module imports torch

TABLES = ("corpus", "convert", "uptrain", "eval")
KEYS = ("description", "checkpoint", "output", *TABLES)


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Text that the run makes itself; where there is none, uptrain.data and eval.data name it."""

    source: Literal["python-stdlib"] = "python-stdlib"
    """The Python standard library's own source files, some modules held out."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe ready to run."""

    name: str
    """The file's name without its ending."""

    description: str
    """One line for `gqa-run --list`."""

    checkpoint: str
    """What is converted: a directory, a Hub id, or `embedded:demo`, the checkpoint that comes with the package."""

    output: Path
    """The run's directory [default: runs/NAME]."""

    corpus: CorpusOptions | None
    convert: "ConvertOptions"
    uptrain: UptrainConfig
    eval: EvalOptions

    @property
    def converted(self) -> Path:
        """The checkpoint after conversion."""
        return self.output / "converted"

    @property
    def uptrained(self) -> Path:
        """The checkpoint after uptraining."""
        return self.output / "uptrained"

    @property
    def report(self) -> Path:
        """The directory of report.html, report.md and report.json."""
        return self.output / "report"

    def tables(self) -> dict[str, Any]:
        """The recipe as the tables of a TOML file, every default filled in, keys without a value left out."""
        head = {"description": self.description, "checkpoint": self.checkpoint, "output": str(self.output)}
        options = {table: getattr(self, table) for table in TABLES}
        return head | {table: plain_options(asdict(value)) for table, value in options.items() if value is not None}


def load_recipe(name: str, overrides: Iterable[str] = (), output: Path | None = None) -> Recipe:
    """The recipe called `name`, with the command line's overrides laid over it.

    Args:
        name: a shipped recipe's name, or the path of a TOML file.
        overrides: `table.key=value`, each.
        output: the run's directory; it wins over the recipe's own.

    Raises:
        UserError: what is wrong with the recipe or an override, and where.
    """
    path = find_recipe(name)
    tables = apply_overrides(read_recipe(path), overrides)
    if output is not None:
        tables["output"] = str(output)
    recipe = _checked(tables, path.stem)
    _check_spelling(recipe)
    return recipe


def _checked(tables: dict[str, Any], name: str) -> Recipe:
    from gqa.convert.plan import ConvertOptions

    where = f"recipe {name}"
    _check_top_level(tables, where)
    output = Path(tables.get("output", f"runs/{name}")).expanduser()
    corpus = build_options(CorpusOptions, tables["corpus"], f"{where}, [corpus]") if "corpus" in tables else None
    conversion = dict(tables.get("convert", {}))
    uptrain, evaluation = dict(tables.get("uptrain", {})), dict(tables.get("eval", {}))
    for key, path in (("checkpoint", output / "converted"), ("output", output / "uptrained")):
        if Path(str(uptrain.setdefault(key, str(path)))) != path:
            raise UserError(f"{where}: uptrain.{key} is {path} in a run; leave it out, or choose the run's --output")
    if corpus:
        train, held_out = str(output / "corpus" / TRAIN), str(output / "corpus" / HELD_OUT_FILE)
        # Held-out text may serve for validation too: it is watched, nothing is chosen by it.
        uptrain = {"data": train, "validation_data": held_out} | uptrain
        evaluation = {"data": held_out} | evaluation
        if isinstance(conversion.get("calibration"), dict):
            conversion["calibration"] = {"data": train} | conversion["calibration"]
    return Recipe(
        name=name,
        description=tables.get("description", ""),
        checkpoint=_at_home(tables["checkpoint"]),
        output=output,
        corpus=corpus,
        convert=build_options(ConvertOptions, conversion, f"{where}, [convert]"),
        uptrain=build_options(UptrainConfig, uptrain, f"{where}, [uptrain]"),
        eval=build_options(EvalOptions, evaluation, f"{where}, [eval]"),
    )


def _at_home(checkpoint: str) -> str:
    """A checkpoint's name with `~` spelled out; all others as they are, names on the Hub among them."""
    return str(Path(checkpoint).expanduser()) if checkpoint.startswith("~") else checkpoint


def _check_spelling(recipe: Recipe) -> None:
    text = to_toml(recipe.tables())
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a file's name need not be UTF-8, a TOML file must be
        line = text.split("\n")[text.count("\n", 0, error.start)]
        raise UserError(f"recipe {recipe.name}: {line!a} is not UTF-8, as a recipe must be; rename the file") from None


def _check_top_level(tables: Mapping[str, Any], where: str) -> None:
    for key, value in tables.items():
        if key not in KEYS:
            raise UserError(f"{where}: unknown table or key {key!r}{did_you_mean(key, KEYS)}; known: {', '.join(KEYS)}")
        if key in TABLES and not isinstance(value, dict):
            raise UserError(f"{where}: {key} is a table of options, [{key}], not {value!r}")
        if key not in TABLES and not isinstance(value, str):
            raise UserError(f"{where}: {key} must be text in quotes, got {value!r}")
    if "checkpoint" not in tables:
        raise UserError(f"{where} names no checkpoint; add checkpoint=DIRECTORY_OR_HUB_ID to the command")
