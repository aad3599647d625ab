/* The compiled kernels of `gated-2026`: where to cut a buffer into content-defined chunks.
 *
 * casstore/chunker/gated.py is the specification; every kernel here gives the same cuts (tests/unit/test_chunker.py).
 * Cuts are part of the store format: a change here that moves one cut is a new algorithm with a new name.
 *
 * A cheap hash, the gate, is computed for each position, for 16 or 32 of them at a time where the processor can; a strong
 * hash of the last 64 bytes only where the gate is open, which is once in 1,024 positions of random data. After a
 * position where it was open, the next 31 are not judged: so much for input made to be slow.
 *
 * Built without special flags: what needs AVX2 is compiled for it alone and called only where the processor has it.
 */
#include "_cuts.h"

#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__GNUC__) && defined(__ARM_NEON) && !defined(__ARM_BIG_ENDIAN)
#define HAVE_NEON 1
#include <arm_neon.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define LITTLE_ENDIAN_LOADS 1
#endif

#define SMALLEST_MINIMUM 64

/* Both from SHA-256, see gated.py, which computes the same. */
#define MULTIPLIER 0x9d25
static const uint64_t KEYS[9] = {
    0x1425d1efd9abd8bfu, 0xf9c8a7a1559040fbu, 0xce62ec3b8da00ddbu, 0x1591845f604454c3u, 0x71bc23bd32b932ebu,
    0x3cfe5040bc9e68dfu, 0x6450bc57f79c79a5u, 0x6e02d91ed52760c1u, 0x10cf4f9d6018280bu,
};

/* From one term of the gate to the next: so many bytes back, so many bits up. No gate looks further back than REACH. */
#define TERM_BYTES 32
#define TERM_BITS 2
#define LANES (TERM_BYTES / 2)
#define REACH (8 + 8 * TERM_BYTES)

/* A polynomial of four words becomes a term when it is folded by so many bits: high bytes reach low bits. */
#define FOLD 7

/* Ends that are worked on together. Fewer before the limit are copied, so that nothing is read behind it. */
#define BLOCK 64

typedef struct {
    Py_ssize_t minimum, average, maximum;
    Py_ssize_t stride;        /* from an end with an open gate to the next that is judged */
    uint64_t strict, lenient; /* the strong hash must be below this, before and from `average` bytes on */
    int opening;              /* the gate is open when its hash, as a signed number of 16 bits, is at least this */
} Params;

static inline uint16_t
load16(const uint8_t *at)
{
#ifdef LITTLE_ENDIAN_LOADS
    uint16_t word;
    memcpy(&word, at, sizeof word);
    return word;
#else
    return (uint16_t)(at[0] | at[1] << 8);
#endif
}

static inline uint64_t
load64(const uint8_t *at)
{
#ifdef LITTLE_ENDIAN_LOADS
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
#else
    uint64_t word = 0;
    for (int i = 7; i >= 0; i--) {
        word = word << 8 | at[i];
    }
    return word;
#endif
}

/* The strong hash of the 64 bytes before `end`. */
static inline uint64_t
strong(const uint8_t *end)
{
    uint64_t hash = 0;

    for (int k = 0; k < 8; k++) {
        hash += load64(end - 64 + 8 * k) * KEYS[k];
    }
    hash ^= hash >> 32;
    return hash * KEYS[8];
}

/* Whether the chunk is cut at `end`, where the gate is open and which is at or after `*following`. */
static inline int
is_cut(const uint8_t *data, Py_ssize_t end, const Params *params, Py_ssize_t *following)
{
    *following = end + params->stride;
    return strong(data + end) < (end < params->average ? params->strict : params->lenient);
}

static inline uint16_t
term(const uint8_t *end)
{
    uint16_t hash = load16(end - 8);

    hash = (uint16_t)(hash * (uint32_t)MULTIPLIER + load16(end - 6));
    hash = (uint16_t)(hash * (uint32_t)MULTIPLIER + load16(end - 4));
    hash = (uint16_t)(hash * (uint32_t)MULTIPLIER + load16(end - 2));
    return hash ^ hash >> FOLD;
}

