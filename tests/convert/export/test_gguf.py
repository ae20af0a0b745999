"""GGUF files: read back by transformers' own GGUF reader and by the gguf package, and refused where they would lie."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
import torch
from edits import edit_tensors
from transformers import AutoModelForCausalLM, Qwen2Tokenizer

from gqa.convert.errors import UserError
from gqa.convert.export.options import ExportDtype, ExportOptions
from gqa.convert.export.vocabulary import word_rule
from gqa.convert.export.writing import export_gguf
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

BASE = {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}}


@pytest.fixture
def gqa(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A converted checkpoint with 2 of 4 KV heads."""

    def make(model_type: str, **config: Any) -> Path:
        source = make_checkpoint(model_type=model_type, **config)
        convert(source, tmp_path / "gqa", ConvertOptions(groups=2))
        return tmp_path / "gqa"

    return make


def exported(directory: Path, *, dtype: ExportDtype = "auto", **options: Any) -> Path:
    output = directory.parent / "model.gguf"
    size = export_gguf(ExportOptions(directory=directory, output=output, dtype=dtype, **options))
    assert size == output.stat().st_size
    return output


def fields(file: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("llama", BASE),
        ("llama", BASE | {"head_dim": 12}),
        ("llama", BASE | {"tie_word_embeddings": True}),
        ("qwen2", BASE),
    ],
)
def test_transformers_reads_the_same_model_out_of_the_file(
    model_type: str, config: dict[str, Any], gqa: Callable[..., Path]
):
    directory = gqa(model_type, **config)
    file = exported(directory)
    ids = torch.arange(40)[None] * 7 % 320
    stored = AutoModelForCausalLM.from_pretrained(directory)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert read.config.num_key_value_heads == 2
    assert read.config.rope_parameters["rope_theta"] == 54321.0
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, stored(ids).logits, rtol=0, atol=1e-4)


def test_a_phi_is_described_as_it_is(gqa: Callable[..., Path]):
    directory = gqa("gpt_neox", rotary_pct=0.5, rotary_emb_base=54321)
    said = fields(exported(directory))
    assert said["general.architecture"] == "phi2"
    assert (said["phi2.attention.head_count"], said["phi2.attention.head_count_kv"]) == (4, 2)
    assert said["phi2.rope.freq_base"] == 54321.0
    assert (said["phi2.rope.dimension_count"], said["phi2.attention.key_length"]) == (4, 8)
    assert (said["phi2.feed_forward_length"], said["phi2.context_length"]) == (48, 128)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(directory.parent / "model.gguf").tensors}
    model = AutoModelForCausalLM.from_pretrained(directory).model
    assert len(tensors) == len(list(model.parameters())) + 2  # the head's weight and bias
    key = model.layers[1].self_attn.k_proj
    assert (torch.tensor(tensors["blk.1.attn_k.weight"].data) == key.weight).all()
    assert (torch.tensor(tensors["blk.1.attn_k.bias"].data) == key.bias).all()


def test_biases_are_paired_as_the_weights_are(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE, attention_bias=True)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(exported(directory)).tensors}
    attention = AutoModelForCausalLM.from_pretrained(directory).model.layers[0].self_attn
    order = [head * 8 + half * 4 + pair for head in range(2) for pair in range(4) for half in range(2)]
    for name, stored in (("weight", attention.k_proj.weight), ("bias", attention.k_proj.bias)):
        assert (torch.tensor(tensors[f"blk.0.attn_k.{name}"].data) == stored[order]).all()
    assert (torch.tensor(tensors["blk.0.attn_v.bias"].data) == attention.v_proj.bias).all()


@pytest.mark.parametrize(
    ("dtype", "kind", "step"), [("float32", "F32", 0.0), ("float16", "F16", 2**-11), ("bfloat16", "BF16", 2**-8)]
)
def test_matrices_have_the_dtype_and_vectors_are_float32(
    dtype: ExportDtype, kind: str, step: float, gqa: Callable[..., Path]
):
    directory = gqa("llama", **BASE)
    file = exported(directory, dtype=dtype)
    stored = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    kinds = {tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1}
    assert kinds == {kind}
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    values = torch.tensor(gguf.dequantize(tensors["token_embd.weight"].data, tensors["token_embd.weight"].tensor_type))
    torch.testing.assert_close(values, stored["model.embed_tokens.weight"], rtol=step, atol=1e-6 if step else 0)


