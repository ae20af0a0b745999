"""Publishing what no class of transformers holds: its code goes along, hashed, and the card says how to load it."""

import hashlib
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gqa.convert.modeling import register, single_file
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert

LOAD = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gqa":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch, transformers

auto, given = getattr(transformers, sys.argv[1]), torch.arange(3, 20)[None]
try:
    auto.from_pretrained("me/own")
except ValueError:
    pass
else:
    raise SystemExit("it loaded without trust_remote_code")
model = auto.from_pretrained("me/own", trust_remote_code=True).eval()
inputs = {"decoder_input_ids": given} if model.config.is_encoder_decoder else {}
with torch.no_grad():
    torch.save(model(given, **inputs).logits, "logits")
"""


@pytest.mark.parametrize(
    ("model_type", "auto"), [("gpt2", AutoModelForCausalLM), ("t5", AutoModelForSeq2SeqLM)], ids=["gpt2", "t5"]
)
def test_code_of_our_own_is_published_with_the_weights(
    model_type, auto, hub, push, environment, make_checkpoint, make_encoder_decoder, tmp_path
):
    make = make_encoder_decoder if model_type == "t5" else make_checkpoint
    sizes = {} if model_type == "t5" else {"n_embd": 32, "n_head": 4, "n_layer": 2}
    convert(make(model_type=model_type, **sizes), tmp_path / "own", ConvertOptions(groups=2))
    result = push(tmp_path / "own", "me/own", "--license", "mit")
    assert result.exit_code == 0, result.output

    there, file = hub.repos["me/own"].files(), f"modeling_gqa_{model_type}.py"
    assert there[file].decode() == single_file.source(f"gqa_{model_type}")
    record = read_stages(tmp_path / "own")[-1]["files"][file]
    assert record["sha256"] == hashlib.sha256(there[file]).hexdigest()
    card = ModelCard(there["README.md"].decode())
    assert "custom_code" in (card.data.get("tags") or [])
    assert f'{auto.__name__}.from_pretrained("me/own", dtype="auto", trust_remote_code=True)' in card.text
    assert f"`{file}`, beside the weights, does, and `trust_remote_code=True`" in card.text
    assert "`gqa.convert.modeling.register()` does without" in card.text

    command = [sys.executable, "-c", LOAD, auto.__name__]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    register(f"gqa_{model_type}")
    model, ids = auto.from_pretrained(tmp_path / "own").eval(), torch.arange(3, 20)[None]
    with torch.no_grad():
        here = model(ids, **({"decoder_input_ids": ids} if model_type == "t5" else {})).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits"), here, rtol=0, atol=1e-5)


def test_code_that_was_changed_is_not_published(hub, push, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint(model_type="gpt2", n_embd=32, n_head=4, n_layer=2)
    convert(checkpoint, tmp_path / "own", ConvertOptions(groups=2))
    with (tmp_path / "own" / "modeling_gqa_gpt2.py").open("a", encoding="utf-8") as file:
        file.write("print('changed')\n")
    result = push(tmp_path / "own", "me/own", "--license", "mit")
    assert result.exit_code == 2
    assert "modeling_gqa_gpt2.py is not what was written" in " ".join(result.stderr.split())
    assert not hub.count("(PUT|POST)")
