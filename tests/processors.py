"""Another processor, emulated: kernels of old instruction sets, which add in another order."""

from numpy._core._multiarray_umath import __cpu_dispatch__

# torch, OpenBLAS and MKL; numpy refuses to disable what it was built to need or does not know.
OLD = {
    "ATEN_CPU_CAPABILITY": "default",
    "OPENBLAS_CORETYPE": "Nehalem",
    "MKL_CBWR": "COMPATIBLE",
    "NPY_DISABLE_CPU_FEATURES": " ".join({"X86_V3"} & set(__cpu_dispatch__)),
}
