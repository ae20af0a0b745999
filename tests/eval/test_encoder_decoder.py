"""Encoder-decoders: held against the loss that transformers' own class computes from `labels`."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, ByT5Tokenizer

from gqa.convert.errors import UserError
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.spans import span_corruption

PAIRS = [
    ("The quick brown fox", "jumps over the lazy dog, and the dog sleeps on.\n"),
    ("", "A short one."),
    ("def area(radius):\n    return 3.14159 * radius ** 2\n", "x"),
    ("Zwölf Boxkämpfer jagen Viktor", "quer über den großen Sylter Deich 🦊."),
]
TOKENS_OF_A_CACHE = {"t5": 2 * 2 * 4 * 8 * 4, "bart": 2 * 2 * 4 * 8 * 4}  # keys, values; layers; heads; head_dim; bytes


@pytest.fixture(scope="module")
def t5(make_encoder_decoder) -> Path:
    return make_encoder_decoder()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in PAIRS))
    return path


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(data=str(data), **({"window": 64, "dtype": "float32", "device": "cpu"} | given))


def loss_of(checkpoint: Path, pairs: list[tuple[list[int], list[int]]]) -> tuple[float, int]:
    """Mean NLL of the targets' tokens by the stock class, a pair at a time, and how many they are."""
    model = AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()
    total, count = 0.0, 0
    for source, target in pairs:
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss
        total += float(loss) * len(target)
        count += len(target)
    return total / count, count


