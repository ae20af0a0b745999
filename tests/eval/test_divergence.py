"""Divergence from the first checkpoint, against distributions that are written out whole."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gqa.convert.errors import UserError
from gqa.eval import first, scoring
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.eval.stream import StreamMaterial


def options(data: Path, **given) -> EvalOptions:
    return EvalOptions(**({"data": str(data), "window": 16, "dtype": "float32", "device": "cpu"} | given))


@pytest.fixture(scope="module")
def other(make_checkpoint) -> Path:
    return make_checkpoint("other", seed=1, num_key_value_heads=2)


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox", "opt", "gemma2"])
def test_of_a_checkpoint_with_itself_it_is_exactly_0(make_checkpoint, data, model_type):
    made = {"word_embed_proj_dim": 32, "ffn_dim": 48} if model_type == "opt" else {}
    checkpoint = make_checkpoint(model_type=model_type, **made)
    _, row = evaluate([f"a={checkpoint}", f"b={checkpoint}"], options(data, dtype="auto")).rows
    assert row.divergence is not None
    assert (row.divergence.kl.value, row.divergence.kl.standard_error) == (0, 0)
    assert set(row.divergence.kl_percentiles.values()) == {0}
    assert row.divergence.same_top.value == 1
    assert row.divergence.against == "a"


def test_it_is_that_of_the_whole_distributions(checkpoint, other, data, monkeypatch):
    monkeypatch.setattr(scoring, "chunk_size", lambda *_: 7)
    before, row = evaluate([checkpoint, other], options(data, batch_size=3)).rows
    material = before.subject.material
    assert isinstance(material, StreamMaterial)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (checkpoint, other)]
    kl, same = np.zeros(len(material.text.ids)), np.zeros(len(material.text.ids))
    for start, end, scored in material.windows:
        ids = torch.from_numpy(material.text.ids[start:end])[None]
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0, scored - start - 1 : -1].double().softmax(-1) for model in models)
        kl[scored:end] = (p * (p / q).log()).sum(-1).numpy()
        same[scored:end] = (p.argmax(-1) == q.argmax(-1)).numpy()
    scores = row.result.scores
    assert scores.kl is not None
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(scores.same_top, same)
    assert row.divergence is not None
    sample = material.sample
    assert row.divergence.kl.value == pytest.approx(kl[sample.scored].mean(), rel=1e-5)
    assert row.divergence.kl_percentiles["50"] == pytest.approx(np.median(kl[sample.scored]), rel=1e-4)
    assert row.divergence.kl_percentiles["100"] == pytest.approx(kl.max(), rel=1e-4)
    assert row.divergence.same_top.value == pytest.approx(same[sample.scored].mean())


def test_every_later_checkpoint_is_compared_with_the_first(checkpoint, other, data):
    rows = evaluate([f"a={other}", f"b={checkpoint}", f"c={other}"], options(data)).rows
    assert rows[0].divergence is None
    assert rows[1].divergence is not None
    assert rows[2].divergence is not None
    assert rows[1].divergence.kl.value > 0.1
    assert rows[2].divergence.kl.value == 0


def test_likelihoods_are_the_same_with_and_without_it(checkpoint, other, data):
    one, two = (evaluate([checkpoint, other], options(data, divergence=asked)).rows[1] for asked in (True, False))
    np.testing.assert_array_equal(one.result.nlls, two.result.nlls)
    assert two.divergence is None


def test_half_precision_is_near_and_not_equal(checkpoint, make_checkpoint, data):
    half = make_checkpoint("half", dtype=torch.bfloat16)
    row = evaluate([checkpoint, half], options(data, dtype="auto")).rows[1]
    assert row.divergence is not None
    assert 0 < row.divergence.kl.value < 0.1


def test_other_tokenizers_and_vocabularies_are_not_compared(checkpoint, make_checkpoint, data):
    others = [make_checkpoint("bos", adds_bos=True), make_checkpoint("wide", vocab_size=330)]
    rows = evaluate([checkpoint, *others], options(data)).rows
    assert [row.divergence for row in rows] == [None, None, None]


def test_of_an_encoder_decoder(make_encoder_decoder, data):
    one, two = make_encoder_decoder("one"), make_encoder_decoder("two", seed=1)
    assert not isinstance(AutoModelForSeq2SeqLM.from_pretrained(one), AutoModelForCausalLM)
    rows = evaluate([one, two, f"again={one}"], options(data, window=32)).rows
    assert rows[1].divergence is not None
    assert rows[2].divergence is not None
    assert rows[1].divergence.kl.value > 0
    assert rows[2].divergence.kl.value == 0


def test_a_full_disk_is_one_sentence(checkpoint, other, data, monkeypatch):
    class Full:
        def write(self, _):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    monkeypatch.setattr(first.tempfile, "TemporaryFile", lambda **_: Full())
    with pytest.raises(UserError, match=r"no room for the first checkpoint's hidden states in .* --no-divergence"):
        evaluate([checkpoint, other], options(data))
