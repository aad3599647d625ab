/* What the chunking kernels share: a growing list of cuts, and the way from a Python buffer to a list of ints.
 *
 * Limited API of CPython 3.11. The GIL is released while a large buffer is scanned, so the caller must not
 * change the buffer during the call.
 */
#ifndef CASSTORE_CUTS_H
#define CASSTORE_CUTS_H

#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>

/* Scanning less than this costs about as little as handing the GIL over. */
#define RELEASE_GIL_FROM (64 * 1024)

#define LARGEST_MAXIMUM ((Py_ssize_t)1 << 30)

typedef struct {
    Py_ssize_t *ends;
    size_t count, room;
} Cuts;

/* The length of the first chunk of data[0:size], or 0 when more data could still decide. */
typedef Py_ssize_t (*FirstCut)(const uint8_t *data, Py_ssize_t size, const void *params);

static int
append(Cuts *cuts, Py_ssize_t end)
{
    if (cuts->count == cuts->room) {
        size_t room = cuts->room ? cuts->room * 2 : 64;
        Py_ssize_t *ends = realloc(cuts->ends, room * sizeof *ends);
        if (ends == NULL) {
            return -1;
        }
        cuts->ends = ends;
        cuts->room = room;
    }
    cuts->ends[cuts->count++] = end;
    return 0;
}

/* All cuts of a buffer; touches no Python object. -1 when memory is short. */
static int
find_cuts(const uint8_t *data, Py_ssize_t size, FirstCut first_cut, const void *params, int final, Cuts *cuts)
{
    Py_ssize_t start = 0;

    while (start < size) {
        Py_ssize_t length = first_cut(data + start, size - start, params);
        if (!length) {
            if (!final) {
                break;
            }
            length = size - start;
        }
        start += length;
        if (append(cuts, start) < 0) {
            return -1;
        }
    }
    return 0;
}

static PyObject *
list_of(const Cuts *cuts)
{
    PyObject *list = PyList_New((Py_ssize_t)cuts->count);

    for (size_t i = 0; list != NULL && i < cuts->count; i++) {
        PyObject *end = PyLong_FromSsize_t(cuts->ends[i]);
        if (end == NULL || PyList_SetItem(list, (Py_ssize_t)i, end) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* The cuts of a Python buffer as a list of ints; NULL with an exception. */
static PyObject *
cuts_of(PyObject *data, FirstCut first_cut, const void *params, int final)
{
    PyObject *result = NULL;
    Cuts cuts = {NULL, 0, 0};
    Py_buffer view;
    int status;

    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len < RELEASE_GIL_FROM) {
        status = find_cuts(view.buf, view.len, first_cut, params, final, &cuts);
    }
    else {
        Py_BEGIN_ALLOW_THREADS
        status = find_cuts(view.buf, view.len, first_cut, params, final, &cuts);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    if (status < 0) {
        PyErr_NoMemory();
    }
    else {
        result = list_of(&cuts);
    }
    free(cuts.ends);
    return result;
}

#endif