@pytest.mark.parametrize("model_type", ["t5", "bart", "pegasus", "mbart"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pairs_are_scored_as_the_stock_class_scores_labels(make_encoder_decoder, pairs, model_type, batch_size):
    checkpoint = make_encoder_decoder(model_type=model_type)
    (row,) = evaluate([checkpoint], options(pairs, batch_size=batch_size)).rows
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected, count = loss_of(
        checkpoint,
        [(tokenizer(source)["input_ids"], tokenizer(text_target=target)["input_ids"]) for source, target in PAIRS],
    )
    assert row.sample.num_tokens == count
    assert row.nll.value == pytest.approx(expected, rel=2e-6)
    assert row.perplexity == pytest.approx(math.exp(expected), rel=2e-6)
    num_bytes = sum(len(target.encode()) for _, target in PAIRS)
    assert row.bits_per_byte == pytest.approx(expected * count / math.log(2) / num_bytes, rel=2e-6)


def test_the_standard_error_is_over_pairs(t5, pairs):
    (row,) = evaluate([t5], options(pairs)).rows
    sample = row.sample
    assert (sample.unit, sample.num_clusters) == ("pair", 4)
    sums, counts = np.bincount(sample.cluster, weights=row.result.nlls), np.bincount(sample.cluster)
    spread = ((sums - row.nll.value * counts) ** 2).sum()
    assert row.nll.standard_error == pytest.approx(math.sqrt(4 / 3 * spread) / counts.sum())


@pytest.mark.parametrize("documents", ["joined", "separate"])
def test_text_is_scored_under_span_corruption(t5, data, texts, documents):
    (row,) = evaluate([t5], options(data, window=20, documents=documents, seed=5)).rows
    tokenizer = AutoTokenizer.from_pretrained(t5)
    corruption = span_corruption(tokenizer, t5)
    length = corruption.window(20)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    streams = [[token for ids in encoded for token in ids]] if documents == "joined" else encoded
    cuts = [stream[at : at + length] for stream in streams for at in range(0, len(stream) - 1, length)]
    made = [corruption(np.array([cut]), 5, [number]) for number, cut in enumerate(cuts)]
    expected, count = loss_of(t5, [(part.sources[0].tolist(), part.targets[0].tolist()) for part in made])
    assert row.sample.num_tokens == count
    assert row.nll.value == pytest.approx(expected, rel=2e-6)
    masked = sum(int((part.places != -1).sum()) for part in made)
    total = sum(map(len, cuts))
    assert masked / total == pytest.approx(0.15, abs=0.03)
    assert 0.05 < row.sample.num_bytes / sum(len(text.encode()) for text in texts) < 0.25


def test_a_tokenizer_in_pure_python_is_known_again(make_encoder_decoder, data):
    checkpoints = [make_encoder_decoder(name, seed=seed, vocab_size=384) for seed, name in enumerate(("one", "other"))]
    for checkpoint in checkpoints:
        for file in checkpoint.glob("tokenizer*"):
            file.unlink()
        ByT5Tokenizer(extra_ids=100).save_pretrained(checkpoint)
    one, other = evaluate(checkpoints, options(data, max_tokens=300)).rows
    assert one.subject.material is other.subject.material
    assert other.ratio is not None
    assert one.bits_per_byte


def test_the_seed_decides_what_is_corrupted(t5, data):
    nlls = [evaluate([t5], options(data, seed=seed)).rows[0].nll.value for seed in (0, 0, 1)]
    assert nlls[0] == nlls[1] != nlls[2]


@pytest.mark.parametrize("model_type", TOKENS_OF_A_CACHE)
def test_both_caches_are_measured(make_encoder_decoder, pairs, model_type, tmp_path: Path):
    checkpoint = make_encoder_decoder(model_type=model_type)
    made = evaluate([checkpoint], options(pairs), tmp_path / "report")
    cache = made.rows[0].result.kv_cache
    assert [part.bytes_per_token for part in cache.parts] == [TOKENS_OF_A_CACHE[model_type]] * 2
    assert all(part.agree for part in cache.parts)
    (written,) = json.loads((tmp_path / "report" / "report.json").read_text())["checkpoints"]
    assert written["num_heads"] == written["num_kv_heads"] == 4
    assert written["kv_cache"]["cross"]["bytes_per_token"] == TOKENS_OF_A_CACHE[model_type]
    assert written["sample"]["objective"] == "pairs"
    page = (tmp_path / "report" / "report.md").read_text()
    assert "| 512 + 512 |" in page
    assert "a real cache of 64 tokens of the target, then of 64 of the source (cross-attention)" in page
    assert "each predicted from its source and the target before it" in page


def test_layers_of_the_decoder_alone_are_counted(make_encoder_decoder, pairs):
    cache = evaluate([make_encoder_decoder(num_decoder_layers=1)], options(pairs)).rows[0].result.kv_cache
    assert [(part.formula_bytes, part.measured_bytes) for part in cache.parts] == [(256 * 64, 256 * 64)] * 2


def test_what_is_cut_is_said(t5, pairs):
    made = evaluate([t5], options(pairs, window=12))
    tokenizer = AutoTokenizer.from_pretrained(t5)
    sources = [tokenizer(source)["input_ids"] for source, _ in PAIRS]
    targets = [tokenizer(text_target=target)["input_ids"] for _, target in PAIRS]
    long = [sum(len(ids) > 12 for ids in side) for side in (sources, targets)]
    assert long[0] > 0 < long[1]
    assert [f"{number} of 4 {what} were longer" in note for note, number, what in zip(
        made.notes(), long, ("sources", "targets"), strict=True)] == [True, True]  # fmt: skip
    expected, count = loss_of(
        t5,
        [([*ids[:11], 0] if len(ids) > 12 else ids, target[:12]) for ids, target in zip(sources, targets, strict=True)],
    )
    assert made.rows[0].sample.num_tokens == count
    assert made.rows[0].nll.value == pytest.approx(expected, rel=2e-6)


def test_max_tokens_ends_after_a_whole_target(t5, pairs):
    (row,) = evaluate([t5], options(pairs, max_tokens=5)).rows
    assert row.sample.num_clusters == 1
    assert row.subject.material.facts()["pairs"] == 1


def test_columns_have_names(t5, tmp_path: Path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "Who?", "answer": "The dog."}\n')
    named = options(data, source_column="question", target_column="answer")
    assert evaluate([t5], named).rows[0].subject.material.facts()["objective"] == "pairs"
    with pytest.raises(UserError, match="no column 'text'"):
        evaluate([t5], options(data))


def test_parquet_has_pairs_too(t5, pairs, tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"target": [target for _, target in PAIRS], "source": [source for source, _ in PAIRS]})
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet")
    values = [evaluate([t5], options(path)).rows[0].nll.value for path in (pairs, tmp_path / "pairs.parquet")]
    assert values[0] == values[1]


def test_a_model_without_sentinels_needs_pairs(make_encoder_decoder, data):
    with pytest.raises(UserError, match="which the span corruption of plain text needs; give data of sources and"):
        evaluate([make_encoder_decoder(model_type="bart")], options(data))


def test_what_is_for_decoders_is_refused(t5, pairs, make_checkpoint):
    for given, said in (({"stride": 3}, "stride is for decoders"), ({"bos": "always"}, "bos is for decoders")):
        with pytest.raises(UserError, match=said):
            evaluate([t5], options(pairs, **given))
    with pytest.raises(UserError, match="is an encoder-decoder, which is scored on other tokens"):
        evaluate([make_checkpoint(), t5], options(pairs, text_column="target"))


def test_a_start_that_is_not_said_is_an_error(make_encoder_decoder, pairs):
    checkpoint = make_encoder_decoder()
    for file in ("config.json", "generation_config.json"):
        said = json.loads((checkpoint / file).read_text())
        said.pop("decoder_start_token_id", None)
        (checkpoint / file).write_text(json.dumps(said))
    with pytest.raises(UserError, match="lacks decoder_start_token_id or pad_token_id"):
        evaluate([checkpoint], options(pairs))


def test_two_processes_find_what_one_finds(t5, pairs, tmp_path: Path):
    flags = [t5, "--data", pairs, "--window", "64", "--batch-size", "1", "--json", "--device", "cpu"]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "gqa.eval"]
    commands = [[sys.executable, "-m", "gqa.eval", *flags], [*run, *flags]]
    said = [
        subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for command in commands
    ]
    assert [done.returncode for done in said] == [0, 0], said[1].stderr
    one, two = (json.loads(done.stdout) for done in said)
    assert (one["machine"]["processes"], two["machine"]["processes"]) == (1, 2)
    assert one["checkpoints"][0]["nll"] == two["checkpoints"][0]["nll"]
