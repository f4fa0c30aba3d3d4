"""The parts of TensorRT's objects that EdgeKit uses; the libraries come without types."""

from collections.abc import Sequence
from typing import Protocol


class ParserError(Protocol):
    """An error of the ONNX parser, with its node."""

    def node(self) -> int:
        """Return the index of the node."""
        ...

    def node_operator(self) -> str:
        """Return the ONNX operator of the node."""
        ...

    def node_name(self) -> str:
        """Return the name of the node; may be empty."""
        ...

    def desc(self) -> str:
        """Return the description."""
        ...


class Parser(Protocol):
    """An ONNX parser."""

    num_errors: int

    def get_error(self, index: int) -> ParserError:
        """Return the error at this index."""
        ...


class Tensor(Protocol):
    """An input of a network: its shape, -1 for a free axis."""

    name: str
    shape: Sequence[int]


class Network(Protocol):
    """A parsed network."""

    def get_input(self, index: int) -> Tensor:
        """Return the input at this index."""
        ...


class Profile(Protocol):
    """An optimisation profile."""

    def set_shape(self, name: str, least: Sequence[int], usual: Sequence[int], most: Sequence[int]) -> None:
        """Set the range of an input's shapes."""
        ...


class Builder(Protocol):
    """A builder of engines."""

    def create_optimization_profile(self) -> Profile:
        """Create an empty profile."""
        ...


class Blob(Protocol):
    """Memory of the library, which `bytes` copies."""

    def __buffer__(self, flags: int, /) -> memoryview:
        """Give access to the memory."""
        ...


class TimingCache(Protocol):
    """Timings of kernels."""

    def serialize(self) -> Blob:
        """Return the content of a cache file."""
        ...


class Config(Protocol):
    """A builder's settings; enumerations are the library's own."""

    profiling_verbosity: object
    builder_optimization_level: int
    hardware_compatibility_level: object
    num_compute_capabilities: int

    def set_flag(self, flag: object) -> None:
        """Set a BuilderFlag."""
        ...

    def clear_flag(self, flag: object) -> None:
        """Clear a BuilderFlag."""
        ...

    def set_memory_pool_limit(self, pool: object, size: int) -> None:
        """Limit a memory pool, in bytes."""
        ...

    def set_compute_capability(self, capability: object, index: int) -> None:
        """Name a GPU to build for."""
        ...

    def add_optimization_profile(self, profile: Profile) -> int:
        """Add a profile."""
        ...

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        """Read a cache; None if it is from another version."""
        ...

    def set_timing_cache(self, cache: TimingCache | None, mismatch: bool) -> bool:
        """Use a cache."""
        ...

    def get_timing_cache(self) -> TimingCache | None:
        """Return the cache in use."""
        ...
