/* Bytes to byte planes and back: plane i of width w holds the bytes i, i + w, i + 2w, ...
 *
 * casstore/planes.py is the specification and gives the same bytes without this file (tests/unit/test_codec_planes.py).
 * How planes are ordered is part of the store format (docs/FORMAT.md section 5.1); what `estimate` returns is not, as
 * it only chooses between encodings that all give back the same bytes.
 *
 * Limited API of CPython 3.11. The GIL is released while a large buffer is worked on, so the caller must not change
 * the buffer during the call.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Moving less than this costs about as little as handing the GIL over. */
#define RELEASE_GIL_FROM (32 * 1024)

#define WIDEST 8
#define MOST_ROOM 4096
/* What is joined and compared at a time: all of it fits the fastest cache. A multiple of every width. */
#define COMPARED 4096
#define SAMPLE_MOST (16 * 1024)
#define UNIT 65536.0

/* UNIT * n * log2(n), rounded: what n equal bytes save in an entropy coder. */
static int64_t SAVED[SAMPLE_MOST + 1];
/* UNIT / (2 ln 2), rounded: what each distinct byte adds, as a small sample looks more ordered than it is. */
static int64_t BIAS;

static int
is_width(int width)
{
    return width == 2 || width == 4 || width == 8;
}

static Py_ssize_t
plane_size(Py_ssize_t size, int width, int plane)
{
    return (size - plane + width - 1) / width;
}

/* The loops are spelled out for each width, with nothing in them that keeps a compiler from vectorising. */

static void
split2(const uint8_t *restrict from, Py_ssize_t rows, uint8_t *restrict a, uint8_t *restrict b)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        a[i] = from[2 * i];
        b[i] = from[2 * i + 1];
    }
}

static void
split4(const uint8_t *restrict from, Py_ssize_t rows, uint8_t *restrict a, uint8_t *restrict b, uint8_t *restrict c,
       uint8_t *restrict d)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        a[i] = from[4 * i];
        b[i] = from[4 * i + 1];
        c[i] = from[4 * i + 2];
        d[i] = from[4 * i + 3];
    }
}

static void
split8(const uint8_t *restrict from, Py_ssize_t rows, uint8_t *restrict a, uint8_t *restrict b, uint8_t *restrict c,
       uint8_t *restrict d, uint8_t *restrict e, uint8_t *restrict f, uint8_t *restrict g, uint8_t *restrict h)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        a[i] = from[8 * i];
        b[i] = from[8 * i + 1];
        c[i] = from[8 * i + 2];
        d[i] = from[8 * i + 3];
        e[i] = from[8 * i + 4];
        f[i] = from[8 * i + 5];
        g[i] = from[8 * i + 6];
        h[i] = from[8 * i + 7];
    }
}

static void
split_rows(const uint8_t *from, Py_ssize_t size, int width, uint8_t *to)
{
    uint8_t *plane[WIDEST];
    Py_ssize_t rows = size / width;

    for (int i = 0; i < width; i++) {
        plane[i] = to;
        to += plane_size(size, width, i);
    }
    if (width == 2) {
        split2(from, rows, plane[0], plane[1]);
    }
    else if (width == 4) {
        split4(from, rows, plane[0], plane[1], plane[2], plane[3]);
    }
    else {
        split8(from, rows, plane[0], plane[1], plane[2], plane[3], plane[4], plane[5], plane[6], plane[7]);
    }
    for (Py_ssize_t i = rows * width; i < size; i++) {
        plane[i % width][rows] = from[i];
    }
}

static void
join2(uint8_t *restrict to, Py_ssize_t rows, const uint8_t *restrict a, const uint8_t *restrict b)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        to[2 * i] = a[i];
        to[2 * i + 1] = b[i];
    }
}

static void
join4(uint8_t *restrict to, Py_ssize_t rows, const uint8_t *restrict a, const uint8_t *restrict b,
      const uint8_t *restrict c, const uint8_t *restrict d)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        to[4 * i] = a[i];
        to[4 * i + 1] = b[i];
        to[4 * i + 2] = c[i];
        to[4 * i + 3] = d[i];
    }
}

static void
join8(uint8_t *restrict to, Py_ssize_t rows, const uint8_t *restrict a, const uint8_t *restrict b,
      const uint8_t *restrict c, const uint8_t *restrict d, const uint8_t *restrict e, const uint8_t *restrict f,
      const uint8_t *restrict g, const uint8_t *restrict h)
{
    for (Py_ssize_t i = 0; i < rows; i++) {
        to[8 * i] = a[i];
        to[8 * i + 1] = b[i];
        to[8 * i + 2] = c[i];
        to[8 * i + 3] = d[i];
        to[8 * i + 4] = e[i];
        to[8 * i + 5] = f[i];
        to[8 * i + 6] = g[i];
        to[8 * i + 7] = h[i];
    }
}

