"""Encoder-decoders through the conversion: from a stock checkpoint on disk to one of ours that computes the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from gqa.convert.cli import app
from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions, plan_conversion
from gqa.convert.rewrite import convert
from gqa.convert.tensors import TensorEntry

NEAR = {"rtol": 0, "atol": 1e-9}


def logits(model, seq2seq) -> torch.Tensor:
    with torch.no_grad():
        return model(**seq2seq.inputs(), decoder_input_ids=seq2seq.target()).logits


def saved(model, path: Path) -> Path:
    model.save_pretrained(path)
    return path


def loaded(seq2seq, path: Path) -> Any:
    """The checkpoint through our class, refusing anything missing, left over or of another shape."""
    kind = seq2seq.classes[seq2seq.auto]
    model, info = kind.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), info
    return model.eval()


def put_back(model: Any, path: Path) -> None:
    """The model's weights in the place of those of its checkpoint, whose other files stay."""
    file, state = path / "model.safetensors", model.state_dict()
    save_file({name: state[name].contiguous() for name in load_file(file)}, file, metadata={"format": "pt"})


def edit_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    kept = {key: value for key, value in (config | changes).items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))


def test_with_all_heads_it_is_renamed_and_nothing_else(seq2seq, tmp_path):
    source = saved(seq2seq.stock(), tmp_path / "stock")
    plan = convert(source, tmp_path / "out", ConvertOptions(groups=4))
    assert all(isinstance(tensor.source, TensorEntry) for tensor in plan.tensors if tensor.source is not None)
    found, expected = logits(loaded(seq2seq, tmp_path / "out"), seq2seq), logits(seq2seq.stock(), seq2seq)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["mean", "first", "lowrank", "aligned"])
@pytest.mark.parametrize("encoder", [False, True])
def test_heads_that_are_alike_merge_without_loss(seq2seq, method, encoder, tmp_path):
    stock, _ = seq2seq.tied(2, 1)
    options = ConvertOptions(groups=1 if encoder else 2, method=method, encoder=encoder)
    if encoder:
        stock, _ = seq2seq.tied(1, 1)
    convert(saved(stock, tmp_path / "stock"), tmp_path / "out", options)
    ours = loaded(seq2seq, tmp_path / "out")
    kept = (ours.config.num_key_value_heads, ours.config.encoder_num_key_value_heads)
    assert kept == ((1, 1) if encoder else (2, seq2seq.heads[0]))
    torch.testing.assert_close(logits(ours, seq2seq), logits(stock, seq2seq), **NEAR)


def test_low_rank_finds_heads_that_are_one_another_in_disguise(seq2seq, tmp_path, layers_of, free_maps):
    stock, _ = seq2seq.tied(2)
    convert(saved(stock, tmp_path / "stock"), tmp_path / "all", ConvertOptions(groups=4))
    layers, moved = layers_of(tmp_path / "all"), 0

    def disguise(weights, freedom):
        nonlocal moved
        moved += freedom.heads_move
        there = weights.reordered([2, 0, 3, 1]) if freedom.heads_move else weights
        return free_maps.everything(there, freedom)

    layers.put(ours := loaded(seq2seq, tmp_path / "all"), disguise)
    assert moved == (2 if "t5" in seq2seq.model_type else 4)  # T5's positions hold the heads of self-attention
    put_back(ours, tmp_path / "all")
    torch.testing.assert_close(logits(ours, seq2seq), logits(stock, seq2seq), **NEAR)
    convert(tmp_path / "all", tmp_path / "mean", ConvertOptions(groups=2))
    convert(tmp_path / "all", tmp_path / "lowrank", ConvertOptions(groups=2, method="lowrank"))
    torch.testing.assert_close(
        logits(loaded(seq2seq, tmp_path / "lowrank"), seq2seq), logits(stock, seq2seq), rtol=0, atol=1e-6
    )
    assert (logits(loaded(seq2seq, tmp_path / "mean"), seq2seq) - logits(stock, seq2seq)).abs().max() > 1e-3


def test_means_are_means_and_the_encoder_is_left_alone(seq2seq_checkpoint, seq2seq, tmp_path):
    convert(seq2seq_checkpoint, tmp_path / "out", ConvertOptions(groups=2))
    before = seq2seq.renamed(load_file(seq2seq_checkpoint / "model.safetensors"))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    merged = {name for name in before if before[name].shape != after[name].shape}
    attentions = {name.rpartition(".k_proj.")[0] for name in merged if ".k_proj." in name}
    assert len(attentions) == 4  # of two layers, self- and cross-attention
    assert all("decoder." in name and (".k_proj." in name or ".v_proj." in name) for name in merged)
    for name in before:
        expected = before[name]
        if name in merged:
            expected = expected.unflatten(0, (2, 2, -1)).mean(1).flatten(0, 1)
        torch.testing.assert_close(after[name], expected, rtol=0, atol=0 if name not in merged else 1e-6)


