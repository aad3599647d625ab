/* What a log of many files asks the file system and the stat cache, a directory or a batch at a time.
 *
 * casstore/filescan.py is the only caller and has the same in Python. What is not plain (links, special files, odd
 * names, whatever cannot be looked at) is only reported as such: Python takes it again, one by one, with its words for
 * every error.
 *
 * Limited API of CPython 3.11; POSIX.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __APPLE__
#define NANOSECONDS(info, which) ((int64_t)(info)->st_##which##timespec.tv_sec * 1000000000 + (info)->st_##which##timespec.tv_nsec)
#else
#define NANOSECONDS(info, which) ((int64_t)(info)->st_##which##tim.tv_sec * 1000000000 + (info)->st_##which##tim.tv_nsec)
#endif

/* --- XXH3, as far as it is needed: 64 bits of anything, 128 bits of a stamp; no seed ------------------------------ */

#define P32_1 0x9E3779B1U
#define P32_2 0x85EBCA77U
#define P32_3 0xC2B2AE3DU
#define P64_1 0x9E3779B185EBCA87ULL
#define P64_2 0xC2B2AE3D27D4EB4FULL
#define P64_3 0x165667B19E3779F9ULL
#define P64_4 0x85EBCA77C2B2AE63ULL
#define P64_5 0x27D4EB2F165667C5ULL
#define MIX_1 0x165667919E3779F9ULL
#define MIX_2 0x9FB21C651E98DF25ULL
#define SECRET 192
#define STRIPE 64
#define BLOCK 1024

