"""A T5 through every stage: converted, evaluated beside its source, uptrained, evaluated again."""

import json
from pathlib import Path

import pytest
import torch

from gqa.convert.plan import ConvertOptions
from gqa.convert.rewrite import convert
from gqa.eval.evaluate import evaluate
from gqa.eval.options import EvalOptions
from gqa.uptrain import UptrainConfig, uptrain


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_all_stages(make_encoder_decoder, texts, one_thread, tmp_path: Path, model_type: str):
    source = make_encoder_decoder(model_type=model_type)
    rows = [{"text": text, "source": text[:20], "target": text[20:35]} for text in texts if len(text) > 20]
    if model_type == "t5":  # whose tokenizer has sentinels
        rows = [{"text": row["text"]} for row in rows]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    converted, trained = tmp_path / "converted", tmp_path / "trained"
    convert(source, converted, ConvertOptions(groups=2, method="lowrank"))
    result = uptrain(
        UptrainConfig(
            checkpoint=str(converted),
            teacher="none",  # the parent is random, and has nothing to teach
            data=str(data),
            validation_data=str(data),
            validation_tokens=300,
            output=trained,
            cache_dir=tmp_path / "cache",
            sequence_length=32,
            batch_size=4,
            max_steps=20,
            learning_rate=1e-2,
            precision="float32",
            quiet=True,
        )
    )
    assert result.validation[-1]["validation_loss"] < result.validation[0]["validation_loss"]
    options = EvalOptions(data=str(data), window=32, dtype="float32", device="cpu")
    report = evaluate([source, converted, trained], options)
    caches = [[part.bytes_per_token for part in row.result.kv_cache.parts] for row in report.rows]
    assert caches == [[512, 512], [256, 256], [256, 256]]
    assert report.notes() == []
    assert report.rows[2].nll.value < report.rows[1].nll.value
    stages = json.loads((trained / "gqa.json").read_text())["stages"]
    assert [stage["stage"] for stage in stages] == ["convert", "uptrain"]
    same = {path.name for path in converted.iterdir()} - {"gqa.json", "model.safetensors"}
    assert all((trained / name).read_bytes() == (converted / name).read_bytes() for name in same)
    assert any(name.startswith("modeling_") for name in same)
