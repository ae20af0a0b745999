"""Hidden states with noise: the same noise in both models, of the size asked for, and no more drift than there is."""

import itertools

import pytest
import torch

from gqa.convert.streams import Streams, passes

WINDOWS, LENGTH, WIDTH = 200, 13, 64


@pytest.fixture
def streams() -> Streams:
    """Tokens of very different sizes; the drift is a third of the original."""
    sizes = torch.rand(WINDOWS, LENGTH, 1, generator=generator(1)).mul(6).exp()
    original = sizes * torch.randn(WINDOWS, LENGTH, WIDTH, generator=generator(2))
    return Streams(original=original, converted=original * (4 / 3))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def root_mean_square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square().mean(dim=-1).sqrt()


def test_windows_drift_between_nothing_and_all_the_way(streams):
    made = streams.shaken(0.5 * streams.typical_sizes(), generator())
    part = (made.converted - made.original) / (streams.converted - streams.original)
    first = part[:, :1, :1]
    torch.testing.assert_close(part, first.expand_as(part), rtol=1e-2, atol=1e-3)
    assert -0.001 < first.min() < 0.05
    assert 0.95 < first.max() < 1.001


def test_the_noise_is_a_share_of_each_token_and_at_most_what_was_asked_for(streams):
    made = streams.shaken(0.5 * streams.typical_sizes(), generator())
    share = root_mean_square(made.original - streams.original) / root_mean_square(streams.original)
    windows = share.mean(dim=1)
    assert 0 <= windows.min() < 0.05
    assert 0.45 < windows.max() < 0.55
    assert (share - windows[:, None]).abs().max() < 0.5, "the tokens of a window have noise of one size"


def test_a_huge_dimension_does_not_drown_the_others(streams):
    huge = streams.original.clone()
    huge[..., 7] = 1e6
    made = Streams(original=huge, converted=huge)
    made = made.shaken(made.typical_sizes(), generator())
    others = torch.arange(WIDTH) != 7
    noise, size = (root_mean_square(tensor[..., others]) for tensor in (made.original - huge, huge))
    assert (noise / size).max() < 3


def test_without_noise_the_original_is_as_it_was(streams):
    made = streams.shaken(0.0 * streams.typical_sizes(), generator())
    assert torch.equal(made.original, streams.original)


def test_they_stay_in_host_memory_unless_a_gpu_has_room(streams, monkeypatch):
    assert streams.near(torch.device("cpu")) is streams
    sizes = streams.original.nbytes + streams.converted.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * sizes - 1, 100 * sizes))
    assert streams.near(torch.device("cuda")) is streams
    moved: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * sizes, 100 * sizes))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor)
    streams.near(torch.device("cuda"))
    assert moved == [torch.device("cuda")] * 2


def test_the_same_generator_makes_the_same_noise(streams):
    one, two = (streams.shaken(0.5 * streams.typical_sizes(), generator()) for _ in range(2))
    assert torch.equal(one.original, two.original)
    assert torch.equal(one.converted, two.converted)
    assert not torch.equal(one.original, streams.shaken(0.5 * streams.typical_sizes(), generator(1)).original)


def test_every_pass_goes_over_everything_in_another_order():
    numbers = list(itertools.islice(passes(30, generator()), 90))
    orders = [numbers[start : start + 30] for start in (0, 30, 60)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
