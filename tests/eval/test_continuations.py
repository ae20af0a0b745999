"""Greedy continuations, against the likeliest token taken again and again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from gqa.convert.errors import UserError
from gqa.eval.continuations import continue_prompts, read_prompts
from gqa.eval.model import load_model


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


def test_an_encoder_decoder_is_given_the_source(make_encoder_decoder):
    path = make_encoder_decoder()
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    (made,) = continue_prompts(model, tokenizer, ["The quick"], 4)
    assert made.prompt == "The quick"
    assert isinstance(made.text, str)


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
