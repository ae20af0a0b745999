"""Which engines are asked, what each needs installed, and how closely its logits must agree."""

from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent / "engines"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program that reads a checkpoint."""

    name: str
    """As its users know it."""

    script: str
    """In engines/."""

    packages: tuple[str, ...]
    """What pip installs. Only wheels; torch and what else is there comes from the project's own environment."""

    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Source distributions of which some files are taken: what pip downloads, to patterns of paths in the archive."""

    tolerance: float = 1e-3
    """How far a logit may be from that of the reference, both in float32."""

    tolerance_of: dict[str, float] = field(default_factory=dict)
    """The same for a model type, where the engine computes something else on purpose."""

    note: str = ""
    """What the matrix says below about how it was run."""

    @property
    def path(self) -> Path:
        """The script's file."""
        return HERE / self.script

    def tolerance_for(self, checkpoint: str) -> float:
        """The bound for a checkpoint, whose name begins with its model type."""
        return self.tolerance_of.get(checkpoint.partition(",")[0], self.tolerance)


_LLAMA_CPP = "*/vendor/llama.cpp/"

ENGINES = [
    Engine(name="transformers 4.57", script="run_transformers.py", packages=("transformers~=4.57.0",)),
    Engine(name="transformers, newest", script="run_transformers.py", packages=("transformers>=5",)),
    Engine(name="CTranslate2", script="run_ctranslate2.py", packages=("ctranslate2>=4.8",)),
    Engine(
        name="llama.cpp",
        script="run_llama_cpp.py",
        packages=("xllamacpp>=2026.10", "sentencepiece>=0.2"),
        sources={
            "llama-cpp-python": tuple(
                f"{_LLAMA_CPP}{name}" for name in ("convert_hf_to_gguf.py", "conversion/*", "gguf-py/gguf/*")
            )
        },
    ),
    Engine(
        name="ONNX Runtime GenAI",
        script="run_onnxruntime_genai.py",
        packages=("onnxruntime-genai>=0.18", "onnx-ir>=1", "onnx>=1.20"),
    ),
    Engine(name="mlx-lm", script="run_mlx_lm.py", packages=("mlx-lm[cpu]>=0.32",)),
]
