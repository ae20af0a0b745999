"""Before and after: perplexity, KV-cache bytes, parameters and size of checkpoints on the same data.

from gqa.eval import EvalOptions, evaluate_checkpoints
report = evaluate_checkpoints(["llama", "llama-gqa8"], EvalOptions(data="heldout.jsonl"))
"""

from typing import TYPE_CHECKING

from gqa.convert.lazy import lazily

if TYPE_CHECKING:
    from gqa.eval.evaluate import evaluate as evaluate_checkpoints
    from gqa.eval.options import EvalOptions
    from gqa.eval.report import Report
    from gqa.eval.together import Compared, compare_reports

__all__ = ["Compared", "EvalOptions", "Report", "compare_reports", "evaluate_checkpoints"]

__getattr__ = lazily(
    __name__,
    {
        "Compared": "gqa.eval.together:Compared",
        "EvalOptions": "gqa.eval.options:EvalOptions",
        "Report": "gqa.eval.report:Report",
        "compare_reports": "gqa.eval.together:compare_reports",
        "evaluate_checkpoints": "gqa.eval.evaluate:evaluate",
    },
)
