/* The compiled FastCDC kernel: where to cut a buffer into content-defined chunks.
 *
 * Source: Xia, Zou, Jiang, Zhou, Liu, Feng, Hu, Zhang, "The Design of Fast Content-Defined Chunking for Data
 * Deduplication Based Storage Systems", IEEE TPDS 31(9), 2020. Gear rolling hash, normalised chunking at level 2,
 * skipping the first `minimum` bytes of each chunk.
 *
 * casstore/chunker/fastcdc.py is the specification; this file gives the same cuts (tests/unit/test_chunker.py).
 * Cuts are part of the store format: a change here that moves one cut is a new algorithm with a new name.
 */
#include "_cuts.h"

#define SMALLEST_AVERAGE 16

/* GEAR[i] = first 8 bytes, little-endian, of sha256(b"casstore gear" + bytes([i])); fastcdc.py computes the same. */
static const uint64_t GEAR[256] = {
    0x80db2fa7e073b9e4u, 0xc314d2a1351475bau, 0xcb92e5f8b01d9ef5u, 0xe03db7c1f309336eu, 0x87ac833e469c43b6u,
    0x6ac22a0605f1479bu, 0x788a6786c562dd22u, 0xa39dc0160439aab1u, 0x0274740f52cfa495u, 0x2a844dbfef9c68f1u,
    0xbe7b576080a30cffu, 0x302441573a61f571u, 0x310778278ca686ecu, 0x15e2496da82ab9fau, 0xfb8af692cce662c6u,
    0xcc1c5655001e42deu, 0xa74fda8efddb7b23u, 0xe5f0744bf689b256u, 0xc90893feceff48c6u, 0x104a5d8a6cc3387au,
    0x0b73dde420e8190fu, 0x7fdc13219944a89fu, 0xbc2bead16e7d63a0u, 0x153e52d434784a7fu, 0xd7a15115c9de0d83u,
    0x005d2ddcbba0a373u, 0xf388975b3f152477u, 0x40626d7fc9ee9e8cu, 0x8396dbbd038d6407u, 0x9ff692208c5d50fau,
    0x1e716f06a3fb0baau, 0x3ca082476570f3c4u, 0x219f0bd7204a266cu, 0x0a4256d5ea16730fu, 0x596314eca4af75a6u,
    0xd71e44542fe393beu, 0x0a34d74896fd9c17u, 0x0abbad26fe060a94u, 0x0cee45c3dd623d10u, 0x035a53535cb7c464u,
    0x871fd1310e935ea6u, 0x5def0e8fb3f447bbu, 0x1ed5307847391b52u, 0x4f46de790a1da7c3u, 0x93e0880c071d9e6du,
    0xd9ebe455c3b3c24eu, 0xbfd97ad4d1e84242u, 0xbf790c6eef9c8d93u, 0x0a42adbff890c45bu, 0x3e2691cfb7361cc1u,
    0x0f99b060fb8699f0u, 0xeb41fb985183bb2du, 0x82394f2cc7d04c1du, 0x040aa2709270ed76u, 0xf1f33dfa8ebdbeb4u,
    0x253b35208d78a6e1u, 0x4e53c66306991475u, 0xdcbc025b96a8f480u, 0xabce4f394e08a632u, 0x0758c00fb7d16af3u,
    0xdf5f42d19bea159au, 0xce6544db392c78e7u, 0x1f6d7a2df61121bbu, 0xee8c6f87d62b8f64u, 0xe114ee3b14b4a05du,
    0x227a3899061cddecu, 0x14660b595b19e316u, 0xbb009616da153e41u, 0x9c80cb065ed245b3u, 0xe52a6266a8a6a4a0u,
    0x105bb5a60b2bdae8u, 0x966b5bd138605b9du, 0x421b26eeec88c450u, 0xdd80b587b7fe9bfbu, 0xf0d7de7f354f4a6au,
    0x8014daf2416a4a9cu, 0xfb32ec2eba65a662u, 0xa110ec4df7927502u, 0xa264260e695f3bf8u, 0x496104a5c7597fe1u,
    0xb0bd17ea712a64d3u, 0xcc3a7c7f860d0ae9u, 0x8d0100fca94ce50bu, 0xe08a0eefe40fe8f5u, 0x265fa9b31b02c1a7u,
    0x794b51ccd39b8d75u, 0x0eab8dbf0c6cf400u, 0x504b5a2b724101e4u, 0xba4aab97f8c87cfcu, 0x85a0b0ce96dc3bb2u,
    0x59df829fb5f87c08u, 0x0322bf0fcc320a42u, 0xd40b5eb096490da3u, 0x25bfb36b721cc293u, 0xa4df88cb81441082u,
    0xed4e174564703dadu, 0xc5ba799ee9e705d2u, 0x620573e86b610caeu, 0xd1cfeecdcbbfca90u, 0x1ad58cca9ae1416cu,
    0x4d2cc853d6c9e26fu, 0xe6bddd35e256f12cu, 0xf2c64246ad03bb3eu, 0xafbe1d901f0361f5u, 0x67bd788284c2d2efu,
    0x07996d2fb7f8eef8u, 0xbcf448c607a0468eu, 0x423e72a881dc40cdu, 0x9ed38cb1b57ffabau, 0xa095c0e208ef8ce1u,
    0x2bd253b9a8283303u, 0xefe3eb075508e44cu, 0xbc7e992d8937d459u, 0x1ca7cdb42d2e450eu, 0x4a66333b28ec4a0cu,
    0x6b57433c40e0d997u, 0xe3a9bda0191104d6u, 0x16c86e98b5f0d446u, 0x60c4636cb0abd981u, 0x7ecb9be9cb5c16e1u,
    0xce4fc84c36acb4beu, 0xb7c3d8913c2ba260u, 0xe222a812af3d3295u, 0x041b749a17f6be14u, 0xa912bb47dee53dc1u,
    0xd023f306fec78bafu, 0x58b1b4b1835f3458u, 0xdfe7f9accf7c5786u, 0x1645ddfd6d2bee6au, 0x4c77426df78dc307u,
    0x5fe695b2b2b13b3cu, 0xbf51d9dca9914ea6u, 0x9502e9024e425142u, 0x30382183f99e250bu, 0x7d976dbfd4b3f978u,
    0x3b7d5b476c679880u, 0x98c0eb1bb85aa1fcu, 0x605158f178a22b81u, 0x0d965e8b4ab78eb0u, 0x5f8fde74dcb95ff3u,
    0x66da23cca86bdaa6u, 0xcc195801b0a3be46u, 0x008d209659dfd087u, 0x2d1969dd939967b5u, 0x85fd4ee4f6a75cccu,
    0xcb71c8a341a61f9du, 0x63d770535a5442dbu, 0x8e1e06a9026dc49du, 0x13a3e334d1f465f6u, 0x1b1922aa404d732cu,
    0xd745b87f9041505du, 0x3de73753cac5591au, 0x9523f217acfc5accu, 0xaf03b71ca582c150u, 0xc0b846cb6d91d08cu,
    0xe61765b2986e544du, 0xa584a5d9be42c334u, 0x0c6ea8692c7deacau, 0x1f7f4a82322d28c9u, 0x072e8abef78efff8u,
    0x1e1f84dedec6d74fu, 0xff27df6edd27aeb0u, 0xd8aa74cef5320122u, 0x18479a2c06c798a4u, 0xb219cb2a389e2e10u,
    0xe7073bbdb552e6abu, 0x7f2fd556cd95ed24u, 0xdbb157c85ad9d6ebu, 0xa8ce33001a04d605u, 0x439998d6e0559962u,
    0x320133c868e3d6f9u, 0x65f35315843812fdu, 0x825d226e697a148cu, 0xdae01d31bc75289eu, 0x815696b6f283232du,
    0x6b8202652274f4fdu, 0x61f8e4d1c1d3477cu, 0x502a8b70c962737fu, 0x835f02fb4a34e082u, 0x1ccdcbd186366917u,
    0xf624589e9fe5d026u, 0x61b1626d79ed521bu, 0x2958b3616cc78c26u, 0x6c0175ddf8694228u, 0x84cc7a5ca3bcb60fu,
    0x75d863644a1c878au, 0xadc5ab356f970ac5u, 0xf404d46422258e12u, 0x817567a037aa28e9u, 0x1830219ab3e435aeu,
    0x4b75aa19adde3b87u, 0xedf445b98e8b0807u, 0x472e8fac6bfcfdb0u, 0x90071cd5a0ace14fu, 0xb797f6a7beb20241u,
    0xccf0f987c3ad3896u, 0xd88b44ede2b74dbau, 0xc18f4ae82db7007eu, 0xe6491f7715ac6230u, 0xddc217a512e0d0afu,
    0x1cd82c2352d74f96u, 0xb6fc3911c72a54a3u, 0x10cecf7e1517c663u, 0x38f59ac0e14cf382u, 0xe3a9247b2bf98443u,
    0xf130f21c7a7bfdc4u, 0x9016585e1e08f291u, 0xd7c38fd6be5e5d2cu, 0xa0f2930a392d974du, 0x43b50ef1c796154bu,
    0x436fef268833f0aeu, 0xb9cf9a4a54b650c2u, 0xbdf2449ac8c91cd1u, 0xe4e498544bc02e7du, 0x97aa091ec675875bu,
    0xfacbf7bab10bc4c9u, 0x59c9fb4883145c16u, 0xfbc7a2434b53167cu, 0x238917cb2c47c415u, 0x961f4677b3e49a03u,
    0xf67317fd0fd3496cu, 0xc13457c15fbfa9c1u, 0xa8afa809b4ca4ddcu, 0x6ab48e3e9d90b6b6u, 0x3b2f7d606c5d6b57u,
    0xc09238d089ed3dc8u, 0xdf3b55b4339d4e30u, 0xa81548fe32ee7ce9u, 0x1cc62571eddac792u, 0x2ca0e223f2bef419u,
    0x81b7a8b0f22afd09u, 0x3004bb0e4b19e545u, 0xfc1b698311d764a4u, 0xe48194cd84d7d94cu, 0x7fc6e9fd24062fa4u,
    0x4a0b1b03d04dc763u, 0x95cf7f9f96fd3903u, 0x613f6ad928d315cbu, 0x7ed0fd902a3d3684u, 0x0f06136677ea7ccau,
    0xf0928a106f89227cu, 0xfe456a4b9526dd75u, 0x860dca53e983e82du, 0x895eb5809b7bae88u, 0xf59ffb77e18e5930u,
    0x6b233bdb8d99070bu, 0x0cdef2d2401be962u, 0xcb3df627a98db8b9u, 0x28bd47b32a1772a3u, 0x81f84adca7e23b2bu,
    0xf404d4241f576decu, 0x06497452b8ed097eu, 0x5c1e4200090c41d3u, 0x0adb885efdb2a1a0u, 0x7fd9b26064a5f745u,
    0x0f3dba01f0034a66u,
};

