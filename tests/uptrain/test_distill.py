"""Training from a teacher: held against a plain loop with whole logits, killed and resumed, shared by processes."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from gqa.convert.errors import UserError
from gqa.convert.plan import ConvertOptions
from gqa.convert.provenance import read_stages
from gqa.convert.rewrite import convert
from gqa.uptrain import lesson, uptrain
from gqa.uptrain.attention import packed_attention
from gqa.uptrain.batches import IGNORED, Sampler
from gqa.uptrain.config import UptrainConfig
from gqa.uptrain.divergence import Mixture, divergence
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.objective import NextTokenLoss, TargetLoss
from gqa.uptrain.schedule import learning_rate
from gqa.uptrain.teacher import keeps_apart
from gqa.uptrain.tokenise import Text
from gqa.uptrain.tokens import open_stores
from tests.uptrain.test_resume import KILL
from tests.uptrain.test_train import documents_of

Configured = Callable[..., UptrainConfig]


@pytest.fixture
def options(options: dict[str, Any], child: Path) -> dict[str, Any]:
    return options | {"checkpoint": str(child)}


def train_plainly(config: UptrainConfig, teacher_path: Path, steps: int) -> tuple[nn.Module, list[float]]:
    """The model after `steps` steps and its losses: documents one by one, logits whole, no micro-batches."""
    checkpoint = Path(config.checkpoint)
    assert config.cache_dir
    assert config.batch_size
    (store, _) = open_stores(
        Text(config.sources[0].data, "text", None, "train", checkpoint, 0.0), config.cache_dir, print
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint).train()
    teacher = AutoModelForCausalLM.from_pretrained(teacher_path).eval()
    matrices, rest = ([p for p in model.parameters() if (p.ndim > 1) is is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=config.betas, eps=config.eps)
    sampler = Sampler(store, 32, config.batch_size, config.seed)
    losses = []
    for step in range(steps):
        total, count = torch.zeros(()), 0
        for start in sampler.samples(step):
            for document in documents_of(store, start, 32):
                if len(document) < 2:
                    continue
                with torch.no_grad():
                    wanted = teacher(input_ids=document[None, :-1]).logits[0]
                found = model(input_ids=document[None, :-1]).logits[0]
                apart = divergence(found, wanted, config.divergence, config.temperature).sum()
                nll = nn.functional.cross_entropy(found, document[1:], reduction="sum")
                total = total + (1 - config.ce_weight) * apart + config.ce_weight * nll
                count += len(document) - 1
        (total / count).backward()
        losses.append(float(total.detach() / count))
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, steps)
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"micro_batch_size": 1, "ce_weight": 0.25, "temperature": 2.0},
        {"divergence": "reverse", "gradient_checkpointing": True},
        {"divergence": "jensen-shannon", "temperature": 0.5},
    ],
    ids=str,
)
def test_it_learns_what_the_plain_loop_learns(
    configured: Configured, parent: Path, metrics_of, changes: dict[str, Any], monkeypatch
):
    monkeypatch.setattr(lesson, "tokens_at_once", lambda *_: 10)
    config = configured(**changes)
    result = uptrain(config)
    model, losses = train_plainly(config, parent, steps=6)
    assert [line["loss"] for line in metrics_of(result.run_dir) if "loss" in line] == pytest.approx(losses, rel=2e-5)
    trained = load_file(result.output / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=5e-5)
    stage = read_stages(result.output)[-1]
    assert stage["teacher"]["path"] == str(parent)
    assert stage["teacher"]["fingerprint"] == read_stages(Path(config.checkpoint))[0]["source"]["fingerprint"]


def test_validation_stays_the_likelihood_of_the_text(configured: Configured, tmp_path: Path):
    """So that runs can be compared, whatever they are trained by."""
    taught = uptrain(configured(max_steps=1))
    alone = uptrain(configured(max_steps=1, teacher="none", output=tmp_path / "alone"))
    assert taught.validation[0] == pytest.approx(alone.validation[0], rel=1e-5)
    assert taught.validation[1] != pytest.approx(alone.validation[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen-shannon"])
def test_chunks_change_neither_loss_nor_gradient(parent: Path, child: Path, kind: Any, monkeypatch):
    """Against all logits at once, in fp32, to 1e-6 of the largest gradient of each tensor."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).train() for path in (child, parent))
    ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    labels = ids.roll(-1, 1)
    labels[0, 3:7] = IGNORED
    mixture = Mixture(divergence=kind, temperature=2.0, ce_weight=0.25)
    with torch.no_grad():
        wanted = teacher(input_ids=ids).logits.flatten(0, 1)
    whole = mixture.summed(student(input_ids=ids).logits.flatten(0, 1), wanted, labels.flatten())
    expected = torch.autograd.grad(whole, list(student.parameters()))
    monkeypatch.setattr(lesson, "tokens_at_once", lambda *_: 7)
    positions = torch.arange(30).expand(2, -1)
    loss = NextTokenLoss(student, None, Lesson(student, mixture, teacher)).train()(ids, positions, labels)
    found = torch.autograd.grad(loss, list(student.parameters()))
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_no_tensor_is_as_large_as_all_logits(parent: Path, child: Path, monkeypatch):
    """In the forward pass and in the backward pass; the plain way makes several."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path).train() for path in (child, parent))
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    batch = ids, torch.arange(40).expand(2, -1), ids
    monkeypatch.setattr(lesson, "tokens_at_once", lambda *_: 8)
    for taught in (None, Lesson(student, Mixture(), teacher)):
        with _LargestTensor() as largest:
            NextTokenLoss(student, None, taught).train()(*batch).backward()
        assert largest.logits == 8
    with _LargestTensor() as plain:
        student(ids, labels=ids).loss.backward()
    assert plain.logits == 80


class _LargestTensor(TorchDispatchMode):
    """How many rows the largest tensor has that is as wide as the vocabulary and no weight."""

    logits = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            rows = tensor.numel() // 320 if isinstance(tensor, torch.Tensor) and tensor.shape[-1:] == (320,) else 0
            if rows != 32:  # the output projection, or its gradient, transposed
                self.logits = max(self.logits, rows)
        return made


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_encoder_decoders_learn_their_targets(make_encoder_decoder, model_type: str, monkeypatch):
    """Loss and gradient of a batch with padding, against the stock class with whole logits."""
    paths = (make_encoder_decoder(model_type=model_type, seed=seed) for seed in (0, 1))
    student, teacher = (AutoModelForSeq2SeqLM.from_pretrained(path).train() for path in paths)
    teacher.eval()
    source, labels = torch.randint(3, 300, (2, 2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(source)
    mask[1, 6:], labels[0, 5:] = 0, IGNORED
    with torch.no_grad():
        wanted = teacher(input_ids=source, attention_mask=mask, labels=labels).logits.flatten(0, 1)
    logits = student(input_ids=source, attention_mask=mask, labels=labels).logits.flatten(0, 1)
    whole = Mixture().summed(logits, wanted, labels.flatten())
    learnt = [parameter for parameter in student.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(whole, learnt, allow_unused=True)
    monkeypatch.setattr(lesson, "tokens_at_once", lambda *_: 4)
    loss = TargetLoss(student, None, Lesson(student, Mixture(), teacher)).train()(source, mask, labels)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
    for ours, theirs in zip(torch.autograd.grad(loss, learnt, allow_unused=True), expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_killed_and_resumed_it_is_the_run_that_never_was(configured, flags, finish, metrics_of, tmp_path: Path):
    more = {"ce_weight": 0.1, "attention_weight": 0.5}
    words = ["--ce-weight", "0.1", "--attention-weight", "0.5"]
    whole = uptrain(configured(output=tmp_path / "whole", **more))
    code, said = finish([*flags, *words], patch=KILL, folder=tmp_path)
    assert code == -signal.SIGKILL, said
    resumed = uptrain(configured(**more))
    assert metrics_of(resumed.run_dir) == metrics_of(whole.run_dir)
    one, other = (result.output / "model.safetensors" for result in (whole, resumed))
    assert one.read_bytes() == other.read_bytes()


def test_two_processes_learn_what_one_learns(configured, flags, finish, metrics_of, tmp_path: Path):
    whole = uptrain(configured(output=tmp_path / "whole", ce_weight=0.1))
    words = ["--micro-batch-size", "1", "--ce-weight", "0.1"]
    code, said = finish([*flags, *words], processes=2, folder=tmp_path)
    assert code == 0, said
    for line, expected in zip(metrics_of(tmp_path / "out.run"), metrics_of(whole.run_dir), strict=True):
        assert line == pytest.approx(expected, rel=1e-4)


def test_a_line_says_what_is_trained_by_what(configured, checkpoint, child, parent, capfd, tmp_path: Path):
    def headline(**changes: Any) -> str:
        capfd.readouterr()
        uptrain(configured(max_steps=1, overwrite=True, quiet=False, **changes))
        lines = capfd.readouterr().err.splitlines()
        return next(line for line in lines if line.startswith(("Training", "Resuming")))

    assert headline().startswith(f"Training all weights of {child} by forward KL from the teacher {parent}, in float")
    said = headline(divergence="reverse", temperature=2.0, ce_weight=0.25, train="attention")
    assert said.startswith(
        f"Training the attention of {child} by reverse KL from the teacher {parent} at temperature 2, "
        "with 25% of cross-entropy, in float32"
    )
    assert f"of {child} by cross-entropy, in float32" in headline(teacher="none")
    said = headline(checkpoint=str(checkpoint))
    assert f"by cross-entropy (no teacher: no gqa.json names the parent of {checkpoint}), in float32" in said


def test_a_parent_is_found_beside_its_child_and_known_by_its_content(parent, configured, capfd, tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(parent, old / "parent")
    convert(old / "parent", old / "child", ConvertOptions(groups=2))
    old.rename(new)
    config = configured(checkpoint=str(new / "child"), max_steps=1, quiet=False)
    uptrain(config)
    assert f"from the teacher {new / 'parent'}" in capfd.readouterr().err
    assert config.output
    shutil.rmtree(config.output)
    (new / "parent" / "config.json").write_text((new / "parent" / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match="it was started on another teacher: the content differs"):
        uptrain(config)
    uptrain(configured(checkpoint=str(new / "child"), max_steps=1, quiet=False, overwrite=True))
    assert "(no teacher: the parent, " in (said := capfd.readouterr().err)
    assert "is gone or has changed since)" in said


def test_a_teacher_that_does_not_fit_is_refused(configured, make_checkpoint, make_encoder_decoder, tmp_path: Path):
    other_size = make_checkpoint(name="other", vocab_size=400)
    short = make_checkpoint(name="short", max_position_embeddings=16)
    deep = make_checkpoint(name="deep", num_hidden_layers=3)
    foreign = make_checkpoint(name="foreign")
    vocabulary = (foreign / "tokenizer.json").read_text()
    (foreign / "tokenizer.json").write_text(vocabulary.replace('"z": ', '"<z>": ', 1))
    for changes, said in (
        ({"teacher": str(tmp_path / "missing")}, "no such directory"),
        ({"teacher": str(other_size)}, "tells 400 tokens apart, and the model 320: the vocabulary must be the same"),
        ({"teacher": str(short)}, "sequence_length 32 is beyond the longest sequence of the teacher"),
        ({"teacher": str(foreign)}, "has another vocabulary than"),
        ({"teacher": str(make_encoder_decoder())}, "only one is an encoder-decoder"),
        ({"teacher": str(deep), "attention_weight": 1.0}, "has 3 of width 32, the model 2 of width 32"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            uptrain(configured(**changes))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.run").exists()


def test_without_a_teacher_what_needs_one_is_refused(configured, checkpoint: Path):
    for changes in ({"attention_weight": 1.0}, {"offline_teacher": True}):
        with pytest.raises(UserError, match=r"needs a teacher, and there is none: no gqa\.json names the parent"):
            uptrain(configured(checkpoint=str(checkpoint), **changes))


@pytest.mark.parametrize(("model_type", "expected"), [("llama", True), ("gpt_bigcode", True), ("opt", False)])
def test_what_looks_across_packed_documents_is_found_out(make_checkpoint, model_type: str, expected: bool):
    settings = {"ffn_dim": 48, "word_embed_proj_dim": 32} if model_type == "opt" else {}
    model: Any = AutoModelForCausalLM.from_pretrained(make_checkpoint(model_type, **settings)).train()
    assert keeps_apart(model) is expected
    assert model.training


def test_a_parent_that_looks_across_documents_teaches_only_what_does_too(make_checkpoint, configured, capfd, tmp_path):
    """By default it is left out, with the reason; named, it is refused."""
    parent = make_checkpoint("opt", ffn_dim=48, word_embed_proj_dim=32)
    convert(parent, tmp_path / "one", ConvertOptions(groups=1))  # a gpt_bigcode, which keeps documents apart
    uptrain(configured(checkpoint=str(tmp_path / "one"), max_steps=1, quiet=False))
    assert "by cross-entropy (no teacher: the teacher " in (said := capfd.readouterr().err)
    assert "looks from one packed document into another" in said
    with pytest.raises(UserError, match="looks from one packed document into another"):
        uptrain(configured(checkpoint=str(tmp_path / "one"), teacher=str(parent), overwrite=True))


SHARDED = """
import sys
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from gqa.uptrain import lesson
from gqa.uptrain.divergence import Mixture
from gqa.uptrain.lesson import Lesson
from gqa.uptrain.objective import NextTokenLoss
from gqa.uptrain.teacher import shard_layers

