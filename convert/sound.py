"""Reading sound: a file, or its bytes in a table, as one channel of 16-bit samples at the rate that a model hears.

`soundfile` decodes (wav, flac, ogg, mp3) and `soxr` resamples; both come with `pip install 'gqa[audio]'`. Sixteen bits
are what such files hold as a rule, so nothing is lost by them, and a corpus takes half the room.
"""

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gqa.convert.errors import UserError, did_you_mean, first_line
from gqa.convert.pretrained import damage

if TYPE_CHECKING:
    import torch
    from transformers import WhisperFeatureExtractor

_FULL_SCALE = 32768  # of a 16-bit sample


@dataclass(frozen=True)
class Sound:
    """A recording that has not been read yet."""

    where: str
    """the row that names it, for messages"""
    content: Path | bytes
    """its file, or the file's bytes"""

    @property
    def data(self) -> bytes:
        """The bytes of the file.

        Raises:
            UserError: it can't be read.
        """
        if isinstance(self.content, bytes):
            return self.content
        try:
            return self.content.read_bytes()
        except FileNotFoundError:
            near = [item.name for item in self.content.parent.iterdir()] if self.content.parent.is_dir() else []
            meant = did_you_mean(self.content.name, near)
            raise UserError(f"{self.where}: there is no sound file {self.content}{meant}") from None
        except OSError as error:
            raise UserError(f"{self.where}: {self.content} can't be read: {error.strerror or error}") from error

    @property
    def digest(self) -> str:
        """A hash of the file."""
        return hashlib.blake2b(self.data).hexdigest()

    def samples(self, rate: int) -> np.ndarray:
        """The recording at `rate` samples a second, channels mixed into one. int16 [samples].

        Raises:
            UserError: it can't be read or decoded, or is empty; the libraries for it are missing.
        """
        check_libraries()
        import soundfile

        try:
            found, own_rate = soundfile.read(io.BytesIO(self.data), dtype="float64", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
            raise UserError(
                f"{self.where}: the sound can't be decoded ({first_line(error)}); write it as wav or flac"
            ) from error
        mixed = found.mean(axis=1)
        if own_rate != rate:
            import soxr

            mixed = soxr.resample(mixed, own_rate, rate)
        if not len(mixed):
            raise UserError(f"{self.where}: the sound is empty; leave the row out")
        return np.clip(np.round(mixed * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def sound_of(value: Any, where: str, folder: Path | None) -> Sound | None:
    """The recording that a cell of a table holds: a path, bytes, or both as datasets has them; None: it holds none.

    Args:
        value: of the cell.
        where: the row, for messages.
        folder: what paths are relative to; None: nothing, as in a dataset on the Hub.
    """
    if isinstance(value, dict) and value.keys() & {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return Sound(where, value)
    return Sound(where, (folder or Path()) / value) if isinstance(value, str) and value else None


def check_libraries() -> None:
    """Refuse sound where what reads it is not installed.

    Raises:
        UserError: with how to install it.
    """
    from importlib.util import find_spec

    missing = [name for name in ("soundfile", "soxr") if find_spec(name) is None]
    if missing:
        raise UserError(f"sound is read by {' and '.join(missing)}, not installed here; pip install 'gqa[audio]'")


def load_extractor(checkpoint: Path) -> "WhisperFeatureExtractor":
    """What makes a Whisper's input of sound, by the checkpoint's preprocessor_config.json.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    from transformers import WhisperFeatureExtractor

    if not any((checkpoint / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        raise UserError(
            f"{checkpoint} has no preprocessor_config.json, which says how it hears; copy it from the original"
        )
    with damage(f"the preprocessor_config.json of {checkpoint} can't be used"):
        return WhisperFeatureExtractor.from_pretrained(checkpoint)


def features(extractor: "WhisperFeatureExtractor", sounds: Iterable[np.ndarray]) -> "torch.Tensor":
    """What the model is given: float32 [sounds, bins, frames], silence behind each, what is too long cut.

    Args:
        extractor: of the checkpoint.
        sounds: int16 [samples] each, at the extractor's rate.
    """
    waves = [sound.astype(np.float32) / _FULL_SCALE for sound in sounds]
    return extractor(waves, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]
