"""Builds the C extensions; everything else is in pyproject.toml."""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        *(
            Extension(
                f"casstore.chunker.{name}",
                sources=[f"casstore/chunker/{name}.c"],
                depends=["casstore/chunker/_cuts.h"],
                define_macros=[("Py_LIMITED_API", "0x030B0000")],
                # No flags for a certain processor: a kernel that needs one says so itself and is chosen when it runs.
                extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3"],
                py_limited_api=True,
                optional=True,  # without a compiler the pure-Python kernels run
            )
            for name in ("_gated", "_gear")
        ),
        Extension(
            "casstore._files",
            sources=["casstore/_files.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O2"],
            py_limited_api=True,
            optional=True,  # without it small files are read and written one by one
        ),
        Extension(
            "casstore._scan",
            sources=["casstore/_scan.c"],
            depends=["casstore/_xxh3.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O2"],
            py_limited_api=True,
            optional=True,  # without it directories are read, and files looked up, one by one
        ),
        Extension(
            "casstore._process",
            sources=["casstore/_process.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O2"],
            py_limited_api=True,
            optional=True,  # without it the command line does the same through ctypes
        ),
        Extension(
            "casstore._planes",
            sources=["casstore/_planes.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3"],
            py_limited_api=True,
            libraries=[] if sys.platform == "win32" else ["m"],
            optional=True,  # without it casstore/planes.py does the same, slower
        ),
        Extension(
            "casstore.gc._sketch",
            sources=["casstore/gc/_sketch.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3"],
            py_limited_api=True,
            optional=True,  # without it casstore/gc/sketch.py does the same, slower
        ),
    ]
)
