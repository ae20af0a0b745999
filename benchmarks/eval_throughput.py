"""Tokens per second of perplexity: ours, lm-evaluation-harness', and the loop of Hugging Face's documentation.

All three score the same windows of the same documents (`max_length` tokens, every token but a document's first
predicted once), and every document's NLL has to be the same. Windows are disjoint, as the harness has them; with a
`--stride` they overlap, as the documentation has them, and the harness is left out. One goes after the other, several
rounds in one process, so that what else the machine does hits all alike; ratios are of medians.

    python benchmarks/eval_throughput.py CHECKPOINT --data HELDOUT.jsonl
    python benchmarks/eval_throughput.py CHECKPOINT --data HELDOUT.jsonl --vocabulary 131072   # random, a wide head
    python benchmarks/eval_throughput.py CHECKPOINT --data HELDOUT.jsonl --max-length 1024 --stride 512
    python benchmarks/eval_throughput.py CHECKPOINT --data HELDOUT.jsonl --paragraphs    # short texts of all lengths
    python benchmarks/eval_throughput.py CHECKPOINT --data HELDOUT.jsonl --dtype auto    # as it comes by default

The documentation's loop (https://huggingface.co/docs/transformers/perplexity) takes one document after another, window
by window, and keeps all logits of one; the harness goes batch by batch, and keeps all of a batch and their log-softmax.
"""

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from gqa.convert.precision import is_fast
from gqa.eval.halves import Halves
from gqa.eval.model import load_model
from gqa.eval.options import EvalOptions
from gqa.eval.room import Room
from gqa.eval.scoring import score
from gqa.eval.stream import StreamMaterial, stream_material

Way = Callable[[], np.ndarray]


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint; its tokenizer is used in any case.")],
    data: Annotated[Path, typer.Option(help="Documents, as JSON lines.")],
    vocabulary: Annotated[int | None, typer.Option(help="Of a random model in the place of the checkpoint's.")] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    stride: Annotated[int | None, typer.Option(help="From one window to the next.  [default: max_length]")] = None,
    max_tokens: Annotated[int, typer.Option(help="Of the data.")] = 65_536,
    paragraphs: Annotated[bool, typer.Option("--paragraphs", help="Make every paragraph a document.")] = False,
    batch_size: Annotated[int, typer.Option(help="The harness' windows per pass; ours chooses its own.")] = 8,
    rounds: Annotated[int, typer.Option(help="How often each goes.")] = 3,
    dtype: Annotated[
        str, typer.Option(help="Of the model; auto: what it is stored in, and ours where that is slow in float32.")
    ] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure the three in turn, check that they agree, and print the table."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if vocabulary is None:
        model = load_model(checkpoint, dtype=dtype, device=device)
    else:
        model = random_model(vocabulary).to(device, getattr(torch, dtype)).eval()
    fast = is_fast(model.dtype, model.device)
    mine = model if fast or dtype != "auto" else load_model(checkpoint, dtype="float32", device=device)
    for each in (model, mine):
        each.config.max_position_embeddings = max(max_length, each.config.max_position_embeddings)
    stride = stride or max_length
    with tempfile.TemporaryDirectory() as folder:
        source = split(data, Path(folder) / "paragraphs.jsonl") if paragraphs else data
        material = read(tokenizer, source, max_length, stride, max_tokens)
    ways: dict[str, Way] = {
        "gqa-eval": lambda: ours(mine, material),
        "documentation's loop": lambda: documentation(model, material, max_length, stride),
    }
    if stride == max_length:
        ways["lm-evaluation-harness"] = lambda: harness(model, tokenizer, material, max_length, batch_size)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, np.ndarray] = {}
    for _ in track(range(rounds), "rounds", console=Console(stderr=True)):
        for name, way in ways.items():
            start = time.perf_counter()
            found[name] = way()
            seconds[name].append(time.perf_counter() - start)
    for name, nlls in found.items():
        np.testing.assert_allclose(nlls, found["gqa-eval"], rtol=1e-4 if dtype == "float32" else 1e-2, err_msg=name)
    show(seconds, material, float(found["gqa-eval"].sum() / material.sample.num_tokens))


