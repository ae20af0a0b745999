"""Windows made out of hidden states: every token keeps its drift, and first tokens stay first."""

import pytest
import torch

from gqa.convert.streams import Streams

WINDOWS, LENGTH = 5, 13


@pytest.fixture
def numbered() -> Streams:
    """The original's hidden states are a token's number; the converted model's are off by a tenth of it."""
    number = torch.arange(WINDOWS * LENGTH, dtype=torch.float32).view(WINDOWS, LENGTH, 1).expand(-1, -1, 3)
    return Streams(original=number, converted=number * 1.1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("segment", [1, 4, 6, 12, 13, 50])
def test_spliced_windows_are_made_of_whole_segments_of_real_ones(numbered, segment):
    spliced = numbered.spliced(40, segment, generator())
    token = spliced.original[..., 0].long()
    assert spliced.original.shape == spliced.converted.shape == (40, LENGTH, 3)
    torch.testing.assert_close(spliced.converted, spliced.original * 1.1)
    assert (token[:, 0] % LENGTH == 0).all()
    assert (token[:, 1:] % LENGTH != 0).all()
    within = torch.arange(1, LENGTH) % segment != 0
    assert (token.diff(dim=1)[:, within] == 1).all()


def test_all_tokens_are_used(numbered):
    token = numbered.spliced(400, 4, generator()).original[..., 0]
    assert len(token.unique()) == WINDOWS * LENGTH


def test_augmented_windows_drift_between_nothing_and_all_the_way():
    """The tokens' drift is a constant here, so that blending can't hide it."""
    original = torch.randn(WINDOWS, LENGTH, 3, generator=generator())
    streams = Streams(original=original, converted=original + 1)
    made = streams.augmented(200, segment=4, blend=0.5, generator=generator())
    drift = made.converted - made.original
    part = drift[:, :1, :1]
    torch.testing.assert_close(drift, part.expand_as(drift))
    assert 0 <= part.min() < 0.1
    assert 0.9 < part.max() <= 1


def test_without_a_blend_every_hidden_state_is_a_real_one(numbered):
    made = numbered.augmented(40, segment=4, blend=0.0, generator=generator())
    real = set(numbered.original[..., 0].flatten().tolist())
    assert set(made.original[..., 0].flatten().tolist()) <= real
    blended = numbered.augmented(40, segment=4, blend=0.5, generator=generator())
    assert not set(blended.original[..., 0].flatten().tolist()) <= real


def test_the_same_generator_makes_the_same_windows(numbered):
    one, two = (numbered.augmented(9, segment=4, blend=0.5, generator=generator()) for _ in range(2))
    assert torch.equal(one.original, two.original)
    assert torch.equal(one.converted, two.converted)
    other = numbered.augmented(9, segment=4, blend=0.5, generator=generator(1))
    assert not torch.equal(one.original, other.original)