/* The gate's hash at data + end; terms that would begin before data are 0. */
static uint16_t
gate(const uint8_t *data, Py_ssize_t end)
{
    uint32_t hash = 0;

    for (int up = 0; up < 16 && end >= 8; up += TERM_BITS, end -= TERM_BYTES) {
        hash += (uint32_t)term(data + end) << up;
    }
    return (uint16_t)hash;
}

/* The gates of the 32 ends before `end`: first those of the ends at even distances from the first of them. */
static void
gates_before(const uint8_t *data, Py_ssize_t end, uint16_t gates[TERM_BYTES])
{
    for (int i = 0; i < TERM_BYTES; i++) {
        gates[i / 2 + i % 2 * LANES] = gate(data, end - TERM_BYTES + i);
    }
}

typedef struct {
    uint8_t octets[8 + BLOCK];
} Copied;

/* What the gates of the ends from `at` on, less than a block, are made of; zeros in the place of what is behind. */
static const uint8_t *
copied(Copied *copy, const uint8_t *at, Py_ssize_t ends)
{
    memset(copy, 0, sizeof *copy);
    memcpy(copy->octets, at - 8, 8 + (size_t)ends - 1);
    return copy->octets + 8;
}

static inline void
load_lanes(uint16_t words[LANES], const uint8_t *at)
{
#ifdef LITTLE_ENDIAN_LOADS
    memcpy(words, at, 2 * LANES);
#else
    for (int i = 0; i < LANES; i++) {
        words[i] = load16(at + 2 * i);
    }
#endif
}

/* The gates of 16 ends, of `at` and of every second one after it, from those 32 bytes before. Written so that compilers
 * make vector instructions of it, which every processor of some kinds has (SSE2, NEON). */
static inline void
gates_c(const uint8_t *at, uint16_t gates[LANES])
{
    uint16_t oldest[LANES], older[LANES], newer[LANES], newest[LANES];

    load_lanes(oldest, at - 8);
    load_lanes(older, at - 6);
    load_lanes(newer, at - 4);
    load_lanes(newest, at - 2);
    for (int i = 0; i < LANES; i++) {
        uint16_t hash = (uint16_t)(oldest[i] * (uint32_t)MULTIPLIER + older[i]);
        hash = (uint16_t)(hash * (uint32_t)MULTIPLIER + newer[i]);
        hash = (uint16_t)(hash * (uint32_t)MULTIPLIER + newest[i]);
        gates[i] = (uint16_t)((gates[i] << TERM_BITS) + (hash ^ hash >> FOLD));
    }
}

/* See FirstCut. */
static Py_ssize_t
first_cut_c(const uint8_t *data, Py_ssize_t size, const void *sizes)
{
    const Params *params = sizes;
    Py_ssize_t limit = size < params->maximum ? size : params->maximum;
    Py_ssize_t end = params->minimum, following = end;
    uint16_t gates[TERM_BYTES] = {0};

    if (end >= limit) {
        return limit == params->maximum ? limit : 0;
    }
    if (end >= REACH) {
        for (Py_ssize_t at = end - 8 * TERM_BYTES; at < end; at += TERM_BYTES) {
            gates_c(data + at, gates);
            gates_c(data + at + 1, gates + LANES);
        }
    }
    else {
        gates_before(data, end, gates);
    }
    for (; end < limit; end += TERM_BYTES) {
        const uint8_t *at = data + end;
        Py_ssize_t ends = limit - end;
        int16_t most = INT16_MIN;
        Copied copy;

        if (ends < TERM_BYTES) {
            at = copied(&copy, at, ends);
        }
        gates_c(at, gates);
        gates_c(at + 1, gates + LANES);
        for (int i = 0; i < TERM_BYTES; i++) {
            int16_t one = (int16_t)gates[i];
            most = one > most ? one : most;
        }
        if (most < params->opening) {
            continue;
        }
        for (Py_ssize_t i = following > end ? following - end : 0; i < TERM_BYTES && i < ends; i++) {
            if ((int16_t)gates[i / 2 + i % 2 * LANES] < params->opening) {
                continue;
            }
            if (is_cut(data, end + i, params, &following)) {
                return end + i;
            }
            i = following - end - 1;
        }
    }
    return limit == params->maximum ? limit : 0;
}

#if defined(HAVE_AVX2) || defined(HAVE_NEON)

