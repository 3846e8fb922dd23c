"""Settings of glibc's memory allocator for a rank's process. Imports no torch.

A step frees and allocates the same large tensors again and again. By default glibc returns each to the kernel, which
then clears its pages again: a fifth and more of a step on a CPU.
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
    """Variables to add to the environment `given` of a rank's process; none where it already sets the allocator, or
    where the C library is not glibc."""
    chosen = any(name.startswith("MALLOC_") or name in ("LD_PRELOAD", "GLIBC_TUNABLES") for name in given)
    return {} if chosen or platform.libc_ver()[0] != "glibc" else dict(_GLIBC)
