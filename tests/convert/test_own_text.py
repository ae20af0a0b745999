"""Text that the model writes itself, against the model's own probabilities; and conversions that learn from it."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gqa.convert.calibration import CalibrationOptions, calibration_windows
from gqa.convert.errors import UserError
from gqa.convert.layerfit import FitOptions
from gqa.convert.own_text import own_windows
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

CPU = torch.device("cpu")
OWN = CalibrationOptions(data="self", tokens=300, held_out_tokens=64, sequence_length=32, device="cpu")


@pytest.fixture
def tiny(make_checkpoint) -> Path:
    return make_checkpoint()


def windows(checkpoint: Path, count: int, length: int, seed: int = 0, **given) -> torch.Tensor:
    return own_windows(checkpoint, count=count, length=length, seed=seed, device=CPU, dtype=torch.float32, **given)


def as_written(checkpoint: Path, first: int) -> torch.Tensor:
    """The probabilities of what follows the first token. [vocabulary]"""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([[first]])).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_tokens_are_as_frequent_as_the_model_says(make_checkpoint, adds_bos):
    checkpoint, count = make_checkpoint(adds_bos=adds_bos), 20_000
    narrow = GenerationConfig(do_sample=True, temperature=0.1, top_k=1, top_p=0.1, eos_token_id=list(range(320)))
    narrow.save_pretrained(checkpoint)  # what the checkpoint's own settings ask for is not what it has learnt
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = windows(checkpoint, count, 2)
    assert found.dtype == torch.int64
    first = tokenizer.bos_token_id if adds_bos else tokenizer.eos_token_id
    assert (found[:, 0] == first).all()
    expected = as_written(checkpoint, first)
    seen = found[:, 1].bincount(minlength=len(expected)) / count
    spread = (expected * (1 - expected) / count).sqrt() + 1 / count
    assert ((seen - expected).abs() / spread).max() < 4.5
    assert (seen > 0).sum() > 100


def test_a_text_goes_on_behind_its_end(make_checkpoint):
    checkpoint = make_checkpoint(vocab_size=8, eos_token_id=0, bos_token_id=1, pad_token_id=0)
    tokens = windows(checkpoint, 64, 100)
    ended = (tokens == tokens[0, 0])[:, 1:-1]
    assert ended.any()
    behind = tokens[:, 2:][ended]
    assert len(behind.unique()) > 1


def test_the_seed_decides_and_nobody_elses_numbers_are_touched(tiny):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = windows(tiny, 5, 20, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert torch.equal(windows(tiny, 5, 20, seed=3), first)
    assert not torch.equal(windows(tiny, 5, 20, seed=4), first)
    assert len(first.unique(dim=0)) == 5


def test_batches_follow_one_another(tiny, monkeypatch):
    monkeypatch.setattr("gqa.convert.own_text._TOKENS_AT_ONCE", 40)
    told = []
    found = windows(tiny, 5, 20, progress=lambda *given: told.append(given))
    assert len(found.unique(dim=0)) == 5
    assert {(what, total) for what, _, total in told} == {("writing text", 100)}
    done = [done for _, done, _ in told]
    assert done == sorted(done)
    assert done[-1] == 100


def test_held_out_windows_are_others(tiny):
    train, held_out = calibration_windows(tiny, OWN)
    assert (train.shape, held_out.shape) == ((10, 32), (2, 32))
    assert len(torch.cat([train, held_out]).unique(dim=0)) == 12


def test_a_fit_on_own_text_brings_the_logits_nearer(tiny, tmp_path):
    plain = ConvertOptions(groups=2, method="lowrank")
    fitted = ConvertOptions(groups=2, method="lowrank", calibration=OWN, fit=FitOptions(steps=60, step_tokens=64))
    ids = calibration_windows(tiny, replace(OWN, seed=9))[0]
    off = []
    for name, options in (("plain", plain), ("fitted", fitted)):
        convert(tiny, tmp_path / name, options)
        models = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny, tmp_path / name))
        with torch.no_grad():
            before, after = (model(input_ids=ids).logits for model in models)
        off.append((after - before).square().mean().item())
    assert off[1] < 0.8 * off[0]
    (stage,) = json.loads((tmp_path / "fitted" / "gqa.json").read_text())["stages"]
    assert (stage["calibration"]["data"], stage["hub_data"]) == ("self", [])


def test_a_class_without_kv_heads_writes_as_it_stands(make_checkpoint, tmp_path, state_of):
    checkpoint = make_checkpoint(model_type="gpt_neox")
    for name, calibration in (("own", OWN), ("none", None)):
        convert(checkpoint, tmp_path / name, ConvertOptions(groups=2, method="lowrank", calibration=calibration))
    own, none = (state_of(tmp_path / name) for name in ("own", "none"))
    key = "model.layers.0.self_attn.k_proj.weight"
    assert own.keys() == none.keys()
    assert not torch.equal(own[key], none[key])


def test_text_that_is_written_waits_with_the_layers(tiny, tmp_path, monkeypatch):
    options = ConvertOptions(groups=2, calibration=OWN, fit=FitOptions(steps=8, step_tokens=64))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("gqa.convert.rewrite.write_config", full)
        with pytest.raises(UserError, match="2 of 2 layers are kept"):
            convert(tiny, tmp_path / "out", options)
    (layers,) = tmp_path.glob("out.layers-*")
    (layers / "layer-00001.safetensors").unlink()
    monkeypatch.setattr("gqa.convert.calibration.own_windows", lambda *_, **__: pytest.fail("written again"))
    convert(tiny, tmp_path / "out", options)
    assert not layers.exists()


@pytest.mark.parametrize(
    ("given", "name"),
    [({"text_column": "code"}, "text_column"), ({"subset": "en"}, "subset"), ({"split": "x"}, "split")],
)
def test_options_about_text_that_is_read_are_refused(given, name):
    with pytest.raises(UserError, match=f"{name} is about text that is read; self is the model's, leave it out"):
        CalibrationOptions(data="self", **given)


def test_a_file_of_that_name_has_a_path(tiny, calibration_text, monkeypatch):
    calibration_text.rename(calibration_text.with_name("self"))
    monkeypatch.chdir(calibration_text.parent)
    read, _ = calibration_windows(tiny, replace(OWN, data="./self", held_out_tokens=0))
    assert not torch.equal(read, calibration_windows(tiny, OWN)[0])


def test_who_has_no_token_to_begin_with_is_told(tiny, make_tokenizer):
    make_tokenizer(bos_token=None, eos_token=None).save_pretrained(tiny)
    with pytest.raises(UserError, match="no token that one begins with or ends on; name one with --calibration DATA"):
        calibration_windows(tiny, OWN)


def test_an_end_of_text_that_the_model_does_not_know_is_told(tiny, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<more {number}>" for number in range(320)])
    tokenizer.eos_token = "<more 319>"
    tokenizer.save_pretrained(tiny)
    with pytest.raises(UserError, match=r"begins a text with token \d+, but its model knows 320 tokens; restore"):
        calibration_windows(tiny, OWN)


def test_a_generation_config_that_is_none_is_a_sentence(tiny):
    (tiny / "generation_config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="can't be loaded"):
        windows(tiny, 1, 8)


def test_text_waits_before_there_is_a_layer(tiny, tmp_path, monkeypatch):
    options = ConvertOptions(groups=2, calibration=OWN, fit=FitOptions(steps=8, step_tokens=64))
    with monkeypatch.context() as patched:
        patched.setattr("gqa.convert.fit.fit_layer", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt, match=r"the text that it wrote is kept in .*; the same command goes on"):
            convert(tiny, tmp_path / "out", options)
    monkeypatch.setattr("gqa.convert.calibration.own_windows", lambda *_, **__: pytest.fail("written again"))
    convert(tiny, tmp_path / "out", options)
    assert not list(tmp_path.glob("out.layers-*"))


def test_what_is_no_language_model_is_told(tiny):
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(UserError, match=r"can't write a text itself \(.* is a vit, .*\); name one with --calibration"):
        windows(tiny, 1, 8)


def test_weights_that_are_no_numbers_are_a_sentence(tiny):
    tensors = load_file(tiny / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][2, 3] = torch.nan
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"the logits of .* are not finite where it writes; compute in another type"):
        windows(tiny, 2, 8)


def test_memory_that_is_too_small_is_a_sentence(tiny, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("gqa.convert.own_text.load_weights", full)
    with pytest.raises(UserError, match=r"cpu has no room for all of .* at once, .*; name one with --calibration DATA"):
        windows(tiny, 1, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_writes_what_the_seed_says(tiny):
    device = torch.device("cuda")
    first, again = (
        own_windows(tiny, count=40, length=20, seed=0, device=device, dtype=torch.float32) for _ in range(2)
    )
    assert first.device.type == "cpu"
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 40