static void
join_rows(const Py_buffer *views, int width, uint8_t *to, Py_ssize_t size)
{
    const uint8_t *plane[WIDEST];
    Py_ssize_t rows = size / width;

    for (int i = 0; i < width; i++) {
        plane[i] = views[i].buf;
    }
    if (width == 2) {
        join2(to, rows, plane[0], plane[1]);
    }
    else if (width == 4) {
        join4(to, rows, plane[0], plane[1], plane[2], plane[3]);
    }
    else {
        join8(to, rows, plane[0], plane[1], plane[2], plane[3], plane[4], plane[5], plane[6], plane[7]);
    }
    for (Py_ssize_t i = rows * width; i < size; i++) {
        to[i] = plane[i % width][rows];
    }
}

PyDoc_STRVAR(split_doc,
"split(data, width, room=0)\n--\n\n"
"The planes of data, one after another, behind so many zeros; the same as casstore.planes.split.");

static PyObject *
split(PyObject *module, PyObject *args)
{
    PyObject *data, *result;
    Py_buffer view;
    Py_ssize_t room = 0;
    int width;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi|n:split", &data, &width, &room)) {
        return NULL;
    }
    if (!is_width(width)) {
        return PyErr_Format(PyExc_ValueError, "planes are 2, 4 or 8, not %d", width);
    }
    if (room < 0 || room > MOST_ROOM) {
        return PyErr_Format(PyExc_ValueError, "room is for 0 to %d bytes, not %zd", MOST_ROOM, room);
    }
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len > PY_SSIZE_T_MAX - room) {
        PyBuffer_Release(&view);
        return PyErr_NoMemory();
    }
    result = PyByteArray_FromStringAndSize(NULL, room + view.len);
    if (result != NULL) {
        uint8_t *to = (uint8_t *)PyByteArray_AsString(result);
        memset(to, 0, (size_t)room);
        if (view.len < RELEASE_GIL_FROM) {
            split_rows(view.buf, view.len, width, to + room);
        }
        else {
            Py_BEGIN_ALLOW_THREADS
            split_rows(view.buf, view.len, width, to + room);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&view);
    return result;
}

/* Takes the planes that a sequence has; how many, or -1. The caller releases `*open` views in either case. */
static int
planes_of(PyObject *planes, Py_buffer *views, int *open, Py_ssize_t *size)
{
    Py_ssize_t width = PySequence_Size(planes);

    if (width < 0) {
        return -1;
    }
    if (width > WIDEST || !is_width((int)width)) {
        PyErr_Format(PyExc_ValueError, "planes are 2, 4 or 8, not %zd", width);
        return -1;
    }
    for (; *open < width; ++*open) {
        PyObject *item = PySequence_GetItem(planes, *open);
        int status = item == NULL ? -1 : PyObject_GetBuffer(item, &views[*open], PyBUF_SIMPLE);
        Py_XDECREF(item);
        if (status < 0) {
            return -1;
        }
        *size += views[*open].len;
    }
    for (int i = 0; i < width; i++) {
        if (views[i].len != plane_size(*size, (int)width, i)) {
            PyErr_SetString(PyExc_ValueError, "planes of these sizes are of no bytes");
            return -1;
        }
    }
    return (int)width;
}

static void
join_views(const Py_buffer *views, int width, uint8_t *to, Py_ssize_t size)
{
    if (size < RELEASE_GIL_FROM) {
        join_rows(views, width, to, size);
    }
    else {
        Py_BEGIN_ALLOW_THREADS
        join_rows(views, width, to, size);
        Py_END_ALLOW_THREADS
    }
}

PyDoc_STRVAR(join_doc,
"join(planes)\n--\n\n"
"The bytes that a sequence of planes is of; the same as casstore.planes.join.");

static PyObject *
join(PyObject *module, PyObject *planes)
{
    Py_buffer views[WIDEST];
    PyObject *result = NULL;
    Py_ssize_t size = 0;
    int open = 0, width = planes_of(planes, views, &open, &size);

    (void)module;
    if (width > 0) {
        result = PyBytes_FromStringAndSize(NULL, size);
        if (result != NULL) {
            join_views(views, width, (uint8_t *)PyBytes_AsString(result), size);
        }
    }
    while (open > 0) {
        PyBuffer_Release(&views[--open]);
    }
    return result;
}

PyDoc_STRVAR(join_into_doc,
"join_into(planes, target)\n--\n\n"
"As `join`, into memory of that size, no part of which is in a plane; the same as casstore.planes.join_into.");

static PyObject *
join_into(PyObject *module, PyObject *args)
{
    Py_buffer views[WIDEST], target;
    PyObject *planes, *result = NULL;
    Py_ssize_t size = 0;
    int open = 0, width;

    (void)module;
    if (!PyArg_ParseTuple(args, "Ow*:join_into", &planes, &target)) {
        return NULL;
    }
    width = planes_of(planes, views, &open, &size);
    if (width > 0 && size != target.len) {
        PyErr_Format(PyExc_ValueError, "planes of %zd bytes do not fill %zd", size, target.len);
    }
    else if (width > 0) {
        join_views(views, width, target.buf, size);
        result = Py_None;
        Py_INCREF(result);
    }
    while (open > 0) {
        PyBuffer_Release(&views[--open]);
    }
    PyBuffer_Release(&target);
    return result;
}