def test_auto_keeps_the_dtype(gqa: Callable[..., Path]):
    file = exported(gqa("llama", dtype=torch.bfloat16, **BASE))
    assert fields(file)["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16


def test_the_tokenizer_is_in_the_file(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE, adds_bos=True)
    said = fields(exported(directory))
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    assert {token: index for index, token in enumerate(said["tokenizer.ggml.tokens"])} == vocabulary
    assert said["tokenizer.ggml.merges"] == [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert (said["tokenizer.ggml.bos_token_id"], said["tokenizer.ggml.eos_token_id"]) == (1, 0)
    assert said["tokenizer.ggml.add_bos_token"] is True
    assert said["tokenizer.ggml.token_type"][:3] == [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL]


def test_a_sentencepiece_model_is_read_in_place_of_tokenizer_json(gqa: Callable[..., Path], texts: list[str]):
    directory = gqa("llama", **BASE, vocab_size=324)
    sizes: dict[str, Any] = {"vocab_size": 320, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
    with (directory / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=file, **sizes)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    said = fields(exported(directory))
    assert said["tokenizer.ggml.model"] == "llama"
    assert said["tokenizer.ggml.tokens"] == [
        *map(pieces.id_to_piece, range(320)),
        *(f"[PAD{i}]" for i in range(320, 324)),
    ]
    assert said["tokenizer.ggml.scores"][:320] == pytest.approx(list(map(pieces.get_score, range(320))))
    assert said["tokenizer.ggml.token_type"][3] == gguf.TokenType.BYTE
    assert "tokenizer.ggml.merges" not in said


def test_rows_beyond_the_tokenizer_are_unused(gqa: Callable[..., Path]):
    said = fields(exported(gqa("llama", **BASE, vocab_size=324)))
    assert said["tokenizer.ggml.tokens"][320:] == ["[PAD320]", "[PAD321]", "[PAD322]", "[PAD323]"]
    assert said["tokenizer.ggml.token_type"][320:] == [gguf.TokenType.UNUSED] * 4


def test_words_are_cut_as_qwens_are_by_its_own_rule():
    tokenizer = json.loads(Qwen2Tokenizer().backend_tokenizer.to_str())
    assert word_rule(tokenizer, Path("tokenizer.json")) == "qwen2"
    digits = json.dumps(tokenizer).replace("\\\\p{N}|", "\\\\p{N}{1,3}|")
    assert word_rule(json.loads(digits), Path("tokenizer.json")) == "llama-bpe"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("config.json", {"model_type": "gemma"}, "gemma is not exported, only llama, qwen2, phi, deepseek_v3"),
    ("config.json", {"model_type": "youtu"}, "convert again with --model-type deepseek_v3 if that takes"),
    (
        "config.json",
        {"model_type": "youtu", "hidden_size": 32, "q_lora_rank": 33},
        "this one can't become a deepseek_v3",
    ),
    ("config.json", {"model_type": "deepseek_v3"}, "only what gqa-convert --to mla makes is exported"),
    ("config.json", {"hidden_act": "relu"}, "llama.cpp does not compute relu in a llama"),
    (
        "config.json",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        "rotary settings of type yarn are not exported",
    ),
    ("tokenizer.json", {"pre_tokenizer": {"type": "Whitespace"}}, "give llama.cpp's name for it with --pre"),
    ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "give llama.cpp's name for it with --pre"),
    ("tokenizer.json", {"model": {"type": "WordPiece", "vocab": {}}}, "is no byte-level BPE"),
]


MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 3}, r"lacks tensors: model\.layers\.2\.input_layernorm\.weight, .* and 6 more"),
    ({"num_hidden_layers": 1}, r"that its model class doesn't know: model\.layers\.1\.input_layernorm\.weight, "),
    ({"hidden_size": 64}, r"of the wrong shape: lm_head\.weight, model\.embed_tokens\.weight, "),
    ({"vocab_size": 400}, r"of the wrong shape: lm_head\.weight, model\.embed_tokens\.weight; its config.json is of"),
    ({"num_key_value_heads": 4}, r"of the wrong shape: model\.layers\.0\.self_attn\.k_proj\.weight, "),
    ({"attention_bias": True}, r"lacks tensors: model\.layers\.0\.self_attn\.k_proj\.bias, "),
    ({"num_attention_heads": 0}, "no model can be made of the config.json of|transformers can't read"),
    ({"max_position_embeddings": None}, "transformers can't read .*config.json: .*'max_position_embeddings'"),
    ({"max_position_embeddings": -1}, r"says what no GGUF can hold \(argument out of range\); mend it"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISFITS, ids=[str(changes) for changes, _ in MISFITS])
