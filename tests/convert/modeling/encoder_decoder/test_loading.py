"""Who can load an encoder-decoder of ours: transformers alone, by the code that goes along, and who registers it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from gqa.convert.modeling import register
from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert

REMOTE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "gqa":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import torch, transformers

path, auto = sys.argv[1:]
given = torch.load("given")
model = getattr(transformers, auto).from_pretrained(path, dtype="auto", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
with torch.no_grad():
    logits = model(**given).logits
    tokens = model.generate(**{key: given[key] for key in given if key != "decoder_input_ids"}, max_new_tokens=5)
torch.save((logits, tokens), "found")
model.save_pretrained("again")
"""


@pytest.fixture
def converted(seq2seq, tmp_path: Path) -> Path:
    seq2seq.stock().save_pretrained(tmp_path / "stock")
    convert(tmp_path / "stock", tmp_path / "out", ConvertOptions(groups=2))
    return tmp_path / "out"


def test_registered_it_is_found_by_its_model_type(converted, seq2seq):
    register()
    auto: Any = getattr(transformers, seq2seq.auto)
    assert type(auto.from_pretrained(converted)) is seq2seq.classes[seq2seq.auto]
    assert type(transformers.AutoModel.from_pretrained(converted)) is seq2seq.classes["AutoModel"]


@pytest.mark.parametrize("name", ["t5", "mt5", "bart", "mbart", "marian", "pegasus", "whisper"])
def test_it_loads_where_gqa_is_not_installed(name, seq2seq_named, tmp_path):
    seq2seq = seq2seq_named(name)
    seq2seq.stock().save_pretrained(tmp_path / "stock")
    convert(tmp_path / "stock", tmp_path / "out", ConvertOptions(groups=2, encoder=True))
    given = {**seq2seq.inputs(), "decoder_input_ids": seq2seq.target()}
    torch.save(given, tmp_path / "given")
    place = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", "-c", REMOTE, "out", seq2seq.auto]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | place, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    logits, tokens = torch.load(tmp_path / "found")
    ours = seq2seq.classes[seq2seq.auto].from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        assert torch.equal(logits, ours(**given).logits)
        del given["decoder_input_ids"]
        assert torch.equal(tokens, ours.generate(**given, max_new_tokens=5))
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["num_key_value_heads"] == saved["encoder_num_key_value_heads"] == 2
    assert (tmp_path / "again" / f"modeling_gqa_{name}.py").is_file()
