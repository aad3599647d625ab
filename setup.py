"""Builds the C kernel of the chunker; everything else is in pyproject.toml."""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "casstore.chunker._gear",
            sources=["casstore/chunker/_gear.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["/O2"] if sys.platform == "win32" else ["-O3"],
            py_limited_api=True,
            optional=True,  # without a compiler the pure-Python kernel runs
        )
    ]
)