static const uint8_t secret[SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static uint64_t
read32(const uint8_t *at)
{
    return (uint64_t)at[0] | (uint64_t)at[1] << 8 | (uint64_t)at[2] << 16 | (uint64_t)at[3] << 24;
}

static uint64_t
read64(const uint8_t *at)
{
    return read32(at) | read32(at + 4) << 32;
}

static void
write64(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

static uint64_t
swapped(uint64_t value)
{
    uint64_t result = 0;

    for (int i = 0; i < 8; i++) {
        result = result << 8 | (value >> 8 * i & 0xFF);
    }
    return result;
}

static uint64_t
turned(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

/* Both halves of the product of two numbers, one over the other. */
static uint64_t
folded(uint64_t a, uint64_t b)
{
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
#else
    uint64_t low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF), first = (a >> 32) * (b & 0xFFFFFFFF);
    uint64_t second = (a & 0xFFFFFFFF) * (b >> 32), high = (a >> 32) * (b >> 32);
    uint64_t middle = (low >> 32) + (first & 0xFFFFFFFF) + second;
    return (middle << 32 | (low & 0xFFFFFFFF)) ^ ((first >> 32) + (middle >> 32) + high);
#endif
}

static uint64_t
spread(uint64_t hash)
{
    hash = (hash ^ hash >> 37) * MIX_1;
    return hash ^ hash >> 32;
}

static uint64_t
spread_short(uint64_t hash)
{
    hash = (hash ^ hash >> 33) * P64_2;
    hash = (hash ^ hash >> 29) * P64_3;
    return hash ^ hash >> 32;
}

static uint64_t
mix16(const uint8_t *data, const uint8_t *key)
{
    return folded(read64(data) ^ read64(key), read64(data + 8) ^ read64(key + 8));
}

static void
add_stripe(uint64_t *sums, const uint8_t *data, const uint8_t *key)
{
    for (int i = 0; i < 8; i++) {
        uint64_t value = read64(data + 8 * i), keyed = value ^ read64(key + 8 * i);
        sums[i ^ 1] += value;
        sums[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
    }
}

static uint64_t
hash_long(const uint8_t *data, size_t length)
{
    uint64_t sums[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1}, result = (uint64_t)length * P64_1;
    size_t blocks = (length - 1) / BLOCK, stripes = (length - 1 - blocks * BLOCK) / STRIPE;

    for (size_t block = 0; block < blocks; block++) {
        for (size_t i = 0; i < BLOCK / STRIPE; i++) {
            add_stripe(sums, data + block * BLOCK + i * STRIPE, secret + 8 * i);
        }
        for (int i = 0; i < 8; i++) {
            sums[i] = (sums[i] ^ sums[i] >> 47 ^ read64(secret + SECRET - STRIPE + 8 * i)) * P32_1;
        }
    }
    for (size_t i = 0; i < stripes; i++) {
        add_stripe(sums, data + blocks * BLOCK + i * STRIPE, secret + 8 * i);
    }
    add_stripe(sums, data + length - STRIPE, secret + SECRET - STRIPE - 7);
    for (int i = 0; i < 4; i++) {
        const uint8_t *key = secret + 11 + 16 * i;
        result += folded(sums[2 * i] ^ read64(key), sums[2 * i + 1] ^ read64(key + 8));
    }
    return spread(result);
}

static uint64_t
hash64(const uint8_t *data, size_t length)
{
    uint64_t sum = (uint64_t)length * P64_1;

    if (length > 240) {
        return hash_long(data, length);
    }
    if (length > 128) {
        for (size_t i = 0; i < 8; i++) {
            sum += mix16(data + 16 * i, secret + 16 * i);
        }
        sum = spread(sum);
        for (size_t i = 8; i < length / 16; i++) {
            sum += mix16(data + 16 * i, secret + 16 * (i - 8) + 3);
        }
        return spread(sum + mix16(data + length - 16, secret + 136 - 17));
    }
    if (length > 16) {
        for (size_t i = (length - 1) / 32 + 1; i-- > 0;) {
            sum += mix16(data + 16 * i, secret + 32 * i) + mix16(data + length - 16 * (i + 1), secret + 32 * i + 16);
        }
        return spread(sum);
    }
    if (length > 8) {
        uint64_t low = read64(data) ^ read64(secret + 24) ^ read64(secret + 32);
        uint64_t high = read64(data + length - 8) ^ read64(secret + 40) ^ read64(secret + 48);
        return spread((uint64_t)length + swapped(low) + high + folded(low, high));
    }
    if (length > 3) {
        uint64_t hash = (read32(data + length - 4) + (read32(data) << 32)) ^ read64(secret + 8) ^ read64(secret + 16);
        hash = (hash ^ turned(hash, 49) ^ turned(hash, 24)) * MIX_2;
        hash = (hash ^ ((hash >> 35) + (uint64_t)length)) * MIX_2;
        return hash ^ hash >> 28;
    }
    if (length > 0) {
        uint64_t all = (uint64_t)data[0] << 16 | (uint64_t)data[length >> 1] << 24 | data[length - 1] | (uint64_t)length << 8;
        return spread_short(all ^ read32(secret) ^ read32(secret + 4));
    }
    return spread_short(read64(secret + 56) ^ read64(secret + 64));
}

#define STAMP 40
#define MARK 16

/* 128 bits of the five numbers of a stamp, as the digest is written: the higher half first, big-endian. */
static void
mark_of(const uint8_t *stamp, uint8_t *mark)
{
    uint64_t low = (uint64_t)STAMP * P64_1, high = 0, first, second;

    low = (low + mix16(stamp + 16, secret + 32)) ^ (read64(stamp + 8) + read64(stamp + 16));
    high = (high + mix16(stamp + 8, secret + 48)) ^ (read64(stamp + 16) + read64(stamp + 24));
    low = (low + mix16(stamp, secret)) ^ (read64(stamp + 24) + read64(stamp + 32));
    high = (high + mix16(stamp + 24, secret + 16)) ^ (read64(stamp) + read64(stamp + 8));
    first = spread(low + high);
    second = 0 - spread(low * P64_1 + high * P64_4 + (uint64_t)STAMP * P64_2);
    write64(mark, swapped(second));
    write64(mark + 8, swapped(first));
}

/* --- objects of slotted classes, made without their constructors -------------------------------------------------- */

#define MAX_SLOTS 12

/* A class, and the descriptors of its slots in the order of its fields. */
typedef struct {
    PyTypeObject *type;
    int count;
    PyObject *slots[MAX_SLOTS];
    descrsetfunc set[MAX_SLOTS];
    descrgetfunc get[MAX_SLOTS];
} Shape;

/* From a tuple (class, descriptors); 0, or -1 with an exception set. Everything in it is borrowed. */
static int
shape_of(PyObject *pair, int count, Shape *shape)
{
    PyObject *descriptors;

    if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2 || !PyType_Check(PyTuple_GetItem(pair, 0))
        || !PyTuple_Check(descriptors = PyTuple_GetItem(pair, 1)) || PyTuple_Size(descriptors) != count) {
        PyErr_SetString(PyExc_TypeError, "a shape is (class, descriptors)");
        return -1;
    }
    shape->type = (PyTypeObject *)PyTuple_GetItem(pair, 0);
    shape->count = count;
    for (int i = 0; i < count; i++) {
        PyObject *slot = PyTuple_GetItem(descriptors, i);
        shape->slots[i] = slot;
        shape->set[i] = (descrsetfunc)PyType_GetSlot(Py_TYPE(slot), Py_tp_descr_set);
        shape->get[i] = (descrgetfunc)PyType_GetSlot(Py_TYPE(slot), Py_tp_descr_get);
        if (shape->set[i] == NULL || shape->get[i] == NULL) {
            PyErr_SetString(PyExc_TypeError, "a shape is of descriptors of slots");
            return -1;
        }
    }
    return 0;
}

/* An object with all its fields; takes the values over. NULL with an exception set, also if one of them is NULL. */
static PyObject *
made(const Shape *shape, PyObject **values)
{
    PyObject *result = NULL;
    int whole = 1;

    for (int i = 0; i < shape->count; i++) {
        whole = whole && values[i] != NULL;
    }
    if (whole) {
        result = PyType_GenericAlloc(shape->type, 0);
    }
    for (int i = 0; i < shape->count; i++) {
        if (result != NULL && shape->set[i](shape->slots[i], result, values[i]) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(values[i]);
    }
    return result;
}

static PyObject *
field(const Shape *shape, int number, PyObject *object)
{
    if (Py_TYPE(object) != shape->type) {
        PyErr_SetString(PyExc_TypeError, "an object of another class");
        return NULL;
    }
    return shape->get[number](shape->slots[number], object, (PyObject *)shape->type);
}

static int
whole_number(const Shape *shape, int number, PyObject *object, int is_signed, uint64_t *value)
{
    PyObject *found = field(shape, number, object);

    if (found == NULL) {
        return -1;
    }
    *value = is_signed ? (uint64_t)PyLong_AsLongLong(found) : PyLong_AsUnsignedLongLong(found);
    Py_DECREF(found);
    return PyErr_Occurred() ? -1 : 0;
}

/* --- a directory -------------------------------------------------------------------------------------------------- */

typedef struct {
    size_t name; /* in the names; an offset, as they may move */
    const char *text;
    struct stat info;
    int known; /* 1: info is there, 0: it could not be had; -1: a directory */
} Item;

typedef struct {
    Item *items;
    size_t count, room;
    char *names;
    size_t used, size;
} Listing;

static int
append(Listing *listing, const char *name, int known)
{
    size_t length = strlen(name) + 1;

    if (listing->count == listing->room) {
        size_t room = listing->room ? listing->room * 2 : 64;
        Item *items = realloc(listing->items, room * sizeof(Item));
        if (items == NULL) {
            return ENOMEM;
        }
        listing->items = items;
        listing->room = room;
    }
    if (length > listing->size - listing->used) {
        size_t size = listing->size * 2 + length + 1024;
        char *names = realloc(listing->names, size);
        if (names == NULL) {
            return ENOMEM;
        }
        listing->names = names;
        listing->size = size;
    }
    memcpy(listing->names + listing->used, name, length);
    listing->items[listing->count].name = listing->used;
    listing->items[listing->count].known = known;
    listing->count++;
    listing->used += length;
    return 0;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const Item *)a)->text, ((const Item *)b)->text);
}