/* The first of the open ends of a block at which the chunk is cut, or 0; a bit of `opened` for each end. */
static inline Py_ssize_t
judge(const uint8_t *data, Py_ssize_t end, uint64_t opened, const Params *params, Py_ssize_t *following)
{
    for (;;) {
        Py_ssize_t skipped = *following - end;
        if (skipped >= BLOCK) {
            return 0;
        }
        if (skipped > 0) {
            opened &= ~(uint64_t)0 << skipped;
        }
        if (!opened) {
            return 0;
        }
        skipped = __builtin_ctzll(opened);
        if (is_cut(data, end + skipped, params, following)) {
            return end + skipped;
        }
    }
}

#endif

#ifdef HAVE_AVX2

#define AVX2 __attribute__((target("avx2")))

/* The terms of 16 ends: of `at`, and of every second one after it. */
AVX2 static inline __m256i
terms_avx2(const uint8_t *at)
{
    const __m256i multiplier = _mm256_set1_epi16((short)MULTIPLIER);
#define WORDS(back) _mm256_loadu_si256((const __m256i *)(at - (back)))
    __m256i hash = _mm256_add_epi16(_mm256_mullo_epi16(WORDS(8), multiplier), WORDS(6));
    hash = _mm256_add_epi16(_mm256_mullo_epi16(hash, multiplier), WORDS(4));
    hash = _mm256_add_epi16(_mm256_mullo_epi16(hash, multiplier), WORDS(2));
    return _mm256_xor_si256(hash, _mm256_srli_epi16(hash, FOLD));
#undef WORDS
}

/* The gates of 16 ends, from those 32 bytes before. */
AVX2 static inline __m256i
gates_avx2(const uint8_t *at, __m256i before)
{
    return _mm256_add_epi16(terms_avx2(at), _mm256_slli_epi16(before, TERM_BITS));
}

/* Which of 32 ends have an open gate: a bit for each. */
AVX2 static inline uint64_t
opened_avx2(__m256i even, __m256i odd, __m256i below)
{
    uint32_t first = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi16(even, below));
    uint32_t second = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi16(odd, below));
    return (first & 0x55555555u) | (second & 0xaaaaaaaau);
}

/* See FirstCut. */
AVX2 static Py_ssize_t
first_cut_avx2(const uint8_t *data, Py_ssize_t size, const void *sizes)
{
    const Params *params = sizes;
    const __m256i below = _mm256_set1_epi16((short)(params->opening - 1));
    Py_ssize_t limit = size < params->maximum ? size : params->maximum;
    Py_ssize_t end = params->minimum, following = end;
    __m256i even = _mm256_setzero_si256(), odd = even;

    if (end >= limit) {
        return limit == params->maximum ? limit : 0;
    }
    if (end >= REACH) {
        for (Py_ssize_t at = end - 8 * TERM_BYTES; at < end; at += TERM_BYTES) {
            even = gates_avx2(data + at, even);
            odd = gates_avx2(data + at + 1, odd);
        }
    }
    else {
        uint16_t gates[TERM_BYTES];
        gates_before(data, end, gates);
        even = _mm256_loadu_si256((const __m256i *)gates);
        odd = _mm256_loadu_si256((const __m256i *)(gates + LANES));
    }
    for (; end < limit; end += BLOCK) {
        const uint8_t *at = data + end;
        Py_ssize_t ends = limit - end;
        __m256i a, b, most;
        Copied copy;

        if (ends < BLOCK) {
            at = copied(&copy, at, ends);
        }
        a = gates_avx2(at, even);
        b = gates_avx2(at + 1, odd);
        even = gates_avx2(at + 32, a);
        odd = gates_avx2(at + 33, b);
        most = _mm256_max_epi16(_mm256_max_epi16(a, b), _mm256_max_epi16(even, odd));
        if (_mm256_movemask_epi8(_mm256_cmpgt_epi16(most, below))) {
            uint64_t opened = opened_avx2(a, b, below) | opened_avx2(even, odd, below) << 32;
            Py_ssize_t cut = judge(data, end, ends < BLOCK ? opened & ~(~(uint64_t)0 << ends) : opened, params, &following);
            if (cut) {
                return cut;
            }
        }
    }
    return limit == params->maximum ? limit : 0;
}

