"""The C library's allocator as a rank wants it, which it reads as the process starts. Imports no torch.

A step frees and takes the same large tensors again and again. Left alone, glibc hands each back to the kernel, which
clears the pages anew, a fifth and more of a step on a CPU.
"""

import platform
from collections.abc import Mapping

GIB = 2**30
_GLIBC = {
    "MALLOC_MMAP_THRESHOLD_": str(16 * GIB),
    "MALLOC_TRIM_THRESHOLD_": str(16 * GIB),
    "MALLOC_TOP_PAD_": str(GIB // 4),
}


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What to add to a rank's environment `given`: nothing where its user has chosen, or the library is not glibc."""
    chosen = any(name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES") for name in given)
    return {} if chosen or platform.libc_ver()[0] != "glibc" else dict(_GLIBC)
