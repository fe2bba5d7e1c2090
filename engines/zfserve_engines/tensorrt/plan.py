"""Loads a compiled engine onto the GPU once, for all `TensorRTEngine`s that run it. `engine` and `kinds` use it."""

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
    """Holds a compiled engine on the GPU, which any number of `TensorRTEngine`s can run.

    Args:
        plan: the compiled engine, after the engine store has verified it. A plan contains code, so a plan of unknown
            origin must never be loaded.
        manifest: the manifest of the bundle.
        library: the library that built the plan.
        gpu: the GPU of this machine.
        runtime_cache: the file of kernels that TensorRT for RTX compiled for this GPU in earlier processes; None: keep
            no kernels.
        cuda_graphs: True launches all kernels of a batch at once. False is for comparisons.

    Raises:
        BundleError: the plan is not an engine of this bundle.
        EngineUnavailable: the library cannot run the plan on this GPU.
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
    def library_captures_graphs(self) -> bool:
        """True where the library captures the CUDA graphs itself.

        TensorRT for RTX does so, because only the library knows when its kernels are compiled for a shape.
        """
        return self._config is not None

    def create_context(self) -> Any:
        """Returns an `IExecutionContext`. The caller must give it scratch memory."""
        if self._config is not None:
            context = self.engine.create_execution_context(runtime_config=self._config)
        else:
            context = self.engine.create_execution_context(self._user_managed)
        if context is None:
            raise EngineFailed("TensorRT cannot make another context; the GPU's memory may be full")
        return context

    def save_runtime_cache(self) -> None:
        """Writes the kernels that were compiled for this GPU to the cache file. The next process reads them.

        Call it after all engines are warm.
        """
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
        """Returns an `IRuntimeConfig` with a cache of kernels and CUDA graphs. Only TensorRT for RTX has both."""
        module, config = self.library.module, self.engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._user_managed)
        # EAGER compiles the kernels for a batch size before it first runs, during the warm-up. Otherwise the golden
        # inputs would verify a slower kernel, and another kernel, compiled in the background, would serve.
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        strategy = module.CudaGraphStrategy
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self.cuda_graphs else strategy.DISABLED
        self._cache = config.create_runtime_cache()
        compiled = self._cache_file.read() if self._cache_file else None
        if compiled is not None and not self._cache.deserialize(compiled):
            log.info("the runtime cache is from another GPU, driver or version; kernels are compiled again")
        config.set_runtime_cache(self._cache)
        return config