#endif

#ifdef HAVE_NEON

/* The gates of 8 ends, of `at` and of every second one after it, from those 32 bytes before. */
static inline int16x8_t
gates_neon(const uint8_t *at, int16x8_t before)
{
    const uint16x8_t multiplier = vdupq_n_u16(MULTIPLIER);
#define WORDS(back) vreinterpretq_u16_u8(vld1q_u8(at - (back)))
    uint16x8_t hash = vmlaq_u16(WORDS(6), WORDS(8), multiplier);
    hash = vmlaq_u16(WORDS(4), hash, multiplier);
    hash = vmlaq_u16(WORDS(2), hash, multiplier);
    hash = veorq_u16(hash, vshrq_n_u16(hash, FOLD));
    return vreinterpretq_s16_u16(vaddq_u16(hash, vshlq_n_u16(vreinterpretq_u16_s16(before), TERM_BITS)));
#undef WORDS
}

/* Which of 16 ends have an open gate: a bit for each. */
static inline uint64_t
opened_neon(int16x8_t even, int16x8_t odd, int16x8_t least)
{
    static const uint16_t weights[8] = {1, 1 << 2, 1 << 4, 1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14};
    const uint16x8_t weight = vld1q_u16(weights);
    uint16_t first = vaddvq_u16(vandq_u16(vcgeq_s16(even, least), weight));
    uint16_t second = vaddvq_u16(vandq_u16(vcgeq_s16(odd, least), weight));
    return first | (uint64_t)second << 1;
}

/* See FirstCut. */
static Py_ssize_t
first_cut_neon(const uint8_t *data, Py_ssize_t size, const void *sizes)
{
    const Params *params = sizes;
    const int16x8_t least = vdupq_n_s16((int16_t)params->opening);
    Py_ssize_t limit = size < params->maximum ? size : params->maximum;
    Py_ssize_t end = params->minimum, following = end;
    int16x8_t a = vdupq_n_s16(0), b = a, c = a, d = a; /* even and odd ends, the same 16 on */

    if (end >= limit) {
        return limit == params->maximum ? limit : 0;
    }
    if (end >= REACH) {
        for (const uint8_t *at = data + end - 8 * TERM_BYTES; at < data + end; at += TERM_BYTES) {
            a = gates_neon(at, a), b = gates_neon(at + 1, b), c = gates_neon(at + 16, c), d = gates_neon(at + 17, d);
        }
    }
    else {
        uint16_t gates[TERM_BYTES];
        gates_before(data, end, gates);
        a = vreinterpretq_s16_u16(vld1q_u16(gates)), c = vreinterpretq_s16_u16(vld1q_u16(gates + 8));
        b = vreinterpretq_s16_u16(vld1q_u16(gates + 16)), d = vreinterpretq_s16_u16(vld1q_u16(gates + 24));
    }
    for (; end < limit; end += BLOCK) {
        const uint8_t *at = data + end;
        Py_ssize_t ends = limit - end;
        int16x8_t e, f, g, h, most;
        Copied copy;

        if (ends < BLOCK) {
            at = copied(&copy, at, ends);
        }
        e = gates_neon(at, a), f = gates_neon(at + 1, b), g = gates_neon(at + 16, c), h = gates_neon(at + 17, d);
        a = gates_neon(at + 32, e), b = gates_neon(at + 33, f), c = gates_neon(at + 48, g), d = gates_neon(at + 49, h);
        most = vmaxq_s16(vmaxq_s16(vmaxq_s16(a, b), vmaxq_s16(c, d)), vmaxq_s16(vmaxq_s16(e, f), vmaxq_s16(g, h)));
        if (vmaxvq_s16(most) >= params->opening) {
            uint64_t opened = opened_neon(e, f, least) | opened_neon(g, h, least) << 16 | opened_neon(a, b, least) << 32
                              | opened_neon(c, d, least) << 48;
            Py_ssize_t cut = judge(data, end, ends < BLOCK ? opened & ~(~(uint64_t)0 << ends) : opened, params, &following);
            if (cut) {
                return cut;
            }
        }
    }
    return limit == params->maximum ? limit : 0;
}

