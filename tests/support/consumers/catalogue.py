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

    home: str = ""
    """The environment's folder, where two share one [default: by the name]."""

    @property
    def path(self) -> Path:
        """The script's file."""
        return HERE / self.script

    def tolerance_for(self, checkpoint: str) -> float:
        """The bound for a checkpoint, whose name begins with its model type."""
        return self.tolerance_of.get(checkpoint.partition(",")[0], self.tolerance)


_APPROXIMATES = "computes phi's GELU by its tanh approximation"
_LLAMA_CPP = "*/vendor/llama.cpp/"
_CONVERTER = ("convert_hf_to_gguf.py", "conversion/*", "gguf-py/gguf/*")

ENGINES = [
    Engine(name="transformers 4.57", script="run_transformers.py", packages=("transformers~=4.57.0",)),
    Engine(name="transformers, newest", script="run_transformers.py", packages=("transformers>=5",)),
    Engine(
        name="CTranslate2",
        script="run_ctranslate2.py",
        packages=("ctranslate2>=4.8",),
        note="its converter knows phi by the settings that Microsoft's first code for it had, not by transformers', so "
        "it reads no phi of today's. It writes null for a beginning-of-text token that the tokenizer lacks, which its "
        "engine can't read: the end-of-text token is named instead.",
    ),
    Engine(
        name="llama.cpp, by its converter",
        script="run_llama_cpp.py",
        home="llama.cpp",
        packages=("xllamacpp>=2026.10", "sentencepiece>=0.2"),
        sources={"llama-cpp-python": tuple(f"{_LLAMA_CPP}{name}" for name in _CONVERTER)},
        note="`convert_hf_to_gguf.py CKPT --outfile OUT.gguf --outtype f32`. It writes a phi as if it had as many KV "
        "heads as query heads, which its engine then can't load; of a deepseek_v3 the engine wants queries of low "
        "rank, and ends where there are none. It knows the tokenizers of published models; of those trained here it is "
        "told that they cut words as GPT-2's does.",
    ),
    Engine(
        name="llama.cpp, by gqa-export",
        script="run_llama_cpp_exported.py",
        home="llama.cpp",
        packages=("xllamacpp>=2026.10", "sentencepiece>=0.2"),
        sources={"llama-cpp-python": tuple(f"{_LLAMA_CPP}{name}" for name in _CONVERTER)},
        tolerance_of={"phi": 2e-2},
        note=f"`gqa-export gguf CKPT OUT.gguf --dtype float32`. The engine {_APPROXIMATES}.",
    ),
    Engine(
        name="ONNX Runtime GenAI",
        script="run_onnxruntime_genai.py",
        packages=("onnxruntime-genai>=0.18", "onnx-ir>=1", "onnx>=1.20"),
        tolerance_of={"phi": 5e-2},
        note="`python -m onnxruntime_genai.models.builder -m CKPT -o OUT -p fp32 -e cpu`. On the CPU heads must have a "
        "multiple of 16 components. A phi is as far off with all of its KV heads.",
    ),
    Engine(
        name="mlx-lm",
        script="run_mlx_lm.py",
        packages=("mlx-lm[cpu]>=0.32",),
        tolerance_of={"phi": 2e-2},
        note=f"on the CPU. It {_APPROXIMATES}.",
    ),
]