def split(data: Path, output: Path) -> Path:
    """The paragraphs of the documents as documents."""
    texts = [json.loads(line)["text"] for line in data.read_text(encoding="utf-8").splitlines()]
    parts = [part for text in texts for part in text.split("\n\n") if len(part) > 1]
    output.write_text("".join(json.dumps({"text": part}) + "\n" for part in parts), encoding="utf-8")
    return output


def read(
    tokenizer: PreTrainedTokenizerBase, data: Path, max_length: int, stride: int, max_tokens: int
) -> StreamMaterial:
    """The protocol of the harness in our words: a BOS before every document, windows that predict `max_length`."""
    options = EvalOptions(
        data=str(data),
        documents="separate",
        bos="first",
        window=max_length + 1,
        stride=stride,
        max_tokens=max_tokens,
    )
    return stream_material(tokenizer, options)


def ours(model: PreTrainedModel, material: StreamMaterial) -> np.ndarray:
    """NLL of every document."""
    batches = material.batches(Room(tokens=1024 if model.device.type == "cpu" else 16384))
    scores = score(Halves(model), material, batches)
    return np.bincount(material.text.document, weights=scores.nlls)


def harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, material: StreamMaterial, length: int, batch_size: int
) -> np.ndarray:
    """The same by lm-evaluation-harness' own rolling log-likelihood, given the tokens."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    wrap: Any = HFLM
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model_of = wrap(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=length, add_bos_token=False
    )
    texts = [material.text.ids[start + 1 : end].tolist() for start, end in material.text.sequences]
    model_of.tok_encode = lambda number, **_: texts[int(number)]  # so that tokenising is nobody's time
    requests = [Instance("loglikelihood_rolling", {}, (str(number),), number) for number in range(len(texts))]
    with redirect_stderr(StringIO()):  # its bars
        return -np.array(model_of.loglikelihood_rolling(requests, disable_tqdm=True))


def documentation(model: PreTrainedModel, material: StreamMaterial, length: int, stride: int) -> np.ndarray:
    """The same by the loop that the documentation shows."""
    nlls = []
    for start, end in material.text.sequences:
        ids, total, previous = torch.from_numpy(material.text.ids[start:end])[None], 0.0, 1
        for begin in range(0, ids.shape[1] - 1, stride):
            last = min(begin + length + 1, ids.shape[1])
            first = max(0, last - length - 1)
            window = ids[:, first:last].to(model.device)
            target = window.clone()
            target[:, : previous - first] = -100
            with torch.no_grad():
                loss = model(window, labels=target).loss
            total += float(loss) * (last - previous)
            previous = last
            if last == ids.shape[1]:
                break
        nlls.append(total)
    return np.array(nlls)


def random_model(vocabulary: int) -> Any:
    """As small as the checkpoint that is measured, but for its head."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=8,
            num_attention_heads=8,
            max_position_embeddings=1024,
        )
    )


def show(seconds: dict[str, list[float]], material: StreamMaterial, nll: float) -> None:
    """Tokens per second, and how many times faster ours is."""
    table = Table("perplexity by", "tokens/s", "min-max seconds", "ours is faster by")
    mine = statistics.median(seconds["gqa-eval"])
    for name, times in seconds.items():
        rate = material.sample.num_tokens / statistics.median(times)
        table.add_row(
            name, f"{rate:,.0f}", f"{min(times):.1f}-{max(times):.1f}", f"{statistics.median(times) / mine:.2f}"
        )
    Console(width=100).print(table)
    print(f"{material.sample.num_tokens:,} tokens in {len(material.windows)} windows; NLL {nll:.4f} for all.")


if __name__ == "__main__":
    typer.run(main)