lesson.tokens_at_once = lambda *_: 7
ids = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
batch = ids, torch.arange(30).expand(2, -1), ids.roll(-1, 1)

def objective():
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in sys.argv[1:3])
    teacher.eval().requires_grad_(False)
    return NextTokenLoss(student, None, Lesson(student, Mixture(), teacher)).train()

plain, sharded = objective(), objective()
distributed.init_process_group("gloo")
shard_layers(sharded.lesson.teacher.model)
for layer in sharded.model.model.layers:
    fully_shard(layer)
fully_shard(sharded)
losses = [module(*batch) for module in (plain, sharded)]
torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
for loss in losses:
    loss.backward()
for (name, ours), theirs in zip(sharded.named_parameters(), plain.parameters(), strict=True):
    torch.testing.assert_close(ours.grad.full_tensor(), theirs.grad, rtol=1e-4, atol=1e-5, msg=name)
kinds = {name: isinstance(item, DTensor) for name, item in sharded.lesson.teacher.model.named_parameters()}
assert all(kinds[name] == (".layers." in name) for name in kinds), kinds
distributed.destroy_process_group()
print("equal")
"""


def test_sharded_student_and_teacher_give_the_same_gradients(parent: Path, child: Path, tmp_path: Path):
    """FSDP2 over two processes: the teacher's layers on their own, the student with its objective."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, script, child, parent],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of what it asks