def test_what_is_ours_converts_further(seq2seq, tmp_path):
    stock, _ = seq2seq.tied(1, 1)
    convert(saved(stock, tmp_path / "stock"), tmp_path / "two", ConvertOptions(groups=2))
    convert(tmp_path / "two", tmp_path / "one", ConvertOptions(groups=1))
    convert(tmp_path / "one", tmp_path / "encoder", ConvertOptions(groups=1, encoder=True))
    for name, encoder in (("one", seq2seq.heads[0]), ("encoder", 1)):
        ours = loaded(seq2seq, tmp_path / name)
        assert ours.config.encoder_num_key_value_heads == encoder
        torch.testing.assert_close(logits(ours, seq2seq), logits(stock, seq2seq), **NEAR)
    with pytest.raises(UserError, match="already has 1 KV heads, so there is nothing to do"):
        plan_conversion(tmp_path / "encoder", ConvertOptions(groups=1, encoder=True))


def test_cast_and_cut_into_shards(seq2seq_checkpoint, seq2seq, tmp_path):
    options = ConvertOptions(groups=2, dtype="bfloat16", max_shard_size="20kB")
    convert(seq2seq_checkpoint, tmp_path / "out", options)
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    assert next(loaded(seq2seq, tmp_path / "out").parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_old_files_that_repeat_what_is_tied(name, seq2seq_named, tmp_path):
    seq2seq = seq2seq_named(name)
    stock = seq2seq.stock()
    source = saved(stock, tmp_path / "stock")
    tensors = {key: tensor.clone() for key, tensor in stock.state_dict().items()}
    shared = next(tensor for key, tensor in tensors.items() if key.endswith("shared.weight"))
    if name == "t5":
        tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 4)
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    convert(source, tmp_path / "out", ConvertOptions(groups=4))
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(torch.equal(tensor, shared) for tensor in written.values()) == 4
    assert torch.equal(logits(loaded(seq2seq, tmp_path / "out"), seq2seq), logits(stock, seq2seq))


def test_a_bare_model_leaves_the_prefix_off(seq2seq_named, tmp_path):
    seq2seq = seq2seq_named("bart")
    stock, _ = seq2seq.tied(2)
    source = saved(stock.model, tmp_path / "stock")
    assert json.loads((source / "config.json").read_text())["architectures"] == ["BartModel"]
    plan = convert(source, tmp_path / "out", ConvertOptions(groups=2))
    assert plan.prefixes[0] == "decoder.layers.0.self_attn."
    model = seq2seq.classes["AutoModel"].from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        found, expected = (
            one(**seq2seq.inputs(), decoder_input_ids=seq2seq.target()).last_hidden_state
            for one in (model, stock.model)
        )
    torch.testing.assert_close(found, expected, **NEAR)


def test_every_attention_is_told_of(seq2seq_checkpoint, seq2seq, tmp_path):
    out = tmp_path / "out"
    run = CliRunner().invoke(
        app, ["-g", "2", str(seq2seq_checkpoint), "-o", str(out), "--encoder", "--method", "lowrank", "--json"]
    )
    assert run.exit_code == 0, run.stderr
    encoder = seq2seq.heads[0]
    said = json.loads(run.stdout)
    sites = ["self-attention"] * 2 + ["cross-attention"] * 2 + ["encoder"] * 3
    assert [layer["site"] for layer in said["layers"]] == sites
    assert [layer["layer"] for layer in said["layers"]] == [0, 1, 0, 1, 0, 1, 2]
    assert [layer["kv_heads_before"] for layer in said["layers"]] == [4] * 4 + [encoder] * 3
    assert [layer["cache_bytes_after"] for layer in said["layers"]] == [2 * 2 * seq2seq.head_dim * 4] * 4 + [0] * 3
    (stage,) = json.loads((out / "gqa.json").read_text())["stages"]
    assert [layer["site"] for layer in stage["layers"]] == sites
    assert stage["encoder"] is True
    assert stage["rewritten_from"] == seq2seq.model_type


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_what_is_saved_and_what_comes_next(name, seq2seq_named, tmp_path):
    source = saved(seq2seq_named(name).stock().float(), tmp_path / "stock")
    run = CliRunner().invoke(app, ["-g", "2", str(source), "--encoder"])
    size = "640 B -> 320 B" if name == "t5" else "768 B -> 384 B"
    assert f"KV cache {size} a token in self-attention, {size} a token in cross-attention (2x smaller)." in run.stdout
    assert f" --data {'TEXT' if name == 't5' else 'SPEECH'} --max-tokens N" in run.stdout
    assert ("--method lowrank --encoder" in run.stdout) == ("lowrank would keep" in run.stdout)