def test_weights_of_another_configuration_are_refused(changes: dict[str, Any], sentence: str, gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    edit(directory / "config.json", **changes)
    with pytest.raises(UserError, match=sentence):
        exported(directory)
    assert [path.name for path in directory.parent.iterdir()] == ["gqa"]


def test_a_phi_whose_head_has_no_bias_is_refused(gqa: Callable[..., Path]):
    directory = gqa("gpt_neox", rotary_pct=0.5)
    edit_tensors(directory, lambda tensors: tensors.pop("lm_head.bias"))
    with pytest.raises(UserError, match=r"lacks tensors: lm_head\.bias; its config.json is of another model"):
        exported(directory)


def test_a_head_of_its_own_must_be_there_and_names_may_lack_the_base(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)

    def without_head(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(directory, without_head)
    with pytest.raises(UserError, match=r"lacks tensors: lm_head\.weight"):
        exported(directory)
    edit(directory / "config.json", tie_word_embeddings=True)
    names = {tensor.name for tensor in gguf.GGUFReader(exported(directory)).tensors}
    assert {"token_embd.weight", "blk.1.attn_k.weight", "output_norm.weight"} < names
    assert "output.weight" not in names


def test_angles_that_old_checkpoints_carry_are_left_out(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    before = {tensor.name for tensor in gguf.GGUFReader(exported(directory)).tensors}
    edit_tensors(
        directory, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    assert {tensor.name for tensor in gguf.GGUFReader(exported(directory, overwrite=True)).tensors} == before


DAMAGED: list[tuple[str, str, str]] = [
    ("tokenizer.json", "{oops", r"tokenizer\.json is not JSON"),
    ("tokenizer.json", "[]", r"tokenizer\.json holds a list, not a JSON object"),
    ("tokenizer.json", "{}", r"tokenizer\.json is damaged, restore it: 'model'"),
    (
        "tokenizer.json",
        '{"model": {"type": "BPE", "vocab": 3}, "pre_tokenizer": {"type": "ByteLevel"}}',
        r"tokenizer\.json is damaged, restore it: ",
    ),
    ("tokenizer.json", '{"model": {"type": "BPE"}, "pre_tokenizer": 3}', r"tokenizer\.json is damaged, restore it: "),
    ("tokenizer_config.json", "{oops", r"tokenizer_config\.json is not JSON"),
    ("tokenizer_config.json", '{"eos_token": "\\ud800", "chat_template": "\\ud800"}', "says what no GGUF can hold"),
    ("chat_template.json", "[]", "says of its special tokens and chat template can't be used"),
    ("tokenizer.model", "junk", r"the tokenizer\.model or added_tokens\.json of .* can't be used"),
]


@pytest.mark.parametrize(("name", "text", "sentence"), DAMAGED, ids=[f"{name} {text}" for name, text, _ in DAMAGED])
def test_a_damaged_tokenizer_is_one_sentence(name: str, text: str, sentence: str, gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    (directory / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        exported(directory)
    assert [path.name for path in directory.parent.iterdir()] == ["gqa"]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("name", "changes", "sentence"), REFUSED, ids=[sentence[:30] for *_, sentence in REFUSED])
def test_what_the_file_could_not_say_is_refused(
    name: str, changes: dict[str, Any], sentence: str, gqa: Callable[..., Path]
):
    directory = gqa("llama", **BASE)
    edit(directory / name, **changes)
    with pytest.raises(UserError, match=sentence):
        exported(directory)
    assert sorted(path.name for path in directory.parent.iterdir()) == ["gqa"]


def test_pre_names_the_rule(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    edit(directory / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    assert fields(exported(directory, pre="smollm"))["tokenizer.ggml.pre"] == "smollm"


@pytest.mark.parametrize("name", ["model.layers.0.extra.weight", "model.layers.0.self_attn.k_proj.bias"])
def test_a_tensor_that_the_class_does_not_have_is_refused(name: str, gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    edit_tensors(directory, lambda tensors: tensors.update({name: torch.zeros(16)}))
    with pytest.raises(UserError, match=f"has tensors that its model class doesn't know: {name}"):
        exported(directory)


def test_a_checkpoint_without_a_tokenizer_is_refused(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"has no tokenizer.json or tokenizer.model"):
        exported(directory)


def test_an_output_is_replaced_only_when_asked(gqa: Callable[..., Path]):
    directory = gqa("llama", **BASE)
    file = exported(directory)
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE((directory / "config.json").stat().st_mode)
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists; choose another, or replace it with --overwrite"):
        exported(directory)
    assert exported(directory, overwrite=True).read_bytes() == before
    with pytest.raises(UserError, match=r"does not end in \.gguf"):
        export_gguf(ExportOptions(directory=directory, output=directory / "model.safetensors", overwrite=True))
    (directory / "x.gguf").mkdir()
    with pytest.raises(UserError, match="is a directory; name a file"):
        export_gguf(ExportOptions(directory=directory, output=directory / "x.gguf"))
    with pytest.raises(UserError, match="there is no directory"):
        export_gguf(ExportOptions(directory=directory, output=directory / "no" / "x.gguf"))
