"""Which CUDA errors end the process that met them. Used by `cuda_device`, which translates every error by it.

A sticky error leaves the process's CUDA context unusable: every further call returns the same error, so a server that
goes on answers errors for ever while it looks alive. Only a new process helps.
"""

from collections.abc import Mapping

from zfserve_runtime.errors import EngineFailed, EngineLost

STICKY: Mapping[int, str] = {
    # NVIDIA's documentation says of these that the process must be terminated and relaunched.
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
    # Of these it does not, yet what they report does not mend: damaged memory or links, a card or context that is gone.
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
    """The error to raise for a CUDA call that returned `code`, which is not 0."""
    if code in STICKY:
        return EngineLost("the GPU failed for good; try another instance, or again shortly")
    return EngineFailed("the GPU failed on this batch; try again, or see the server's log")
