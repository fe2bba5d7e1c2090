"""A compiled engine on the card: its weights, once, for however many engines run it. Used by `tensorrt_engine`."""

import logging
from typing import Any

from zfserve_runtime.atomic_file import ChecksummedFile
from zfserve_runtime.bundle import Manifest
from zfserve_runtime.errors import EngineFailed

from zfserve_engines.contract import EngineUnavailable
from zfserve_engines.cuda.device import start_cuda
from zfserve_engines.cuda.gpu import GpuFacts
from zfserve_engines.tensorrt.library import Library
from zfserve_engines.tensorrt.signature import check_signature, read_signature

log = logging.getLogger(__name__)


class LoadedPlan:
    """A compiled engine on the card, ready to be run by any number of `TensorRTEngine`s.

    Args:
        plan: verified by the engine store; a plan runs code, so none of unknown origin may come here.
        runtime_cache: what TensorRT for RTX compiled for this card in earlier processes; read here.
        cuda_graphs: launch a batch's kernels at once. Off, to compare.

    Raises:
        BundleError: it is not an engine of this bundle.
        EngineUnavailable: the library cannot run it on this card.
        EngineFailed: CUDA cannot be used.
    """

    def __init__(
        self,
        plan: bytes,
        manifest: Manifest,
        library: Library,
        gpu: GpuFacts,
        *,
        runtime_cache: ChecksummedFile | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        start_cuda()
        self.library = library
        self.gpu = gpu
        self.cuda_graphs = cuda_graphs
        self._runtime = library.module.Runtime(library.logger)
        self.engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineUnavailable(f"{library} cannot load the engine on {gpu.name}; the log says why")
        self.signature = read_signature(library.module, self.engine)
        check_signature(self.signature, manifest)
        self._cache_file = runtime_cache
        self._cache: Any = None
        self._config = self._configure() if library.kind == "tensorrt-rtx" else None

    @property
    def captures_itself(self) -> bool:
        """Whether the library makes the CUDA graphs: TensorRT for RTX knows when its kernels are compiled for a shape,
        and so when to capture."""
        return self._config is not None

    def create_context(self) -> Any:
        """An `IExecutionContext` that needs to be given its scratch memory."""
        if self._config is not None:
            context = self.engine.create_execution_context(runtime_config=self._config)
        else:
            context = self.engine.create_execution_context(self._user_managed)
        if context is None:
            raise EngineFailed("TensorRT cannot make another context; is the GPU's memory full?")
        return context

    def keep_runtime_cache(self) -> None:
        """Write what was compiled for this card, so that the next process need not; once all engines are warm."""
        if self._cache_file is None or self._cache is None:
            return
        serialized = self._cache.serialize()
        if serialized is None:
            return
        compiled = bytes(serialized)
        if compiled != self._cache_file.read():
            self._cache_file.write(compiled)

    @property
    def _user_managed(self) -> Any:
        return self.library.module.ExecutionContextAllocationStrategy.USER_MANAGED

    def _configure(self) -> Any:
        """An `IRuntimeConfig`, which only TensorRT for RTX has caches and graphs in."""
        module, config = self.library.module, self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._user_managed)
        # Kernels for a batch size are compiled before it first runs, which is while warming; otherwise a slower one
        # would be verified, and another, compiled in the background, would serve.
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy = module.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self.cuda_graphs else strategy.DISABLED
        self._cache = config.create_runtime_cache()
        compiled = self._cache_file.read() if self._cache_file else None
        if compiled is not None and not self._cache.deserialize(compiled):
            log.info("the runtime cache is of another card, driver or version; kernels are compiled anew")
        config.set_runtime_cache(self._cache)
        return config
