"""TensorRT without a GPU: an "engine" is a plan's header followed by the ONNX file, which ONNX Runtime computes.

Contains only what deploy/engine and its session use; a test compares each name with the bindings of TensorRT for RTX.
Environment variables inject faults: SIMULATED_TENSORRT is the version, SIMULATED_FAULT one of those below.
"""

import ctypes
import enum
import json
import os
from typing import Any

import numpy as np
import onnxruntime

__version__ = os.environ.get("SIMULATED_TENSORRT", "10.3.0")
FAULT = os.environ.get("SIMULATED_FAULT", "")  # wrong-answers, uneven-batch, parser, builder, deserialize

DataType = enum.Enum("DataType", "FLOAT HALF INT8")
TensorIOMode = enum.Enum("TensorIOMode", "NONE INPUT OUTPUT")
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY NONE DETAILED")
LayerInformationFormat = enum.Enum("LayerInformationFormat", "ONELINE JSON")
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")
HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
BuilderFlag = enum.Enum("BuilderFlag", "TF32 REFIT STRIP_PLAN VERSION_COMPATIBLE")


ComputeCapability = enum.Enum("ComputeCapability", "NONE CURRENT SM86 SM89")  # as in TensorRT for RTX


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class ILogger:
    Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class IProgressMonitor:
    pass


def _header() -> bytes:
    numbers = [*(int(part) for part in __version__.split(".")), 30][:4]
    return b"ptrt".ljust(24, b"\0") + bytes(numbers) + b"\0" * 4


class _Error:
    def node_operator(self) -> str:
        return "Conv"

    def node_name(self) -> str:
        return "/features/conv"

    def node(self) -> int:
        return 7

    def desc(self) -> str:
        return "injected:\n this node is not supported"


class _Tensor:
    def __init__(self, tensor: Any) -> None:
        self.name = tensor.name
        self.shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


class INetworkDefinition:
    content = b""

    def get_input(self, index: int) -> _Tensor:
        return _Tensor(_session(self.content).get_inputs()[index])


class IOptimizationProfile:
    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        assert min[0] <= opt[0] <= max[0]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed"


class IBuilderConfig:
    progress_monitor: Any = None
    builder_optimization_level = 3
    num_compute_capabilities = 0
    hardware_compatibility_level = HardwareCompatibilityLevel.NONE
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def __init__(self) -> None:
        self.profiles: list[IOptimizationProfile] = []
        self.flags = {BuilderFlag.TF32}
        self.cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self.flags.discard(flag)

    def set_compute_capability(self, compute_capability: ComputeCapability, index: int) -> bool:
        assert index < self.num_compute_capabilities
        return True

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert pool_size > 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return 0

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.cache


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: Any) -> None:
        self.network = network
        self.num_errors = FAULT == "parser"

    def parse(self, model: bytes) -> bool:
        self.network.content = model
        return not self.num_errors

    def get_error(self, index: int) -> _Error:
        return _Error()


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
        assert BuilderFlag.TF32 not in config.flags
        assert network.get_input(0).shape[0] > 0 or config.profiles
        config.progress_monitor.phase_start("Building", None, 2)
        assert config.progress_monitor.step_complete("Building", 0)
        config.progress_monitor.phase_finish("Building")
        if FAULT == "builder":
            self.logger.log(ILogger.Severity.ERROR, "injected: no implementation for node /features/conv")
            return None
        content = b"stripped" if BuilderFlag.STRIP_PLAN in config.flags else network.content
        return _header() + content


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        if FAULT == "deserialize":
            self.logger.log(ILogger.Severity.ERROR, "injected: the plan is not for this device")
            return None
        return ICudaEngine(serialized_engine[len(_header()) :])


class EngineInspector:
    execution_context: Any = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = [
            {"Name": "reformat in", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]},
            {"Name": "conv + relu", "LayerType": "CaskConvolution",
             "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
        ]  # fmt: skip
        return json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, content: bytes) -> None:
        self.content = content

    def get_tensor_name(self, index: int) -> str:
        session = _session(self.content)
        return (session.get_inputs() + session.get_outputs())[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == self.get_tensor_name(0) else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def create_execution_context(self) -> "IExecutionContext":
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self.session = _session(engine.content)
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self.shape = shape
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        name, output = self.session.get_inputs()[0].name, self.session.get_outputs()[0].name
        images = _at(self.addresses[name], self.shape)
        logits = self.session.run(None, {name: images})[0]
        if FAULT == "wrong-answers":
            logits = -logits
        if FAULT == "uneven-batch":
            logits[1:] += 1.0
        _at(self.addresses[output], logits.shape)[:] = logits
        return True


class Refitter:
    def __init__(self, engine: ICudaEngine, logger: Any) -> None:
        self.engine = engine

    def refit_cuda_engine(self) -> bool:
        return True


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_file(self, model_file: str) -> bool:
        with open(model_file, "rb") as stream:  # noqa: PTH123 # the real one takes a string
            self.refitter.engine.content = stream.read()
        return True


def _session(content: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def _at(address: int, shape: tuple) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)