/* Everything in a directory, by name, and what it is. 0, or an errno. */
static int
list(const char *path, Listing *listing)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), problem = 0;
    DIR *stream;

    if (fd < 0) {
        return errno;
    }
    stream = fdopendir(fd);
    if (stream == NULL) {
        problem = errno;
        close(fd);
        return problem;
    }
    while (problem == 0) {
        struct dirent *found;

        errno = 0;
        found = readdir(stream);
        if (found == NULL) {
            problem = errno;
            break;
        }
        if (strcmp(found->d_name, ".") != 0 && strcmp(found->d_name, "..") != 0) {
#ifdef DT_DIR
            problem = append(listing, found->d_name, found->d_type == DT_DIR ? -1 : 0);
#else
            problem = append(listing, found->d_name, 0);
#endif
        }
    }
    for (size_t i = 0; problem == 0 && i < listing->count; i++) {
        Item *item = &listing->items[i];
        item->text = listing->names + item->name;
        if (item->known == 0) {
            item->known = fstatat(fd, item->text, &item->info, AT_SYMLINK_NOFOLLOW) == 0;
            if (item->known && S_ISDIR(item->info.st_mode)) {
                item->known = -1;
            }
        }
    }
    closedir(stream);
    if (problem == 0 && listing->count > 1) {
        qsort(listing->items, listing->count, sizeof(Item), by_name);
    }
    return problem;
}

/* Whether every path may have this part: printable ASCII without a slash, a backslash or a colon. */
static int
is_plain(const char *name)
{
    size_t length = 0;

    for (; name[length]; length++) {
        unsigned char c = (unsigned char)name[length];
        if (c < 0x20 || c > 0x7E || c == '/' || c == ':' || c == '\\') {
            return 0;
        }
    }
    return length > 0 && length <= 255;
}

/* (path in the draft, its LocalFile) of a regular file. */
static PyObject *
file_pair(const Item *item, PyObject *above, PyObject *inner, const Shape *local, const Shape *signature, int keep_mode,
          PyObject *trusted, PyObject *attrs)
{
    PyObject *name = PyUnicode_FromString(item->text), *pair = NULL, *seen[4], *values[5], *relative;

    if (name == NULL) {
        return NULL;
    }
    seen[0] = PyLong_FromLongLong((long long)item->info.st_size);
    seen[1] = PyLong_FromLongLong(NANOSECONDS(&item->info, m));
    seen[2] = PyLong_FromUnsignedLongLong((unsigned long long)item->info.st_ino);
    seen[3] = PyLong_FromUnsignedLongLong((unsigned long long)item->info.st_dev);
    values[0] = PyUnicode_Concat(above, name);
    values[1] = made(signature, seen);
    if (keep_mode) {
        values[2] = PyLong_FromLong((long)(item->info.st_mode & 07777));
    }
    else {
        values[2] = Py_None;
        Py_INCREF(Py_None);
    }
    Py_INCREF(trusted);
    values[3] = trusted;
    Py_INCREF(attrs);
    values[4] = attrs;
    relative = PyUnicode_Concat(inner, name);
    Py_DECREF(name);
    if (relative == NULL) {
        for (int i = 0; i < 5; i++) {
            Py_XDECREF(values[i]);
        }
        return NULL;
    }
    PyObject *file = made(local, values);
    if (file != NULL) {
        pair = PyTuple_Pack(2, relative, file);
        Py_DECREF(file);
    }
    Py_DECREF(relative);
    return pair;
}