@pytest.mark.parametrize("options", [[], ["-g", "2"], ["-g", "2", "--encoder", "--verbose"], ["--kv-budget", "0.5"]])
def test_a_dry_run_looks_at_all_of_them(seq2seq_named, options, tmp_path):
    source = saved(seq2seq_named("t5").stock().float(), tmp_path / "stock")
    run = CliRunner().invoke(app, [str(source), "--dry-run", "--method", "lowrank", *options])
    assert run.exit_code == 0, run.stderr
    layers = 7 if "--encoder" in options else 4
    assert f"the mean over all {layers} layers" in run.stdout
    where = "self-attention, encoder" if "--encoder" in options else "self-attention"
    assert f"positions bias every head in its own way, so heads stay where they are ({where})." in run.stdout
    assert "--fit" not in run.stdout  # which is not to be had


@pytest.mark.parametrize(
    "options", [["-g", "2", "--method", "lowrank"], ["--groups", "auto", "--max-loss", "1"], ["--dry-run"]]
)
def test_calibration_is_refused(seq2seq_checkpoint, options, calibration_text):
    run = CliRunner().invoke(app, [str(seq2seq_checkpoint), "--calibration", str(calibration_text), *options])
    assert run.exit_code == 2
    assert "is an encoder-decoder, which can't be calibrated, fitted or measured on text yet" in run.stderr


def test_the_encoder_of_what_has_none_is_refused(checkpoint):
    with pytest.raises(UserError, match="llama has no encoder; leave --encoder out"):
        plan_conversion(checkpoint, ConvertOptions(groups=2, encoder=True))


def test_an_encoder_of_other_heads_limits_the_choice(seq2seq_named, tmp_path):
    source = saved(seq2seq_named("bart").stock(), tmp_path / "stock")
    assert plan_conversion(source, ConvertOptions(groups=2)).group_choices == [1, 2]
    edit_config(source, encoder_attention_heads=3)
    with pytest.raises(UserError, match=r"^3 KV heads do not divide into 2 groups; choose one of 1$"):
        plan_conversion(source, ConvertOptions(groups=2, encoder=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"architectures": ["BartForCausalLM"]},
            "of bart, BartForConditionalGeneration and BartModel can be converted",
        ),
        (
            {"decoder_layers": 1},
            r"tensors model.decoder.layers.1.self_attn.\*, but config.json says decoder_layers is 1",
        ),
        ({"decoder_layers": 3}, "tensor model.decoder.layers.2.self_attn.k_proj.bias is missing from the checkpoint"),
        ({"decoder_attention_heads": "4"}, "decoder_attention_heads is '4', not a positive integer"),
        ({"decoder_attention_heads": 6, "d_model": 60}, "has shape .* but config.json implies"),
        ({"quantization_config": {"bits": 4}}, "is quantised"),
    ],
)
def test_what_does_not_fit_is_refused(seq2seq_named, changes, said, tmp_path):
    source = saved(seq2seq_named("bart").stock(), tmp_path / "stock")
    edit_config(source, **changes)
    with pytest.raises(UserError, match=said):
        plan_conversion(source, ConvertOptions(groups=2))


