/* How the C library of this process keeps memory that was given back: mallopt(3), of glibc only.
 *
 * casstore/cli/__init__.py sets the same through ctypes without this file, which takes longer to import.
 *
 * Limited API of CPython 3.11.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

PyDoc_STRVAR(return_blocks_doc,
             "return_blocks(mmap_threshold, trim_threshold, /)\n--\n\n"
             "Give freed blocks of so many bytes, and so many free bytes at the end of the heap, back to the system.\n"
             "Returns whether the C library can be told so.");

static PyObject *
return_blocks(PyObject *module, PyObject *args)
{
    (void)module;
    int mmap_threshold, trim_threshold;
    if (!PyArg_ParseTuple(args, "ii", &mmap_threshold, &trim_threshold)) {
        return NULL;
    }
#if defined(__GLIBC__)
    /* In this order: without the second, the first would have the other threshold follow it down, to 128 KiB. */
    int done = mallopt(M_MMAP_THRESHOLD, mmap_threshold) && mallopt(M_TRIM_THRESHOLD, trim_threshold);
    return PyBool_FromLong(done);
#else
    return PyBool_FromLong(0);
#endif
}

static PyMethodDef methods[] = {
    {"return_blocks", return_blocks, METH_VARARGS, return_blocks_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_process",
    .m_doc = "Settings of the C library for this process.",
    .m_size = 0,
    .m_methods = methods,
};

PyMODINIT_FUNC
PyInit__process(void)
{
    return PyModuleDef_Init(&definition);
}