static int
put(PyObject *where, PyObject *what)
{
    int failed = what == NULL || PyList_Append(where, what) < 0;

    Py_XDECREF(what);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(list_directory_doc,
"list_directory(path, above, inner, skip, local, signature, keep_mode, trusted)\n--\n\n"
"What is in a directory, by name: (pairs, directories, rest), or the errno why it cannot be read.\n\n"
"Pairs are (inner + name, LocalFile of above + name) of regular files with plain names, apart from `skip`; directories\n"
"are names of directories, rest those of everything else. The GIL is released.");

static PyObject *
list_directory(PyObject *module, PyObject *args)
{
    PyObject *path, *above, *inner, *local_pair, *signature_pair, *trusted, *result = NULL;
    PyObject *pairs = NULL, *directories = NULL, *rest = NULL, *attrs = NULL;
    const char *skip;
    Listing listing = {NULL, 0, 0, NULL, 0, 0};
    Shape local, signature;
    int keep_mode, problem;

    (void)module;
    if (!PyArg_ParseTuple(args, "O&UUsOOpO:list_directory", PyUnicode_FSConverter, &path, &above, &inner, &skip,
                          &local_pair, &signature_pair, &keep_mode, &trusted)) {
        return NULL;
    }
    if (shape_of(local_pair, 5, &local) < 0 || shape_of(signature_pair, 4, &signature) < 0) {
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    problem = list(PyBytes_AsString(path), &listing);
    Py_END_ALLOW_THREADS
    if (problem != 0) {
        result = PyLong_FromLong(problem);
        goto end;
    }
    pairs = PyList_New(0);
    directories = PyList_New(0);
    rest = PyList_New(0);
    attrs = PyBytes_FromStringAndSize("", 0);
    if (pairs == NULL || directories == NULL || rest == NULL || attrs == NULL) {
        goto end;
    }
    for (size_t i = 0; i < listing.count; i++) {
        const Item *item = &listing.items[i];

        if (item->known == 1 && S_ISREG(item->info.st_mode) && is_plain(item->text) && strcmp(item->text, skip) != 0) {
            if (put(pairs, file_pair(item, above, inner, &local, &signature, keep_mode, trusted, attrs)) < 0) {
                goto end;
            }
        }
        else if (put(item->known < 0 ? directories : rest, PyUnicode_DecodeFSDefault(item->text)) < 0) {
            goto end;
        }
    }
    result = PyTuple_Pack(3, pairs, directories, rest);
end:
    Py_XDECREF(pairs);
    Py_XDECREF(directories);
    Py_XDECREF(rest);
    Py_XDECREF(attrs);
    Py_DECREF(path);
    free(listing.items);
    free(listing.names);
    return result;
}

/* --- the stat cache ----------------------------------------------------------------------------------------------- */

typedef struct {
    const char *path;
    size_t length, directory; /* the latter: up to the last slash, without it */
    uint64_t size, mtime, inode, device;
    int odd;  /* no file can have this path */
    int seen; /* it is what it was when it was added */
    uint8_t mark[MARK];
} File;

static int
has_directory_of(const File *a, const File *b)
{
    return a->directory == b->directory && memcmp(a->path, b->path, a->directory) == 0;
}

static void
look_at(File *file, const struct stat *info)
{
    uint8_t stamp[STAMP];

    if (!S_ISREG(info->st_mode) || (uint64_t)info->st_size != file->size || (uint64_t)NANOSECONDS(info, m) != file->mtime
        || (uint64_t)info->st_ino != file->inode || (uint64_t)info->st_dev != file->device || NANOSECONDS(info, c) < 0) {
        return;
    }
    write64(stamp, file->size);
    write64(stamp + 8, file->mtime);
    write64(stamp + 16, (uint64_t)NANOSECONDS(info, c));
    write64(stamp + 24, file->inode);
    write64(stamp + 32, file->device);
    mark_of(stamp, file->mark);
    file->seen = 1;
}

#define MANY 8
/* so many files of one directory are looked up from there: its path is walked once */
#define MAX_PATH 4096

static void
look_at_all(File *files, Py_ssize_t count)
{
    char path[MAX_PATH];
    int fd = -1;

    for (Py_ssize_t i = 0; i < count; i++) {
        struct stat info;
        int found;

        if (fd >= 0 && !has_directory_of(&files[i], &files[i - 1])) {
            close(fd);
            fd = -1;
        }
        if (fd < 0 && i + MANY < count && !files[i].odd && files[i].directory > 0 && files[i].directory < MAX_PATH
            && has_directory_of(&files[i], &files[i + MANY])) {
            memcpy(path, files[i].path, files[i].directory);
            path[files[i].directory] = 0;
#ifdef O_PATH
            fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
#else
            fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
#endif
        }
        if (files[i].odd) {
            found = -1;
        }
        else if (fd >= 0) {
            found = fstatat(fd, files[i].path + files[i].directory + 1, &info, 0);
        }
        else {
            found = stat(files[i].path, &info);
        }
        if (found == 0) {
            look_at(&files[i], &info);
        }
    }
    if (fd >= 0) {
        close(fd);
    }
}

/* The path of a LocalFile in the encoding of the file system, and what it was when it was added; 0, or -1. */
static int
fill(File *file, PyObject *object, const Shape *local, const Shape *signature, PyObject **kept)
{
    PyObject *path = field(local, 0, object), *seen, *encoded;
    char *text;
    Py_ssize_t length;
    int failed;

    *kept = NULL;
    if (path == NULL) {
        return -1;
    }
    encoded = PyUnicode_Check(path) ? PyUnicode_EncodeFSDefault(path) : NULL;
    Py_DECREF(path);
    if (encoded == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_TypeError, "a path is a text");
        }
        return -1;
    }
    if (PyBytes_AsStringAndSize(encoded, &text, &length) < 0 || (seen = field(local, 1, object)) == NULL) {
        Py_DECREF(encoded);
        return -1;
    }
    *kept = encoded;
    file->path = text;
    file->length = (size_t)length;
    file->odd = strlen(text) != file->length;
    file->directory = file->length;
    while (file->directory > 0 && text[file->directory - 1] != '/') {
        file->directory--;
    }
    file->directory -= file->directory > 0;
    failed = whole_number(signature, 0, seen, 1, &file->size) < 0 || whole_number(signature, 1, seen, 1, &file->mtime) < 0
             || whole_number(signature, 2, seen, 0, &file->inode) < 0
             || whole_number(signature, 3, seen, 0, &file->device) < 0;
    Py_DECREF(seen);
    return failed ? -1 : 0;
}