def test_sizes_left_out_are_those_of_the_class(seq2seq, tmp_path):
    config = type(seq2seq.stock().config)()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": seq2seq.model_type}))
    from gqa.convert.checkpoint import open_checkpoint

    opened = open_checkpoint(tmp_path)
    for key in ("d_model", "d_kv", "num_heads", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"):
        assert opened.config.get(key) == getattr(config, key, None), key
    assert opened.config["num_key_value_heads"] == getattr(
        config, "decoder_attention_heads", config.num_attention_heads
    )
    assert opened.config["encoder_num_key_value_heads"] == config.num_attention_heads


def test_heads_that_are_named_are_found_where_they_went(seq2seq_named, tmp_path, layers_of, free_maps):
    """Whisper reads its timestamps off the weights of single heads, which are told by their numbers."""
    seq2seq = seq2seq_named("whisper")
    stock, _ = seq2seq.tied(2)
    named = [[0, 1], [1, 0], [1, 3], [9, 0]]  # the last is of another model
    stock.generation_config.alignment_heads = named
    convert(saved(stock, tmp_path / "stock"), tmp_path / "all", ConvertOptions(groups=4))
    assert heads_named_in(tmp_path / "all") == named
    layers_of(tmp_path / "all").put(
        ours := loaded(seq2seq, tmp_path / "all"),
        lambda weights, freedom: free_maps.everything(weights.reordered([0, 2, 1, 3]), freedom),
    )
    put_back(ours, tmp_path / "all")
    convert(tmp_path / "all", tmp_path / "out", ConvertOptions(groups=2, method="lowrank"))
    moved = heads_named_in(tmp_path / "out")
    assert moved == [[0, 2], [1, 0], [1, 3], [9, 0]]  # similar heads stand together again
    before, after = (weights_of_cross_attention(loaded(seq2seq, tmp_path / name), seq2seq) for name in ("all", "out"))
    for (layer, head), (_, place) in zip(named[:-1], moved, strict=False):
        torch.testing.assert_close(after[layer][:, place], before[layer][:, head], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{oops", "is not JSON"),
        ("[]", "holds a list, not a JSON object"),
        ('"x"', "holds a str, not a JSON object"),
        ('{"alignment_heads": "x"}', r"alignment_heads is no list of pairs, \[layer, head\], of whole numbers from 0"),
        ('{"alignment_heads": [[1]]}', "alignment_heads is no list of pairs"),
        ('{"alignment_heads": [["0", 1]]}', "alignment_heads is no list of pairs"),
        ('{"alignment_heads": [[0.5, 1]]}', "alignment_heads is no list of pairs"),
        ('{"alignment_heads": [[-9, 1]]}', "alignment_heads is no list of pairs"),
    ],
)
def test_heads_that_are_named_otherwise_are_a_sentence(text, sentence, seq2seq_named, tmp_path):
    source = saved(seq2seq_named("whisper").stock(), tmp_path / "stock")
    (source / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=rf"stock/generation_config\.json:? {sentence}"):
        convert(source, tmp_path / "out", ConvertOptions(groups=2, method="lowrank"))
    assert [path.name for path in tmp_path.iterdir()] == ["stock"]


def heads_named_in(path: Path) -> list[list[int]]:
    return json.loads((path / "generation_config.json").read_text())["alignment_heads"]


def weights_of_cross_attention(model: Any, seq2seq) -> list[torch.Tensor]:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        given = {**seq2seq.inputs(), "decoder_input_ids": seq2seq.target()}
        return model(**given, output_attentions=True).cross_attentions


class TestTokenizers:
    def write(self, source: Path, made: PreTrainedTokenizerFast, **config: Any) -> dict[str, bytes]:
        made.save_pretrained(source)
        (source / "tokenizer_config.json").write_text(json.dumps(config))
        (source / "spiece.model").write_bytes(bytes(range(256)))
        (source / "preprocessor_config.json").write_text('{"feature_size": 8}')
        names = ("tokenizer.json", "tokenizer_config.json", "spiece.model", "preprocessor_config.json")
        return {name: (source / name).read_bytes() for name in names}

    def test_a_tokenizer_that_says_what_it_is_stays(self, seq2seq_checkpoint, make_tokenizer, tmp_path):
        written = self.write(seq2seq_checkpoint, make_tokenizer(), tokenizer_class="PreTrainedTokenizerFast")
        convert(seq2seq_checkpoint, tmp_path / "out", ConvertOptions(groups=2))
        assert {name: (tmp_path / "out" / name).read_bytes() for name in written} == written
        assert type(AutoTokenizer.from_pretrained(tmp_path / "out")) is PreTrainedTokenizerFast

    @pytest.mark.parametrize("text", ["{oops", "[]"])
    def test_damaged_settings_are_a_sentence(self, text, seq2seq_named, make_tokenizer, tmp_path):
        source = saved(seq2seq_named("t5").stock(), tmp_path / "stock")
        make_tokenizer().save_pretrained(source)
        (source / "tokenizer_config.json").write_text(text)
        with pytest.raises(UserError, match=r"tokenizer_config\.json of the checkpoint (is not|holds a list, not)"):
            convert(source, tmp_path / "out", ConvertOptions(groups=2))
        assert [path.name for path in tmp_path.iterdir()] == ["stock"]

    def test_one_that_does_not_is_named(self, seq2seq_checkpoint, seq2seq, make_tokenizer, texts, tmp_path):
        made = make_tokenizer() if seq2seq.model_type in ("bart", "marian", "whisper") else unigrams()
        written = self.write(seq2seq_checkpoint, made, model_max_length=9)
        convert(seq2seq_checkpoint, tmp_path / "out", ConvertOptions(groups=2))
        same = {name for name in written if (tmp_path / "out" / name).read_bytes() == written[name]}
        assert written.keys() - same == {"tokenizer_config.json"}
        named = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert named.keys() == {"model_max_length", "tokenizer_class"}
        if seq2seq.model_type != "marian":  # whose tokenizer is not to be had without another package
            found, expected = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", seq2seq_checkpoint))
            assert type(found) is type(expected)
            assert [found(text)["input_ids"] for text in texts] == [expected(text)["input_ids"] for text in texts]


def unigrams() -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that T5 and others have."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    model = models.Unigram([(piece, min(0.0, 2.0 - place)) for place, piece in enumerate(pieces)], unk_id=2)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), pad_token="<pad>", unk_token="<unk>")
