"""Encoder-decoders of ours against transformers' own: with all heads, and with heads that are alike shared."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

EXACT = {"rtol": 0, "atol": 1e-12}


def outputs(model, seq2seq, **more: Any) -> Any:
    with torch.no_grad():
        return model(**seq2seq.inputs(), decoder_input_ids=seq2seq.target(), **more)


def generated(model, seq2seq, **how: Any) -> torch.Tensor:
    """Twelve tokens after the first, with nothing that would end a sequence before."""
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "no_repeat_ngram_size": 2}
    return model.generate(**seq2seq.inputs(), **settings, **how)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_all_heads_compute_what_the_stock_model_does(seq2seq, attention):
    stock, ours = seq2seq.equal()
    for model in (stock, ours):
        model.set_attn_implementation(attention)
    torch.testing.assert_close(outputs(ours, seq2seq).logits, outputs(stock, seq2seq).logits, **EXACT)


@pytest.mark.parametrize(("groups", "encoder"), [(2, None), (1, 1)])
def test_heads_that_are_alike_are_shared_without_loss(seq2seq, groups, encoder):
    stock, ours = seq2seq.tied(groups, encoder)
    assert sum(p.numel() for p in ours.parameters()) < sum(p.numel() for p in stock.parameters())
    torch.testing.assert_close(outputs(ours, seq2seq).logits, outputs(stock, seq2seq).logits, **EXACT)


def test_weights_of_attention_are_recorded(seq2seq):
    stock, ours = seq2seq.tied(2, 1)
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    theirs, own = (outputs(model, seq2seq, output_attentions=True) for model in (stock, ours))
    for part in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
        assert len(own[part]) == len(theirs[part]) > 0
        for weights, expected in zip(own[part], theirs[part], strict=True):
            torch.testing.assert_close(weights, expected, **EXACT)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_that_of_the_stock_model(seq2seq, beams):
    stock, ours = seq2seq.tied(2)
    expected = generated(stock, seq2seq, num_beams=beams)
    assert torch.equal(generated(ours, seq2seq, num_beams=beams), expected)
    assert len(expected.unique()) > 2  # or nothing but one token over and over would do


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_a_cache_of_fixed_length_does_too(name, seq2seq_named):
    seq2seq = seq2seq_named(name)
    ours, static = seq2seq.ours(2), {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(generated(ours, seq2seq, **static), generated(ours, seq2seq))


@pytest.mark.parametrize("groups", [1, 2])
def test_caches_hold_the_shared_heads_alone(seq2seq, groups):
    ours = seq2seq.ours(groups)
    found = outputs(ours, seq2seq, use_cache=True)
    cache = found.cache
    layers, tokens = 2, {"self_attention_cache": 6, "cross_attention_cache": found.encoder_last_hidden_state.shape[1]}
    for part, length in tokens.items():
        held = [t for layer in getattr(cache, part).layers for t in (layer.keys, layer.values)]
        assert sum(t.nbytes for t in held) == 2 * layers * 2 * groups * length * seq2seq.head_dim * 8  # a batch of two


def test_a_token_at_a_time_computes_the_same(seq2seq):
    ours, target = seq2seq.ours(2), seq2seq.target()
    whole = outputs(ours, seq2seq).logits
    cache, encoded = EncoderDecoderCache(DynamicCache(), DynamicCache()), None
    for step in range(target.shape[1]):
        given: Any = {**seq2seq.inputs(), "decoder_input_ids": target[:, step : step + 1]}
        with torch.no_grad():
            found = ours(**given, encoder_outputs=encoded, cache=cache, use_cache=True)
        encoded = (found.encoder_last_hidden_state,)
        torch.testing.assert_close(found.logits[:, 0], whole[:, step], **EXACT)


def test_the_source_is_projected_once(seq2seq):
    ours = seq2seq.ours(2)
    name = "EncDecAttention.k_proj" if "t5" in seq2seq.model_type else "encoder_attn.k_proj"
    calls = []
    for path, module in ours.named_modules():
        if path.endswith(name):
            module.register_forward_hook(lambda *_, path=path: calls.append(path))
    generated(ours, seq2seq)
    assert len(calls) == len(set(calls)) == 2


def test_checkpointed_gradients_are_the_same(seq2seq):
    ours = seq2seq.ours(2, 1)
    gradients = []
    for checkpointed in (False, True):
        model = copy.deepcopy(ours).train()
        for module in model.modules():  # what is dropped at random would differ
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "dropout", None), float):
                vars(module)["dropout"] = 0.0
        calls = []
        k_proj = next(
            module for name, module in model.named_modules() if name.endswith(".k_proj") and "decoder" in name
        )
        k_proj.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        if checkpointed:
            model.activation_checkpointing_enable()
        model(**seq2seq.inputs(), labels=seq2seq.target(), use_cache=False).loss.backward()
        assert len(calls) == (2 if checkpointed else 1)
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("k_proj" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, **EXACT)


def test_saved_and_loaded_it_is_the_same(seq2seq, tmp_path):
    ours = seq2seq.ours(2, 1)
    ours.save_pretrained(tmp_path)
    kind = seq2seq.classes[seq2seq.auto]
    loaded, info = kind.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert (loaded.config.num_key_value_heads, loaded.config.encoder_num_key_value_heads) == (2, 1)
    torch.testing.assert_close(loaded.state_dict(), ours.state_dict(), rtol=0, atol=0)
    # copied, because where weights lie in memory decides the order of some processors' sums
    found, expected = (outputs(copy.deepcopy(model.eval()), seq2seq).logits for model in (loaded, ours))
    assert torch.equal(found, expected)


def test_a_configuration_that_says_nothing_has_all_heads(seq2seq):
    ours = seq2seq.ours(None)
    assert ours.state_dict().keys() == seq2seq.renamed(seq2seq.stock().state_dict()).keys()
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in seq2seq.stock().parameters())


def test_heads_that_do_not_divide_are_refused(seq2seq):
    with pytest.raises(ValueError, match="4 query heads do not divide among 3 KV heads"):
        seq2seq.ours(3)


def test_new_weights_are_as_small_as_the_stock_ones(seq2seq):
    config = seq2seq.classes["AutoConfig"](**(seq2seq.extra | {"d_model": 192, "d_kv": 48}))
    torch.manual_seed(0)
    ours = seq2seq.classes[seq2seq.auto]._from_config(config)
    stock = type(ours).__mro__[2](config)
    theirs = seq2seq.renamed(stock.state_dict())
    checked = [name for name in theirs if "_proj.weight" in name or "relative_attention_bias" in name]
    assert checked
    for name in checked:
        assert ours.state_dict()[name].std().item() == pytest.approx(theirs[name].std().item(), rel=0.2), name