PyDoc_STRVAR(look_up_doc,
"look_up(files, local, signature)\n--\n\n"
"Of some LocalFiles: (paths, keys, marks): paths as bytes; where the stat cache has their rows; the marks of their\n"
"stamps as they are now, None for a file that is not what it was when it was added. The GIL is released.");

static PyObject *
look_up(PyObject *module, PyObject *args)
{
    PyObject *sequence, *items, *local_pair, *signature_pair, *result = NULL;
    PyObject *paths = NULL, *keys = NULL, *marks = NULL;
    Shape local, signature;
    File *files = NULL;
    Py_ssize_t count, i;
    uint64_t directory = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:look_up", &sequence, &local_pair, &signature_pair)
        || shape_of(local_pair, 5, &local) < 0 || shape_of(signature_pair, 4, &signature) < 0) {
        return NULL;
    }
    items = PySequence_Tuple(sequence);
    if (items == NULL) {
        return NULL;
    }
    count = PyTuple_Size(items);
    files = calloc((size_t)count + 1, sizeof(File));
    paths = PyList_New(count);
    keys = PyList_New(count);
    marks = PyList_New(count);
    if (files == NULL || paths == NULL || keys == NULL || marks == NULL) {
        if (files == NULL) {
            PyErr_NoMemory();
        }
        goto end;
    }
    for (i = 0; i < count; i++) {
        PyObject *kept;
        if (fill(&files[i], PyTuple_GetItem(items, i), &local, &signature, &kept) < 0) {
            Py_XDECREF(kept);
            goto end;
        }
        if (PyList_SetItem(paths, i, kept) < 0) {
            goto end;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    look_at_all(files, count);
    Py_END_ALLOW_THREADS
    for (i = 0; i < count; i++) {
        const File *file = &files[i];
        size_t start = file->length > file->directory && file->path[file->directory] == '/' ? file->directory + 1 : 0;
        uint8_t key[16];
        PyObject *found;

        if (i == 0 || !has_directory_of(file, file - 1)) {
            directory = hash64((const uint8_t *)file->path, file->directory);
        }
        write64(key, swapped(directory));
        write64(key + 8, swapped(hash64((const uint8_t *)file->path + start, file->length - start)));
        found = PyBytes_FromStringAndSize((const char *)key, sizeof(key));
        if (found == NULL || PyList_SetItem(keys, i, found) < 0) {
            goto end;
        }
        if (file->seen) {
            found = PyBytes_FromStringAndSize((const char *)file->mark, MARK);
        }
        else {
            found = Py_None;
            Py_INCREF(Py_None);
        }
        if (found == NULL || PyList_SetItem(marks, i, found) < 0) {
            goto end;
        }
    }
    result = PyTuple_Pack(3, paths, keys, marks);
end:
    Py_XDECREF(paths);
    Py_XDECREF(keys);
    Py_XDECREF(marks);
    free(files);
    Py_DECREF(items);
    return result;
}

#define SEAL 8
#define HEAD 23 /* day, mark, width, count */
#define LENGTH 4
#define TREE 0xFFFF

/* Whether a row is sealed for a path. `room` is of at least the bytes of both. */
static int
is_sealed(const uint8_t *path, size_t length, const uint8_t *row, size_t size, uint8_t *room)
{
    memcpy(room, path, length);
    room[length] = 0;
    memcpy(room + length + 1, row + SEAL, size - SEAL);
    return hash64(room, length + 1 + size - SEAL) == read64(row);
}

/* ((digest, length), ...) */
static PyObject *
chunks_of(const uint8_t *at, size_t width, size_t count)
{
    PyObject *chunks = PyTuple_New((Py_ssize_t)count);

    for (size_t i = 0; chunks != NULL && i < count; i++, at += width + LENGTH) {
        PyObject *digest = PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)width);
        PyObject *length = PyLong_FromUnsignedLongLong(read32(at + width));
        PyObject *chunk = digest == NULL || length == NULL ? NULL : PyTuple_Pack(2, digest, length);

        Py_XDECREF(digest);
        Py_XDECREF(length);
        if (chunk == NULL || PyTuple_SetItem(chunks, (Py_ssize_t)i, chunk) < 0) {
            Py_CLEAR(chunks);
        }
    }
    return chunks;
}

