"""How the kernels that run at every step are compiled."""

from __future__ import annotations

from typing import Any

from numba import njit

#: Compiles a kernel that borrows its arrays. Numba counts references to arrays like Python, by an
#: atomic instruction at every slice and every call; drawing a tree spent four fifths of its time
#: there. Such a kernel can make views but neither allocate nor return arrays, and is called by one
#: that holds them (`_nrt`, no runtime for references, is the option that Numba's own library uses).
kernel: Any = njit(cache=True, nogil=True, _nrt=False)  # pyright: ignore[reportCallIssue]

#: Compiles a function that is written into its callers: it may return arrays that they borrow.
inlined: Any = njit(cache=True, nogil=True, inline="always")
