"""Published conversions to latent attention beside ours, at equal bytes of cache, before any training.

TransMLA (arXiv 2502.07864) turns the heads' keys by one orthogonal matrix for each frequency, or for each fold of
neighbouring ones taken as one, so that most of them stands in the first head; that one goes on turning, the rest does
not, and is reduced with the values, balanced against them, to principal components. MHA2MLA (arXiv 2502.14837) lets
every head's strongest pairs turn, each head's its own, and takes the singular vectors of the other rows of the key and
value weights. Both are written here from the papers and their code, on the same activations and in the same class as
ours; their latents get the number that the class's constant takes from ours for nothing, and of their own choices
(how many pairs turn, how many frequencies fold) the best by the result is taken. What TransMLA measures on a model
whose keys turn no more it is given of the original's here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from gqa.convert.calibration import CalibrationOptions, calibration_windows, layer_moments, stage
from gqa.convert.data import read_documents
from gqa.convert.latent.factors import factored
from gqa.convert.latent.plan import LatentOptions, LatentPlan, plan_latent
from gqa.convert.latent.target import tensors_of
from gqa.convert.latent.weights import LatentWeights
from gqa.convert.merging import load_layer
from gqa.convert.moments import Moments
from gqa.convert.plan import ConvertOptions
from gqa.convert.pretrained import load_tokenizer, quiet_transformers
from gqa.convert.wide import WideLayer, widened

OPTIONS = ConvertOptions(groups=1, method="lowrank", dtype="float32")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to convert, with its settings."""

    name: str
    rope_dim: int
    layer: Callable[[LatentPlan, int, Moments], tuple[LatentWeights, Tensor]]
    """the layer and its rotary key's angles"""