/* A FileRow of a sound row of just this path and mark; None for any other. */
static PyObject *
row_of(PyTypeObject *type, newfunc make, PyObject *path, PyObject *mark, PyObject *data, uint8_t **room, size_t *had)
{
    char *name, *expected, *bytes;
    const uint8_t *row;
    Py_ssize_t length, size, marked;
    size_t width, count, need;
    PyObject *values, *arguments, *found = NULL, *used, *chunks, *tree;

    if (mark == Py_None || data == Py_None) {
        Py_RETURN_NONE;
    }
    if (PyBytes_AsStringAndSize(path, &name, &length) < 0 || PyBytes_AsStringAndSize(mark, &expected, &marked) < 0
        || PyBytes_AsStringAndSize(data, &bytes, &size) < 0) {
        return NULL;
    }
    row = (const uint8_t *)bytes;
    if (size < SEAL + HEAD || marked != MARK || memcmp(row + SEAL + 4, expected, MARK) != 0) {
        Py_RETURN_NONE;
    }
    need = (size_t)length + (size_t)size + 1;
    if (need > *had) {
        uint8_t *more = realloc(*room, need * 2);
        if (more == NULL) {
            return PyErr_NoMemory();
        }
        *room = more;
        *had = need * 2;
    }
    width = row[SEAL + 20];
    count = (size_t)row[SEAL + 21] | (size_t)row[SEAL + 22] << 8;
    if (!is_sealed((const uint8_t *)name, (size_t)length, row, (size_t)size, *room)
        || (count != TREE && (size_t)size != SEAL + HEAD + count * (width + LENGTH))) {
        Py_RETURN_NONE;
    }
    used = PyLong_FromUnsignedLongLong(read32(row + SEAL));
    if (count == TREE) {
        chunks = PyTuple_New(0);
        tree = PyBytes_FromStringAndSize((const char *)row + SEAL + HEAD, size - SEAL - HEAD);
    }
    else {
        chunks = chunks_of(row + SEAL + HEAD, width, count);
        tree = Py_None;
        Py_INCREF(Py_None);
    }
    if (used != NULL && chunks != NULL && tree != NULL && (values = PyTuple_Pack(4, mark, used, chunks, tree)) != NULL) {
        arguments = PyTuple_Pack(1, values);
        if (arguments != NULL) {
            found = make(type, arguments, NULL);
            Py_DECREF(arguments);
        }
        Py_DECREF(values);
    }
    Py_XDECREF(used);
    Py_XDECREF(chunks);
    Py_XDECREF(tree);
    return found;
}

PyDoc_STRVAR(decode_rows_doc,
"decode_rows(kind, paths, marks, rows)\n--\n\n"
"`decode_file` of many, for those with the mark that is given: FileRows, of the class `kind`, or None. All are lists.");

static PyObject *
decode_rows(PyObject *module, PyObject *args)
{
    PyObject *kind, *paths, *marks, *rows, *result;
    Py_ssize_t count;
    uint8_t *room = NULL;
    size_t had = 0;
    newfunc make = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);

    (void)module;
    if (!PyArg_ParseTuple(args, "OO!O!O!:decode_rows", &kind, &PyList_Type, &paths, &PyList_Type, &marks, &PyList_Type,
                          &rows)) {
        return NULL;
    }
    count = PyList_Size(paths);
    if (PyList_Size(marks) != count || PyList_Size(rows) != count || !PyType_Check(kind)
        || !PyType_IsSubtype((PyTypeObject *)kind, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "lists of one length, and a class of tuples");
        return NULL;
    }
    result = PyList_New(count);
    for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
        PyObject *found = row_of((PyTypeObject *)kind, make, PyList_GetItem(paths, i), PyList_GetItem(marks, i),
                                 PyList_GetItem(rows, i), &room, &had);
        if (found == NULL || PyList_SetItem(result, i, found) < 0) {
            Py_CLEAR(result);
        }
    }
    free(room);
    return result;
}

/* --- entries ------------------------------------------------------------------------------------------------------ */

static PyObject *
new_reference(PyObject *object)
{
    Py_XINCREF(object);
    return object;
}

/* The Entry of a file whose content a FileRow tells. */
static PyObject *
entry_of(const Shape *entry, PyObject *kind, const Shape *local, const Shape *signature, PyObject *path, PyObject *file,
         PyObject *row)
{
    PyObject *values[10], *seen;

    if (!PyTuple_Check(row) || PyTuple_Size(row) != 4) {
        PyErr_SetString(PyExc_TypeError, "a row is a FileRow");
        return NULL;
    }
    seen = field(local, 1, file);
    if (seen == NULL) {
        return NULL;
    }
    values[0] = new_reference(path);
    values[1] = new_reference(kind);
    values[2] = field(signature, 0, seen);
    values[3] = new_reference(PyTuple_GetItem(row, 2));
    values[4] = new_reference(PyTuple_GetItem(row, 3));
    values[5] = field(local, 2, file);
    values[6] = new_reference(Py_None);
    values[7] = new_reference(Py_None);
    values[8] = field(local, 4, file);
    values[9] = new_reference(Py_None);
    Py_DECREF(seen);
    return made(entry, values);
}

PyDoc_STRVAR(file_entries_doc,
"file_entries(entry, kind, local, signature, files, rows)\n--\n\n"
"The Entry of each (path, LocalFile) whose content a FileRow tells, by path; those without one are left out.");