typedef struct {
    Py_ssize_t minimum, average, maximum;
    uint64_t strict, lenient; /* the hash must be below this, before and after `average` bytes */
} Params;

/* Hash data[from:to] on top of *hash; the offset after the first byte at which a cut falls, or 0 for none. */
static Py_ssize_t
scan(const uint8_t *data, Py_ssize_t from, Py_ssize_t to, uint64_t limit, uint64_t *hash)
{
    uint64_t h = *hash;
    Py_ssize_t i = from;

#define STEP(k)                            \
    h = (h << 1) + GEAR[data[i + (k)]];    \
    if (h < limit) {                       \
        return i + (k) + 1;                \
    }
    /* Eight a turn: measured faster than the plain loop, and than shortening the dependency chain of h. */
    for (; to - i >= 8; i += 8) {
        STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7)
    }
    for (; i < to; i++) {
        STEP(0)
    }
#undef STEP
    *hash = h;
    return 0;
}

/* The length of the first chunk of data[0:size], or 0 when more data could still decide. */
static Py_ssize_t
first_cut(const uint8_t *data, Py_ssize_t size, const void *sizes)
{
    const Params *params = sizes;
    Py_ssize_t limit = size < params->maximum ? size : params->maximum;
    Py_ssize_t normal = limit < params->average ? limit : params->average;
    Py_ssize_t cut = 0;
    uint64_t hash = 0;

    if (limit > params->minimum) {
        cut = scan(data, params->minimum, normal, params->strict, &hash);
        if (!cut) {
            cut = scan(data, normal, limit, params->lenient, &hash);
        }
    }
    if (!cut && limit == params->maximum) {
        cut = limit;
    }
    return cut;
}

