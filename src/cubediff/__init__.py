"""CubeDiff (arXiv 2501.17162): panoramas by diffusion on the six faces of a cube.

Importing this package imports nothing heavy; the pipeline arrives when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cubediff.pipelines.cubediff import CubeDiffPipeline

__all__ = ["CubeDiffPipeline", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "CubeDiffPipeline":
        from cubediff.pipelines.cubediff import CubeDiffPipeline

        return CubeDiffPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