static PyObject *
file_entries(PyObject *module, PyObject *args)
{
    PyObject *entry_pair, *kind, *local_pair, *signature_pair, *files, *rows, *result;
    Shape entry, local, signature;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOO!O!:file_entries", &entry_pair, &kind, &local_pair, &signature_pair, &PyList_Type,
                          &files, &PyList_Type, &rows)
        || shape_of(entry_pair, 10, &entry) < 0 || shape_of(local_pair, 5, &local) < 0
        || shape_of(signature_pair, 4, &signature) < 0) {
        return NULL;
    }
    if (PyList_Size(files) != PyList_Size(rows)) {
        PyErr_SetString(PyExc_TypeError, "lists of one length");
        return NULL;
    }
    result = PyDict_New();
    for (Py_ssize_t i = 0; result != NULL && i < PyList_Size(rows); i++) {
        PyObject *row = PyList_GetItem(rows, i), *pair = PyList_GetItem(files, i), *made_entry;

        if (row == Py_None) {
            continue;
        }
        if (pair == NULL || !PyTuple_Check(pair) || PyTuple_Size(pair) != 2) {
            PyErr_SetString(PyExc_TypeError, "a file is (path, LocalFile)");
            Py_CLEAR(result);
            break;
        }
        made_entry = entry_of(&entry, kind, &local, &signature, PyTuple_GetItem(pair, 0), PyTuple_GetItem(pair, 1), row);
        if (made_entry == NULL || PyDict_SetItem(result, PyTuple_GetItem(pair, 0), made_entry) < 0) {
            Py_CLEAR(result);
        }
        Py_XDECREF(made_entry);
    }
    return result;
}

/* --- leaves of a tree --------------------------------------------------------------------------------------------- */

/* MessagePack under construction. */
typedef struct {
    uint8_t *bytes;
    size_t used, room;
} Message;

/* Makes room; 0, or -1 with an exception set. */
static int
need(Message *message, size_t more)
{
    if (more > message->room - message->used) {
        size_t room = message->room * 2 + more;
        uint8_t *bytes = realloc(message->bytes, room);
        if (bytes == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        message->bytes = bytes;
        message->room = room;
    }
    return 0;
}

/* A number in the fewest bytes, highest first, behind the code for 1, 2, 4 or 8 of them. There must be room for 9. */
static void
put_number(Message *message, uint64_t value, uint8_t code)
{
    int log = value < 1ULL << 8 ? 0 : value < 1ULL << 16 ? 1 : value < 1ULL << 32 ? 2 : 3;

    message->bytes[message->used++] = (uint8_t)(code + log);
    for (int i = (1 << log) - 1; i >= 0; i--) {
        message->bytes[message->used++] = (uint8_t)(value >> 8 * i);
    }
}

static void
put_unsigned(Message *message, uint64_t value)
{
    if (value < 128) {
        message->bytes[message->used++] = (uint8_t)value;
    }
    else {
        put_number(message, value, 0xCC);
    }
}

/* Bytes, or nil for None. 0; 1 if it is neither; -1 with an exception set. */
static int
put_bytes(Message *message, PyObject *object)
{
    char *data;
    Py_ssize_t size;

    if (object == Py_None) {
        if (need(message, 1) < 0) {
            return -1;
        }
        message->bytes[message->used++] = 0xC0;
        return 0;
    }
    if (!PyBytes_CheckExact(object)) {
        return 1;
    }
    if (PyBytes_AsStringAndSize(object, &data, &size) < 0 || need(message, (size_t)size + 9) < 0) {
        return -1;
    }
    put_number(message, (uint64_t)size, 0xC4);
    memcpy(message->bytes + message->used, data, (size_t)size);
    message->used += (size_t)size;
    return 0;
}

/* A number from 0 on. 0; 1 if it is not that. */
static int
put_object(Message *message, PyObject *object)
{
    long long value;

    if (!PyLong_CheckExact(object)) {
        return 1;
    }
    value = PyLong_AsLongLong(object);
    if (value < 0) {
        PyErr_Clear();
        return 1;
    }
    put_unsigned(message, (uint64_t)value);
    return 0;
}

enum { PATH, KIND, SIZE, CHUNKS, TREE_ROOT, MODE, TARGET, POINTER, ATTRS };

/* The chunks of a file, and their digests as references. 0; 1 if it is more than C is made for; -1 with an exception. */
static int
put_chunks(Message *message, PyObject *chunks, PyObject *references)
{
    Py_ssize_t count = PyTuple_CheckExact(chunks) ? PyTuple_Size(chunks) : -1;

    if (count < 0 || count > 15 || need(message, 1) < 0) {
        return PyErr_Occurred() ? -1 : 1;
    }
    message->bytes[message->used++] = (uint8_t)(0x90 | count);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *chunk = PyTuple_GetItem(chunks, i);
        int odd;

        if (!PyTuple_CheckExact(chunk) || PyTuple_Size(chunk) != 2 || PyTuple_GetItem(chunk, 0) == Py_None) {
            return 1;
        }
        if (need(message, 10) < 0) {
            return -1;
        }
        message->bytes[message->used++] = 0x92;
        odd = put_bytes(message, PyTuple_GetItem(chunk, 0));
        if (odd == 0 && need(message, 9) < 0) {
            return -1;
        }
        odd = odd ? odd : put_object(message, PyTuple_GetItem(chunk, 1));
        if (odd != 0) {
            return odd;
        }
        if (PyList_Append(references, PyTuple_GetItem(chunk, 0)) < 0) {
            return -1;
        }
    }
    return 0;
}

