"""Lists the CUDA errors after which only a new process can compute. Used by `device`, which translates CUDA's errors.

A sticky error makes the CUDA context of the process unusable: every later call returns the same error. A server that
continued would look healthy, but would answer every request with an error.
"""

from collections.abc import Mapping

from zfserve_runtime.errors import EngineFailed, EngineLost

STICKY: Mapping[int, str] = {
    # NVIDIA's documentation says that the process must be terminated and relaunched after these errors.
    226: "cudaErrorContained",
    700: "cudaErrorIllegalAddress",
    702: "cudaErrorLaunchTimeout",
    710: "cudaErrorAssert",
    714: "cudaErrorHardwareStackError",
    715: "cudaErrorIllegalInstruction",
    716: "cudaErrorMisalignedAddress",
    717: "cudaErrorInvalidAddressSpace",
    718: "cudaErrorInvalidPc",
    719: "cudaErrorLaunchFailure",
    721: "cudaErrorTensorMemoryLeak",
    810: "cudaErrorMpsClientTerminated",
    911: "cudaErrorExternalDevice",
    # NVIDIA's documentation does not say so for the errors below. But their causes are permanent: damaged memory or
    # links, or a lost GPU or context.
    4: "cudaErrorCudartUnloading",
    100: "cudaErrorNoDevice",
    201: "cudaErrorDeviceUninitialized",
    214: "cudaErrorECCUncorrectable",
    220: "cudaErrorNvlinkUncorrectable",
    709: "cudaErrorContextIsDestroyed",
    806: "cudaErrorMpsRpcFailure",
    999: "cudaErrorUnknown",
}


def engine_error(code: int) -> EngineFailed:
    """Returns the error to raise for a CUDA call that returned `code`, which is not 0."""
    if code in STICKY:
        return EngineLost("the GPU is lost; try another instance, or try again shortly")
    return EngineFailed("the GPU failed on this batch; try again, or see the server's log")