#endif

static int
fill_params(Params *params)
{
    int bits = 0, rarity;

    if (params->minimum < SMALLEST_MINIMUM || params->minimum > params->average || params->average > params->maximum
        || params->maximum > LARGEST_MAXIMUM) {
        PyErr_Format(PyExc_ValueError, "chunk sizes %zd <= %zd <= %zd must rise from %d to 2**30", params->minimum,
                     params->average, params->maximum, SMALLEST_MINIMUM);
        return -1;
    }
    while (params->average >> (bits + 1)) {
        bits++;
    }
    rarity = bits - 4 < 10 ? bits - 4 : 10;
    params->opening = (1 << 15) - (1 << (16 - rarity));
    params->stride = bits < 11 ? (Py_ssize_t)1 << (bits - 6) : 32;
    params->strict = (uint64_t)1 << (64 - (bits + 2 - rarity));
    params->lenient = (uint64_t)1 << (64 - (bits - 2 - rarity));
    return 0;
}

static PyObject *
boundaries(PyObject *args, PyObject *kwargs, FirstCut first_cut)
{
    static char *names[] = {"data", "minimum", "average", "maximum", "final", NULL};
    PyObject *data;
    Params params;
    int final;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onnnp:boundaries", names, &data, &params.minimum,
                                     &params.average, &params.maximum, &final)) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_SetString(PyExc_ValueError, "a chunk size is out of range");
        }
        return NULL;
    }
    if (fill_params(&params) < 0) {
        return NULL;
    }
    return cuts_of(data, first_cut, &params, final);
}

PyDoc_STRVAR(boundaries_doc,
"(data, minimum, average, maximum, final)\n\n"
"End offsets of the chunks of data, ascending; the same as casstore.chunker.gated.boundaries.");

static PyObject *
boundaries_c(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    return boundaries(args, kwargs, first_cut_c);
}

#ifdef HAVE_AVX2
static PyObject *
boundaries_avx2(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    if (!__builtin_cpu_supports("avx2")) {
        PyErr_SetString(PyExc_RuntimeError, "this processor has no AVX2");
        return NULL;
    }
    return boundaries(args, kwargs, first_cut_avx2);
}
#endif

#ifdef HAVE_NEON
static PyObject *
boundaries_neon(PyObject *module, PyObject *args, PyObject *kwargs)
{
    (void)module;
    return boundaries(args, kwargs, first_cut_neon);
}
#endif

PyDoc_STRVAR(kernels_doc,
"kernels()\n--\n\n"
"The names of the kernels that run on this machine, the fastest first; boundaries_NAME is that kernel.");

static PyObject *
kernels(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
#ifdef HAVE_AVX2
    if (__builtin_cpu_supports("avx2")) {
        return Py_BuildValue("(ss)", "avx2", "c");
    }
#endif
#ifdef HAVE_NEON
    return Py_BuildValue("(ss)", "neon", "c");
#endif
    return Py_BuildValue("(s)", "c");
}

PyDoc_STRVAR(constants_doc,
"constants()\n--\n\n"
"The multiplier of the gate and the keys of the strong hash, for the test that compares them with their formula.");

static PyObject *
constants(PyObject *module, PyObject *unused)
{
    PyObject *tuple = PyTuple_New(10);

    (void)module;
    (void)unused;
    for (Py_ssize_t i = 0; tuple != NULL && i < 10; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(i ? KEYS[i - 1] : MULTIPLIER);
        if (number == NULL || PyTuple_SetItem(tuple, i, number) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

#define KERNEL(name) {"boundaries_" #name, (PyCFunction)(void (*)(void))boundaries_##name, \
                      METH_VARARGS | METH_KEYWORDS, boundaries_doc},

static PyMethodDef methods[] = {
    KERNEL(c)
#ifdef HAVE_AVX2
    KERNEL(avx2)
#endif
#ifdef HAVE_NEON
    KERNEL(neon)
#endif
    {"kernels", kernels, METH_NOARGS, kernels_doc},
    {"constants", constants, METH_NOARGS, constants_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_gated",
    .m_doc = "The compiled kernels of gated-2026; see casstore.chunker.gated.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__gated(void)
{
    return PyModuleDef_Init(&definition);
}
