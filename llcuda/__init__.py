"""llcuda: GGUF language models inside a Python process.

Importing this module loads nothing: no library, no numpy, no file. The names below are
imported at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llcuda._lazy import lazy

if TYPE_CHECKING:
    from llcuda import errors as errors
    from llcuda import steps as steps
    from llcuda._version import __version__ as __version__
    from llcuda.batch import BatchProcessor as BatchProcessor
    from llcuda.chat.parser import ChatDelta as ChatDelta
    from llcuda.chat.session import Chat as Chat
    from llcuda.chat.session import ChatCompletion as ChatCompletion
    from llcuda.chat.template import ChatTemplate as ChatTemplate
    from llcuda.chat.tool_calls import ToolCall as ToolCall
    from llcuda.chat.tool_loop import RunParams as RunParams
    from llcuda.chat.tool_loop import ToolRun as ToolRun
    from llcuda.conversion.convert import convert as convert
    from llcuda.demo import demo_model as demo_model
    from llcuda.device import check_gpu_compatibility as check_gpu_compatibility
    from llcuda.device import detect_cuda as detect_cuda
    from llcuda.embeddings.embedder import Embedder as Embedder
    from llcuda.engine.config import EngineConfig as EngineConfig
    from llcuda.engine.config import EngineParams as EngineParams
    from llcuda.engine.detokenizer import Utf8Decoder as Utf8Decoder
    from llcuda.engine.engine import Engine as Engine
    from llcuda.engine.outputs import Completion as Completion
    from llcuda.engine.outputs import InferResult as InferResult
    from llcuda.engine.request import Request as Request
    from llcuda.engine.request import RequestParams as RequestParams
    from llcuda.errors import AnswerError as AnswerError
    from llcuda.errors import ArgumentError as ArgumentError
    from llcuda.errors import BatchError as BatchError
    from llcuda.errors import ClosedError as ClosedError
    from llcuda.errors import ConcurrencyError as ConcurrencyError
    from llcuda.errors import ContextError as ContextError
    from llcuda.errors import ContextLengthError as ContextLengthError
    from llcuda.errors import DecodeAbortedError as DecodeAbortedError
    from llcuda.errors import DecodeError as DecodeError
    from llcuda.errors import DeviceLostError as DeviceLostError
    from llcuda.errors import FileWriteError as FileWriteError
    from llcuda.errors import ForkError as ForkError
    from llcuda.errors import GGUFError as GGUFError
    from llcuda.errors import GrammarError as GrammarError
    from llcuda.errors import LibraryError as LibraryError
    from llcuda.errors import LlcudaError as LlcudaError
    from llcuda.errors import LoadCancelledError as LoadCancelledError
    from llcuda.errors import MissingTensorError as MissingTensorError
    from llcuda.errors import ModelChangedError as ModelChangedError
    from llcuda.errors import ModelError as ModelError
    from llcuda.errors import ModelNotFoundError as ModelNotFoundError
    from llcuda.errors import NoOutputError as NoOutputError
    from llcuda.errors import NoRoomError as NoRoomError
    from llcuda.errors import NoTextError as NoTextError
    from llcuda.errors import OutOfMemoryError as OutOfMemoryError
    from llcuda.errors import QueueFullError as QueueFullError
    from llcuda.errors import SamplingError as SamplingError
    from llcuda.errors import StateError as StateError
    from llcuda.errors import TensorError as TensorError
    from llcuda.errors import UnsupportedError as UnsupportedError
    from llcuda.evaluate import divergence as divergence
    from llcuda.evaluate import importance_matrix as importance_matrix
    from llcuda.evaluate import perplexity as perplexity
    from llcuda.inference import InferenceEngine as InferenceEngine
    from llcuda.inference import chat as chat
    from llcuda.inference import embed as embed
    from llcuda.inference import quick_infer as quick_infer
    from llcuda.native.adapter import Adapter as Adapter
    from llcuda.native.context import Context as Context
    from llcuda.native.estimate import DeviceMemory as DeviceMemory
    from llcuda.native.estimate import memory_needed as memory_needed
    from llcuda.native.model import Model as Model
    from llcuda.native.quantization.file_types import FILE_TYPES as FILE_TYPES
    from llcuda.native.quantization.file_types import MATRIX_TYPES as MATRIX_TYPES
    from llcuda.native.quantization.file_types import TENSOR_TYPES as TENSOR_TYPES
    from llcuda.native.quantization.imatrix import ImportanceMatrix as ImportanceMatrix
    from llcuda.native.quantization.quantize import quantize as quantize
    from llcuda.native.quantization.quantize import quantize_plan as quantize_plan
    from llcuda.native.sampler import Sampler as Sampler
    from llcuda.native.timings import CudaGraphs as CudaGraphs
    from llcuda.native.timings import DecodeEvent as DecodeEvent
    from llcuda.native.timings import Timings as Timings
    from llcuda.params import ContextParams as ContextParams
    from llcuda.params import ModelParams as ModelParams
    from llcuda.params import SamplingParams as SamplingParams

_HOMES = {
    "Adapter": "llcuda.native.adapter",
    "AnswerError": "llcuda.errors",
    "ArgumentError": "llcuda.errors",
    "BatchError": "llcuda.errors",
    "BatchProcessor": "llcuda.batch",
    "Chat": "llcuda.chat.session",
    "ChatCompletion": "llcuda.chat.session",
    "ChatDelta": "llcuda.chat.parser",
    "ChatTemplate": "llcuda.chat.template",
    "ClosedError": "llcuda.errors",
    "Completion": "llcuda.engine.outputs",
    "ConcurrencyError": "llcuda.errors",
    "Context": "llcuda.native.context",
    "ContextError": "llcuda.errors",
    "ContextLengthError": "llcuda.errors",
    "ContextParams": "llcuda.params",
    "CudaGraphs": "llcuda.native.timings",
    "DecodeAbortedError": "llcuda.errors",
    "DecodeError": "llcuda.errors",
    "DecodeEvent": "llcuda.native.timings",
    "DeviceLostError": "llcuda.errors",
    "DeviceMemory": "llcuda.native.estimate",
    "Embedder": "llcuda.embeddings.embedder",
    "Engine": "llcuda.engine.engine",
    "EngineConfig": "llcuda.engine.config",
    "EngineParams": "llcuda.engine.config",
    "FILE_TYPES": "llcuda.native.quantization.file_types",
    "FileWriteError": "llcuda.errors",
    "ForkError": "llcuda.errors",
    "GGUFError": "llcuda.errors",
    "GrammarError": "llcuda.errors",
    "ImportanceMatrix": "llcuda.native.quantization.imatrix",
    "InferResult": "llcuda.engine.outputs",
    "InferenceEngine": "llcuda.inference",
    "LibraryError": "llcuda.errors",
    "LlcudaError": "llcuda.errors",
    "LoadCancelledError": "llcuda.errors",
    "MATRIX_TYPES": "llcuda.native.quantization.file_types",
    "MissingTensorError": "llcuda.errors",
    "Model": "llcuda.native.model",
    "ModelChangedError": "llcuda.errors",
    "ModelError": "llcuda.errors",
    "ModelNotFoundError": "llcuda.errors",
    "ModelParams": "llcuda.params",
    "NoOutputError": "llcuda.errors",
    "NoRoomError": "llcuda.errors",
    "NoTextError": "llcuda.errors",
    "OutOfMemoryError": "llcuda.errors",
    "QueueFullError": "llcuda.errors",
    "Request": "llcuda.engine.request",
    "RequestParams": "llcuda.engine.request",
    "RunParams": "llcuda.chat.tool_loop",
    "Sampler": "llcuda.native.sampler",
    "SamplingError": "llcuda.errors",
    "SamplingParams": "llcuda.params",
    "StateError": "llcuda.errors",
    "TENSOR_TYPES": "llcuda.native.quantization.file_types",
    "TensorError": "llcuda.errors",
    "Timings": "llcuda.native.timings",
    "ToolCall": "llcuda.chat.tool_calls",
    "ToolRun": "llcuda.chat.tool_loop",
    "UnsupportedError": "llcuda.errors",
    "Utf8Decoder": "llcuda.engine.detokenizer",
    "__version__": "llcuda._version",
    "chat": "llcuda.chat",  # the package, which can be called
    "check_gpu_compatibility": "llcuda.device",
    "convert": "llcuda.conversion.convert",
    "demo_model": "llcuda.demo",
    "detect_cuda": "llcuda.device",
    "divergence": "llcuda.evaluate",
    "embed": "llcuda.inference",
    "errors": "llcuda.errors",
    "importance_matrix": "llcuda.evaluate",
    "memory_needed": "llcuda.native.estimate",
    "perplexity": "llcuda.evaluate",
    "quantize": "llcuda.native.quantization.quantize",
    "quantize_plan": "llcuda.native.quantization.quantize",
    "quick_infer": "llcuda.inference",
    "steps": "llcuda.steps",
}

__all__ = [name for name in _HOMES if name != "__version__"]
if not TYPE_CHECKING:  # a checker would take every name for one of this package
    __getattr__, __dir__ = lazy(__name__, _HOMES)