/* Whether the planes are those of some bytes, which are not written anywhere on the way. */
static int
are_planes_of(const Py_buffer *views, int width, const uint8_t *plain, Py_ssize_t size)
{
    uint8_t joined[COMPARED];
    Py_buffer rest[WIDEST];

    memcpy(rest, views, sizeof rest[0] * (size_t)width);
    for (Py_ssize_t at = 0; at < size; at += COMPARED) {
        Py_ssize_t count = size - at < COMPARED ? size - at : COMPARED;
        for (int i = 0; i < width; i++) {
            rest[i].buf = (uint8_t *)views[i].buf + at / width;
        }
        join_rows(rest, width, joined, count);
        if (memcmp(joined, plain + at, (size_t)count) != 0) {
            return 0;
        }
    }
    return 1;
}

PyDoc_STRVAR(matches_doc,
"matches(planes, data)\n--\n\n"
"Whether a sequence of planes is that of data; the same as casstore.planes.matches.");

static PyObject *
matches(PyObject *module, PyObject *args)
{
    Py_buffer views[WIDEST], plain;
    PyObject *planes;
    Py_ssize_t size = 0;
    int open = 0, same = -1, width;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oy*:matches", &planes, &plain)) {
        return NULL;
    }
    width = planes_of(planes, views, &open, &size);
    if (width > 0 && size != plain.len) {
        same = 0;
    }
    else if (width > 0) {
        Py_BEGIN_ALLOW_THREADS
        same = are_planes_of(views, width, plain.buf, size);
        Py_END_ALLOW_THREADS
    }
    while (open > 0) {
        PyBuffer_Release(&views[--open]);
    }
    PyBuffer_Release(&plain);
    return same < 0 ? NULL : PyBool_FromLong(same);
}

/* Bits that an entropy coder needs for bytes that occur so often, in 1/UNIT. */
static int64_t
bits(const uint32_t *counts, Py_ssize_t size)
{
    int64_t saved = 0, distinct = 0;

    for (int i = 0; i < 256; i++) {
        saved += SAVED[counts[i]];
        distinct += counts[i] != 0;
    }
    return SAVED[size] - saved + (distinct ? distinct - 1 : 0) * BIAS;
}

PyDoc_STRVAR(estimate_doc,
"estimate(sample)\n--\n\n"
"Bits of the planes of a sample in an entropy coder; the same as casstore.planes.estimate.");

static PyObject *
estimate(PyObject *module, PyObject *data)
{
    uint32_t counts[WIDEST][256];
    int64_t found[15];
    PyObject *tuple;
    Py_buffer view;
    const uint8_t *from;
    Py_ssize_t rows;
    int at = 0;

    (void)module;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len > SAMPLE_MOST || view.len % WIDEST) {
        PyBuffer_Release(&view);
        return PyErr_Format(PyExc_ValueError, "a sample is a multiple of %d of at most %d bytes", WIDEST, SAMPLE_MOST);
    }
    memset(counts, 0, sizeof counts);
    from = view.buf;
    rows = view.len / WIDEST;
    for (Py_ssize_t i = 0; i < rows; i++) {
        for (int k = 0; k < WIDEST; k++) {
            counts[k][from[WIDEST * i + k]]++;
        }
    }
    PyBuffer_Release(&view);
    for (int width = WIDEST; width; width /= 2) {
        for (int k = 0; k < width; k++) {
            if (width < WIDEST) {
                for (int i = 0; i < 256; i++) {
                    counts[k][i] += counts[k + width][i];
                }
            }
            found[at++] = bits(counts[k], rows * (WIDEST / width));
        }
    }
    tuple = PyTuple_New(at);
    for (int i = 0; tuple != NULL && i < at; i++) {
        PyObject *number = PyLong_FromLongLong(found[i]);
        if (number == NULL || PyTuple_SetItem(tuple, i, number) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

static PyMethodDef methods[] = {
    {"split", split, METH_VARARGS, split_doc},
    {"join", join, METH_O, join_doc},
    {"join_into", join_into, METH_VARARGS, join_into_doc},
    {"matches", matches, METH_VARARGS, matches_doc},
    {"estimate", estimate, METH_O, estimate_doc},
    {NULL, NULL, 0, NULL},
};

static int
fill_tables(PyObject *module)
{
    (void)module;
    for (int n = 1; n <= SAMPLE_MOST; n++) {
        SAVED[n] = (int64_t)floor(UNIT * n * log2(n) + 0.5);
    }
    BIAS = (int64_t)floor(UNIT / (2 * log(2.0)) + 0.5);
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill_tables}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_planes",
    .m_doc = "Byte planes, compiled; see casstore.planes.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__planes(void)
{
    return PyModuleDef_Init(&definition);
}