/* A plain file as it stands in a leaf, and where its path is in it. 0; 1 if it is none; -1 with an exception set. */
static int
put_entry(Message *message, const Shape *shape, PyObject *kind, PyObject *entry, PyObject *references, uint64_t *size,
          size_t *path_at, size_t *path_length)
{
    PyObject *fields[9];
    const char *path;
    Py_ssize_t length, attrs = -1;
    int result = -1;

    for (int i = 0; i < 9; i++) {
        fields[i] = field(shape, i, entry);
        if (fields[i] == NULL) {
            while (i-- > 0) {
                Py_DECREF(fields[i]);
            }
            return -1;
        }
    }
    attrs = PyBytes_CheckExact(fields[ATTRS]) ? PyBytes_Size(fields[ATTRS]) : -1;
    if (fields[KIND] != kind || fields[TARGET] != Py_None || fields[POINTER] != Py_None || attrs != 0
        || !PyUnicode_CheckExact(fields[PATH])) {
        result = 1;
        goto end;
    }
    path = PyUnicode_AsUTF8AndSize(fields[PATH], &length);
    if (path == NULL || need(message, (size_t)length + 32) < 0) {
        goto end;
    }
    message->bytes[message->used++] = 0x97;
    if (length < 32) {
        message->bytes[message->used++] = (uint8_t)(0xA0 | length);
    }
    else {
        put_number(message, (uint64_t)length, 0xD9);
    }
    *path_at = message->used;
    *path_length = (size_t)length;
    memcpy(message->bytes + message->used, path, (size_t)length);
    message->used += (size_t)length;
    message->bytes[message->used++] = 0; /* a file */
    result = put_object(message, fields[SIZE]);
    if (result != 0) {
        goto end;
    }
    *size = (uint64_t)PyLong_AsLongLong(fields[SIZE]);
    if (fields[MODE] == Py_None) {
        message->bytes[message->used++] = 0xFF; /* -1 */
    }
    else if ((result = put_object(message, fields[MODE])) != 0) {
        goto end;
    }
    result = put_chunks(message, fields[CHUNKS], references);
    if (result == 0) {
        result = put_bytes(message, fields[TREE_ROOT]);
    }
    if (result == 0) {
        result = put_bytes(message, Py_None);
    }
    if (result == 0 && fields[TREE_ROOT] != Py_None) {
        result = PyList_Append(references, fields[TREE_ROOT]);
    }
end:
    for (int i = 0; i < 9; i++) {
        Py_DECREF(fields[i]);
    }
    return result;
}

PyDoc_STRVAR(cut_leaf_doc,
"cut_leaf(entry, kind, entries, start, average)\n--\n\n"
"The leaf of a tree that begins with an entry of a list: (encoded entries, references with repeats, bytes of files),\n"
"if there is a cut before the end of the list, and all of them are plain files; else None.");

static PyObject *
cut_leaf(PyObject *module, PyObject *args)
{
    PyObject *pair, *kind, *entries, *items, *references, *result = NULL;
    Message message = {NULL, 0, 0};
    unsigned long long average;
    uint64_t bytes = 0, held = 0;
    Py_ssize_t start;
    Shape shape;
    int is_cut = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOO!nK:cut_leaf", &pair, &kind, &PyList_Type, &entries, &start, &average)
        || shape_of(pair, 10, &shape) < 0) {
        return NULL;
    }
    if (start < 0 || average < 4 || average > 1ULL << 40) {
        PyErr_SetString(PyExc_ValueError, "a start or an average is out of range");
        return NULL;
    }
    items = PyList_New(0);
    references = PyList_New(0);
    if (items == NULL || references == NULL) {
        goto end;
    }
    for (Py_ssize_t i = start; !is_cut && i < PyList_Size(entries); i++) {
        PyObject *entry = PyList_GetItem(entries, i), *item;
        size_t at = 0, length = 0;
        uint64_t size = 0;
        int odd;

        message.used = 0;
        odd = Py_TYPE(entry) == shape.type
                  ? put_entry(&message, &shape, kind, entry, references, &size, &at, &length)
                  : 1;
        if (odd != 0) {
            if (odd > 0) {
                break;
            }
            goto end;
        }
        if (size > INT64_MAX - held) {
            break; /* more than can be written down: Python says so */
        }
        item = PyBytes_FromStringAndSize((const char *)message.bytes, (Py_ssize_t)message.used);
        if (put(items, item) < 0) {
            goto end;
        }
        bytes += message.used;
        held += size;
        if (bytes >= average * 4) {
            is_cut = 1;
        }
        else if (bytes >= average / 4) {
            uint64_t chance = ((uint64_t)message.used << 32) / (average - average / 4);
            is_cut = (hash64(message.bytes + at, length) & 0xFFFFFFFF) < chance;
        }
    }
    result = is_cut ? Py_BuildValue("(OOK)", items, references, (unsigned long long)held) : new_reference(Py_None);
end:
    Py_XDECREF(items);
    Py_XDECREF(references);
    free(message.bytes);
    return result;
}

PyDoc_STRVAR(hash64_doc,
"hash64(data)\n--\n\n"
"`casstore.digest.checksum64`, for the tests.");

static PyObject *
hash64_of(PyObject *module, PyObject *data)
{
    char *bytes;
    Py_ssize_t length;

    (void)module;
    if (PyBytes_AsStringAndSize(data, &bytes, &length) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(hash64((const uint8_t *)bytes, (size_t)length));
}

static PyMethodDef methods[] = {
    {"list_directory", list_directory, METH_VARARGS, list_directory_doc},
    {"look_up", look_up, METH_VARARGS, look_up_doc},
    {"decode_rows", decode_rows, METH_VARARGS, decode_rows_doc},
    {"file_entries", file_entries, METH_VARARGS, file_entries_doc},
    {"cut_leaf", cut_leaf, METH_VARARGS, cut_leaf_doc},
    {"hash64", hash64_of, METH_O, hash64_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_scan",
    .m_doc = "Directories, and the stat cache, many files at a time; see casstore.filescan.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModuleDef_Init(&definition);
}