def test_compiled_it_learns_the_same(configured: Configured, metrics_of, tmp_path: Path):
    plain, compiled = (
        uptrain(configured(max_steps=3, compile=compiles, output=tmp_path / str(compiles)))
        for compiles in (False, True)
    )
    for line, other in zip(metrics_of(compiled.run_dir), metrics_of(plain.run_dir), strict=True):
        assert line == pytest.approx(other, rel=1e-4)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, of what its compiler imports
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # of what it asks
def test_compiled_it_sees_where_documents_begin_whatever_it_saw_first(checkpoint: Path, parent: Path):
    """A batch that needs no mask is compiled without one, and must not stand for those that do."""
    length = 40
    ids = torch.randint(0, 256, (2, length), generator=torch.Generator().manual_seed(0))
    alone = torch.arange(length).expand(2, -1)
    together = torch.stack([torch.arange(length), torch.cat([torch.arange(15), torch.arange(length - 15)])])
    objectives = []
    for compiles in (False, True):
        student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (checkpoint, parent))
        taught = Lesson(student, Mixture(), teacher.requires_grad_(False))
        if compiles:
            taught.compile(dynamic=False)
        objectives.append(NextTokenLoss(student, None, taught).train())
    with packed_attention(torch.device("cpu")):
        for positions in (alone, together, alone, together):
            plain, compiled = (objective(ids, positions, ids) for objective in objectives)
            torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=0)
        assert (objectives[1](ids, alone, ids) - compiled).abs() > 1e-3 * compiled  # the test would see it