def transmla(rope_dim: int, fold: int) -> Way:
    """RoRoPE, with `fold` frequencies taken as one, and balanced principal components."""

    def layer(plan: LatentPlan, index: int, moments: Moments) -> tuple[LatentWeights, Tensor]:
        wide = _wide(plan, index)
        heads, size, _ = wide.k.shape
        pairs, apart = size // 2, size // rope_dim  # of `apart` frequencies in a fold one is kept
        turned: list[Tensor] = []  # rows of heads * pairs, in which a row's pairs are those of one fold
        kept: list[int] = []
        for start in range(0, pairs, fold):
            rows = torch.tensor([head * pairs + start + pair for pair in range(fold) for head in range(heads)])
            part = wide.k.unflatten(1, (2, pairs)).transpose(1, 2).flatten(0, 1)[rows]  # [heads * fold, 2, in]
            gram = sum((moments.between(part[:, half], part[:, half]) for half in (0, 1)), torch.zeros(()))
            found = torch.zeros(len(rows), heads * pairs, dtype=part.dtype)
            found[:, rows] = torch.linalg.eigh(gram).eigenvectors.flip(1).T
            kept += range(len(turned) * len(rows), len(turned) * len(rows) + fold // apart)
            turned.append(found)
        both = torch.cat(turned)  # orthogonal, [heads * pairs, heads * pairs]
        angles = plan.source.freedoms[index].rotation.angles[::apart]
        rest = torch.tensor([row for row in range(len(both)) if row not in set(kept)])
        return _assembled(wide, both[kept], both[rest], moments, plan, balanced=True), angles

    return Way(name=f"TransMLA, fold {fold}", rope_dim=rope_dim, layer=layer)


def mha2mla(rope_dim: int) -> Way:
    """Partial rotation by the norms of queries and keys, and the singular vectors of the weights."""

    def layer(plan: LatentPlan, index: int, moments: Moments) -> tuple[LatentWeights, Tensor]:
        wide = _wide(plan, index)
        heads, size, _ = wide.k.shape
        pairs, each = size // 2, rope_dim // 2 // heads
        norms = [_energies(part, moments, pairs) for part in (wide.q, wide.k[:, None])]
        strongest = (norms[0] * norms[1]).argsort(dim=1, descending=True)[:, :each]  # [heads, each]
        rows = (strongest + torch.arange(heads)[:, None] * pairs).flatten()
        eye = torch.eye(heads * pairs, dtype=torch.float64)
        rest = torch.tensor([row for row in range(heads * pairs) if row not in set(rows.tolist())])
        unit = Moments.unit(plan.shape.hidden_size)
        angles = plan.source.freedoms[index].rotation.angles[strongest.flatten()]
        return _assembled(wide, eye[rows], eye[rest], unit, plan, balanced=False), angles

    return Way(name=f"MHA2MLA, {rope_dim} turn", rope_dim=rope_dim, layer=layer)


def ours(rope_dim: int, *, data: bool) -> Way:
    """What `gqa-convert --to mla` does."""

    def layer(plan: LatentPlan, index: int, moments: Moments) -> tuple[LatentWeights, Tensor]:
        known = moments.shrunk() if data else Moments.unit(plan.shape.hidden_size)
        weights, freedom = load_layer(plan.source, index, also_queries=True), plan.source.freedoms[index]
        return factored(weights, freedom, known, plan.factors)[0], freedom.rotation.angles[list(plan.factors.pairs)]

    return Way(name="ours, " + ("statistics" if data else "no data"), rope_dim=rope_dim, layer=layer)


def _wide(plan: LatentPlan, index: int) -> WideLayer:
    unit = Moments.unit(plan.shape.hidden_size)
    return widened(load_layer(plan.source, index, also_queries=True), plan.source.freedoms[index], unit)


def _energies(heads: Tensor, moments: Moments, pairs: int) -> Tensor:
    """Root mean squares of every pair of [heads, queries, size, in], summed over queries. [heads, pairs]."""
    squares = (moments.apply(heads) * heads).sum(-1)  # [heads, queries, size]
    return squares.unflatten(-1, (2, pairs)).sum(-2).sqrt().sum(1)


def _assembled(
    wide: WideLayer, kept: Tensor, rest: Tensor, moments: Moments, plan: LatentPlan, *, balanced: bool
) -> LatentWeights:
    """The layer whose pairs in the orthonormal combinations `kept` turn and those in `rest` do not.

    Args:
        wide: the layer, in rotary order.
        kept: [rope_dim / 2, heads * pairs]
        rest: the others, [n, heads * pairs]
        moments: of what enters, for the principal components.
        plan: the sizes.
        balanced: bring the keys to the values' size before they are reduced together.
    """
    heads, size, _ = wide.k.shape
    halves = wide.k.unflatten(1, (2, size // 2)).transpose(0, 1).flatten(1, 2)  # [2, heads * pairs, in]
    still, values = (rest @ halves).flatten(0, 1), wide.v.flatten(0, 1)
    sizes = [moments.between(part, part).diagonal().clamp_min(0).sqrt().mean() for part in (still, values)]
    ratio = sizes[0] / sizes[1] if balanced else torch.ones(())
    joint = torch.cat([still / ratio, values])
    top = torch.linalg.eigh(moments.between(joint, joint)).eigenvectors[:, -plan.shape.kv_rank :].flip(1)
    reading = [part.view(-1, heads, size // 2) for part in (kept, rest)]  # of head h: [rows, pairs]
    from_still = top[: len(still)].unflatten(0, (2, -1)) * ratio  # [2, n, rank]
    key_up = torch.einsum("nhp,cnr->hcpr", reading[1], from_still).flatten(1, 2)
    queries = wide.q.flatten(0, 1)  # as many query heads as KV heads
    turning = torch.einsum("nhp,hcpi->hcni", reading[0], queries.unflatten(1, (2, -1))).flatten(1, 2)
    one_more = (0, 1)  # what reads the latent has a column for the constant
    found = LatentWeights(
        q_still=plan.factors.scale * queries[..., :-1],
        q_rope=plan.factors.scale * turning[..., :-1],
        rope_key=(kept @ halves).flatten(0, 1)[None],
        latent=(top.T @ joint)[None],
        key_up=nn.functional.pad(key_up, one_more),
        value_up=nn.functional.pad(top[len(still) :].unflatten(0, (heads, size)), one_more),
        o=wide.o.flatten(0, 1),
    )
    return found.map(lambda part: part.float())


def model_of(plan: LatentPlan, way: Way, moments: list[Moments], original: nn.Module) -> Any:
    """Transformers' class with what the way makes of every layer, and every layer's own angles."""
    layers = [way.layer(plan, index, known) for index, known in enumerate(moments)]
    shape = replace(plan.shape, kv_rank=layers[0][0].latent.shape[1] + 1)
    config = {**plan.config, "kv_lora_rank": shape.kv_rank}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32).eval()
    state = {name: part for name, part in original.state_dict().items() if ".self_attn." not in name}
    for index, (weights, angles) in enumerate(layers):
        prefix = plan.source.prefixes[index]
        tensors = {"o_proj.bias": torch.zeros(plan.shape.hidden_size)} | tensors_of(weights, shape)
        state |= {prefix + name: part for name, part in tensors.items()}
        model.model.layers[index].self_attn.register_forward_pre_hook(_turning(angles.float()), with_kwargs=True)
    model.load_state_dict(state)
    return model


def _turning(angles: Tensor) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def hook(_: nn.Module, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        length = named["hidden_states"].shape[1]
        turns = (torch.arange(length)[:, None] * angles).repeat(1, 2)[None]
        return inputs, {**named, "position_embeddings": (turns.cos(), turns.sin())}

    return hook


@torch.no_grad()
def loss(model: Any, windows: Tensor) -> float:
    """Mean NLL of all tokens but the first of every window, in nats."""
    total = 0.0
    for part in windows.split(8):
        logits = model(part, use_cache=False).logits[:, :-1].flatten(0, 1)
        total += nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="sum").item()
    return total / (len(windows) * (windows.shape[1] - 1))


def ways(total: int, plan: LatentPlan) -> Iterator[Way]:
    """All there is to compare at that many cached numbers."""
    size, heads = plan.source.shape.head_dim, plan.source.shape.num_kv_heads
    for apart in (1, 2, 4):
        for fold in (1, 2, 4, 8):
            if fold % apart == 0 and (size // 2) % fold == 0 and size // apart <= total * 3 // 4:
                yield transmla(size // apart, fold)
    for each in (1, 2, 3, 4, 5, 6, 8, 12):
        if 2 * each * heads <= total * 3 // 4:
            yield mha2mla(2 * each * heads)
    for data in (False, True):
        yield ours(plan.shape.rope_dim, data=data)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="A Llama with as many KV heads as query heads.")],
    data: Annotated[str, typer.Option(help="Held-out text.")],
    calibration: Annotated[str, typer.Option(help="Other text, for statistics.")],
    share: Annotated[list[float] | None, typer.Option(help="Of the cache.  [default: 1/2, 1/4, 1/8, 1/16]")] = None,
    max_tokens: int = 16384,
    window: int = 256,
) -> None:
    """Convert in every way at every size and print the NLL above the original's."""
    quiet_transformers()
    measured = CalibrationOptions(data=calibration, tokens=16384, held_out_tokens=0, sequence_length=window)
    text, _ = calibration_windows(checkpoint, measured)
    moments = [known for _, known in layer_moments(stage(checkpoint, measured), text)]
    windows = _windows(checkpoint, data, window, max_tokens)
    original = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    least = loss(original, windows)
    typer.echo("| numbers cached | way | rotary key | NLL above |\n|---|---|---|---|")
    for part in share or [1 / 2, 1 / 4, 1 / 8, 1 / 16]:
        plan = plan_latent(checkpoint, LatentOptions(kv_budget=part), OPTIONS)
        for way in ways(plan.shape.cached, plan):
            rank = plan.shape.cached - way.rope_dim
            sized = replace(plan, shape=replace(plan.shape, kv_rank=rank, rope_dim=way.rope_dim))
            unused = {"rope_type": "default", "rope_theta": 1e4}  # every layer is given its angles
            unused = {"rope_parameters": unused, "rope_scaling": None}
            sized = replace(sized, config={**plan.config, **sized.shape.settings(len(moments)), **unused})
            gap = loss(model_of(sized, way, moments, original), windows) - least
            typer.echo(f"| {plan.shape.cached} | {way.name} | {way.rope_dim} | {gap:.4f} |")


def _windows(checkpoint: Path, data: str, window: int, max_tokens: int) -> Tensor:
    tokenizer = load_tokenizer(checkpoint)
    ids: list[int] = []
    for text in read_documents(data):
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= max_tokens:
            break
    return torch.tensor(ids[: max_tokens // window * window]).view(-1, window)


if __name__ == "__main__":
    typer.run(main)
