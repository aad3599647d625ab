/* The compiled form of casstore/gc/sketch.py, which is the specification: the same features, faster.
 *
 * Features are never stored, so they may change with any release. Limited API of CPython 3.11. The GIL is released
 * while a large buffer is read, so the caller must not change it during the call.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define FEATURES 16
#define SAMPLE_SHIFT 4
#define SAMPLE_MASK 31u
#define SCATTER 0x9E3779B1u
#define RELEASE_GIL_FROM (16 * 1024)
/* Samples are gathered and then taken through all features together, which the compiler turns into vector code. */
#define GATHERED 1024

static uint32_t TABLE[256];
static uint32_t FACTOR[FEATURES], OFFSET[FEATURES];

static uint64_t
mix(uint64_t number)
{
    number *= 0x9E3779B97F4A7C15u;
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9u;
    number = (number ^ (number >> 27)) * 0x94D049BB133111EBu;
    return number ^ (number >> 31);
}

static void
raise_features(uint32_t *most, const uint32_t *samples, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t sample = samples[i];
        for (int j = 0; j < FEATURES; j++) {
            uint32_t value = FACTOR[j] * sample + OFFSET[j];
            most[j] = value > most[j] ? value : most[j];
        }
    }
}

static void
scan(const uint8_t *data, Py_ssize_t size, uint32_t *most)
{
    uint32_t samples[GATHERED];
    uint32_t hash = 0;
    size_t count = 0;

    for (Py_ssize_t i = 0; i < size; i++) {
        hash = (hash << 1) + TABLE[data[i]];
        if (!((hash >> SAMPLE_SHIFT) & SAMPLE_MASK)) {
            uint32_t sample = hash * SCATTER;
            samples[count++] = sample ^ (sample >> 15);
            if (count == GATHERED) {
                raise_features(most, samples, count);
                count = 0;
            }
        }
    }
    raise_features(most, samples, count);
}

PyDoc_STRVAR(features_doc,
"features(data)\n--\n\n"
"What a chunk has in common with chunks that resemble it: 16 numbers of 32 bits, little-endian.");

static PyObject *
features(PyObject *module, PyObject *data)
{
    (void)module;
    Py_buffer view;
    uint32_t most[FEATURES] = {0};
    uint8_t out[FEATURES * 4];

    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (view.len >= RELEASE_GIL_FROM) {
        Py_BEGIN_ALLOW_THREADS
        scan(view.buf, view.len, most);
        Py_END_ALLOW_THREADS
    }
    else {
        scan(view.buf, view.len, most);
    }
    PyBuffer_Release(&view);
    for (int j = 0; j < FEATURES; j++) {
        for (int k = 0; k < 4; k++) {
            out[j * 4 + k] = (uint8_t)(most[j] >> (8 * k));
        }
    }
    return PyBytes_FromStringAndSize((const char *)out, sizeof out);
}

static PyMethodDef methods[] = {
    {"features", features, METH_O, features_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "casstore.gc._sketch", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC
PyInit__sketch(void)
{
    for (int i = 0; i < 256; i++) {
        TABLE[i] = (uint32_t)mix((uint64_t)i + 1);
    }
    for (int j = 0; j < FEATURES; j++) {
        FACTOR[j] = (uint32_t)mix(257 + 2 * (uint64_t)j) | 1u;
        OFFSET[j] = (uint32_t)mix(258 + 2 * (uint64_t)j);
    }
    return PyModule_Create(&module_def);
}