static int
fill_params(Params *params)
{
    int bits = 0;

    if (params->minimum < 1 || params->minimum > params->average || params->average < SMALLEST_AVERAGE
        || params->average > params->maximum || params->maximum > LARGEST_MAXIMUM) {
        PyErr_Format(PyExc_ValueError,
                     "chunk sizes %zd <= %zd <= %zd must rise from 1 to 2**30, and the average be at least %d",
                     params->minimum, params->average, params->maximum, SMALLEST_AVERAGE);
        return -1;
    }
    while (params->average >> (bits + 1)) {
        bits++;
    }
    params->strict = (uint64_t)1 << (64 - (bits + 2));
    params->lenient = (uint64_t)1 << (64 - (bits - 2));
    return 0;
}

PyDoc_STRVAR(boundaries_doc,
"boundaries(data, minimum, average, maximum, final)\n--\n\n"
"End offsets of the chunks of data, ascending; the same as casstore.chunker.fastcdc.boundaries.");

static PyObject *
boundaries(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "minimum", "average", "maximum", "final", NULL};
    PyObject *data;
    Params params;
    int final;

    (void)module;
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

PyDoc_STRVAR(table_doc,
"table()\n--\n\n"
"The 256 numbers of the gear hash, for the test that compares them with their formula.");

static PyObject *
table(PyObject *module, PyObject *unused)
{
    PyObject *tuple = PyTuple_New(256);

    (void)module;
    (void)unused;
    for (Py_ssize_t i = 0; tuple != NULL && i < 256; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(GEAR[i]);
        if (number == NULL || PyTuple_SetItem(tuple, i, number) < 0) {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

static PyMethodDef methods[] = {
    {"boundaries", (PyCFunction)(void (*)(void))boundaries, METH_VARARGS | METH_KEYWORDS, boundaries_doc},
    {"table", table, METH_NOARGS, table_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_gear",
    .m_doc = "The compiled FastCDC kernel; see casstore.chunker.fastcdc.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__gear(void)
{
    return PyModuleDef_Init(&definition);
}
