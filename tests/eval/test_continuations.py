"""Greedy continuations, against the likeliest token taken again and again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.eval.continuations import check_prompts, continue_prompts, read_prompts
from gqa.eval.model import load_model

PICKY = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "num_beams": 3}


def settle(checkpoint: Path, **settings: Any) -> None:
    """Write into generation_config.json."""
    path = checkpoint / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_they_are_the_likeliest_tokens(checkpoint):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    model.eval()
    prompts = ["The quick brown", "def area"]
    for prompt, made in zip(prompts, continue_prompts(model, tokenizer, prompts, 6), strict=True):
        ids = tokenizer(prompt)["input_ids"]
        length = len(ids)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert (made.prompt, made.text) == (prompt, tokenizer.decode(ids[length:], skip_special_tokens=True))


def test_a_checkpoint_that_would_rather_sample_is_greedy_all_the_same(make_checkpoint):
    path = make_checkpoint()
    model, tokenizer = load_model(path, device="cpu"), AutoTokenizer.from_pretrained(path)
    expected = continue_prompts(model, tokenizer, ["The"], 5)
    assert model.generation_config is not None
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
    assert continue_prompts(model, tokenizer, ["The"], 5) == expected


def test_what_generation_config_json_asks_for_changes_nothing(make_checkpoint, tmp_path: Path):
    path = make_checkpoint()
    shutil.copytree(path, tmp_path / "picky")
    settle(tmp_path / "picky", **PICKY)
    model, tokenizer = load_model(tmp_path / "picky", device="cpu"), AutoTokenizer.from_pretrained(path)
    ids = tokenizer("The quick")["input_ids"]
    length = len(ids)
    while len(ids) < length + 40 and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    likeliest = tokenizer.decode(ids[length:], skip_special_tokens=True)
    for each in (load_model(path, device="cpu"), model):
        assert continue_prompts(each, tokenizer, ["The quick"], 40)[0].text == likeliest
    assert model.generation_config is not None
    assert model.generation_config.to_dict().items() >= PICKY.items()  # what comes afterwards finds its own again


def test_a_target_begins_with_what_the_model_has_to_begin_with(make_encoder_decoder):
    path, language = make_encoder_decoder(model_type="bart"), 77
    settle(path, forced_bos_token_id=language, **PICKY)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    source, made = torch.tensor([tokenizer("The quick")["input_ids"]]), [model.config.decoder_start_token_id, language]
    while len(made) < 13 and made[-1] != model.config.eos_token_id:
        with torch.no_grad():
            logits = model(input_ids=source, decoder_input_ids=torch.tensor([made])).logits
        made.append(int(logits[0, -1].argmax()))
    (found,) = continue_prompts(model, tokenizer, ["The quick"], 12)
    assert found.text == tokenizer.decode(made, skip_special_tokens=True)


def test_an_encoder_decoder_is_given_the_source(make_encoder_decoder):
    path = make_encoder_decoder()
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    (made,) = continue_prompts(model, tokenizer, ["The quick"], 4)
    assert made.prompt == "The quick"
    assert isinstance(made.text, str)


def test_an_encoder_decoder_has_positions_for_its_source_and_for_its_target(make_encoder_decoder, checkpoint):
    path, prompt = make_encoder_decoder(model_type="bart"), "a" * 40
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    model.generation_config.eos_token_id = model.config.vocab_size + 1  # so that it goes on to the end
    positions = model.config.max_position_embeddings
    check_prompts([prompt], positions, tokenizer, model.config, path)
    (made,) = continue_prompts(model, tokenizer, [prompt], positions)
    assert made.text
    with pytest.raises(UserError, match=f"are more than the {positions} positions"):
        check_prompts([prompt], positions + 1, tokenizer, model.config, path)
    one = AutoConfig.from_pretrained(checkpoint)
    with pytest.raises(UserError, match=f"are more than the {one.max_position_embeddings} positions"):
        check_prompts([prompt], one.max_position_embeddings, tokenizer, one, checkpoint)


def test_prompts_are_texts_and_lines_of_files(tmp_path: Path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n")
    long = "a text too long for a name " * 50
    assert read_prompts(["zero", str(path), long]) == ["zero", "one", " two ", long]
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"prompts.txt is not UTF-8 text"):
        read_prompts([str(path)])
    path.write_text("\n")
    with pytest.raises(UserError, match=r"prompts.txt has no line with a prompt"):
        read_prompts([str(path)])
