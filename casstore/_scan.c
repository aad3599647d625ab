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

#include "_xxh3.h"

#ifdef __APPLE__
#define NANOSECONDS(info, which) nanoseconds((info)->st_##which##timespec)
#else
#define NANOSECONDS(info, which) nanoseconds((info)->st_##which##tim)
#endif
#define SECOND 1000000000

/* A time as casstore/format/filerows.py has it: the first or the last that fits (1677, 2262) for those that do not. */
static int64_t
nanoseconds(struct timespec time)
{
    const int64_t last = INT64_MAX / SECOND, first = INT64_MIN / SECOND - 1;

    if (time.tv_sec > last || (time.tv_sec == last && time.tv_nsec > INT64_MAX % SECOND)) {
        return INT64_MAX;
    }
    if (time.tv_sec < first || (time.tv_sec == first && time.tv_nsec < SECOND + INT64_MIN % SECOND)) {
        return INT64_MIN;
    }
    return time.tv_sec < 0 ? (time.tv_sec + 1) * (int64_t)SECOND + (time.tv_nsec - SECOND)
                           : time.tv_sec * (int64_t)SECOND + time.tv_nsec;
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

/* The directory of file `i`, open, if so many of those from there on are in it; -1 if not. `fd` is that of the file before
 * it, and is closed when it is another. */
static int
directory_of(const File *files, Py_ssize_t i, Py_ssize_t count, int fd)
{
    char path[MAX_PATH];

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
    return fd;
}

static void
look_at_all(File *files, Py_ssize_t count)
{
    int fd = -1;

    for (Py_ssize_t i = 0; i < count; i++) {
        struct stat info;
        int found;

        fd = directory_of(files, i, count, fd);
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

/* All of one open file into a buffer of its size; it is seen if it was what it was, since `before`, all the time. */
static void
read_open(int fd, File *file, int64_t before, char *buffer)
{
    struct stat info;
    uint64_t done = 0;
    int64_t changed;

    if (fstat(fd, &info) < 0) {
        return;
    }
    look_at(file, &info);
    changed = NANOSECONDS(&info, c);
    if (!file->seen || changed > before || (int64_t)file->mtime > before) {
        file->seen = 0;
        return;
    }
    file->seen = 0;
    while (done < file->size) {
        ssize_t got = read(fd, buffer + done, (size_t)(file->size - done));
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return;
        }
        done += (uint64_t)got;
    }
    if (fstat(fd, &info) == 0 && NANOSECONDS(&info, c) == changed) {
        look_at(file, &info);
    }
}

static void
read_all(File *files, Py_ssize_t count, int64_t before, char *buffer)
{
    int above = -1;

    for (Py_ssize_t i = 0; i < count; i++) {
        int flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC, fd = -1;

        above = directory_of(files, i, count, above);
        if (!files[i].odd) {
            fd = above >= 0 ? openat(above, files[i].path + files[i].directory + 1, flags) : open(files[i].path, flags);
        }
        if (fd >= 0) {
            read_open(fd, &files[i], before, buffer);
            close(fd);
        }
        buffer += files[i].size;
    }
    if (above >= 0) {
        close(above);
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

/* (paths, keys, marks) of some LocalFiles, which are also read if there is a buffer. */
static PyObject *
looked_up(PyObject *sequence, const Shape *local, const Shape *signature, int64_t before, const Py_buffer *buffer)
{
    PyObject *items, *result = NULL, *paths = NULL, *keys = NULL, *marks = NULL;
    File *files = NULL;
    Py_ssize_t count, i;
    uint64_t directory = 0, left = buffer == NULL ? 0 : (uint64_t)buffer->len;

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
        if (fill(&files[i], PyTuple_GetItem(items, i), local, signature, &kept) < 0) {
            Py_XDECREF(kept);
            goto end;
        }
        if (PyList_SetItem(paths, i, kept) < 0) {
            goto end;
        }
        if (buffer != NULL) {
            if (files[i].size > left) { /* as a number below zero is, too */
                PyErr_SetString(PyExc_ValueError, "the buffer is too small, or a size below zero");
                goto end;
            }
            left -= files[i].size;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    if (buffer == NULL) {
        look_at_all(files, count);
    }
    else {
        read_all(files, count, before, buffer->buf);
    }
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

PyDoc_STRVAR(look_up_doc,
"look_up(files, local, signature)\n--\n\n"
"Of some LocalFiles: (paths, keys, marks): paths as bytes; where the stat cache has their rows; the marks of their\n"
"stamps as they are now, None for a file that is not what it was when it was added. The GIL is released.");

static PyObject *
look_up(PyObject *module, PyObject *args)
{
    PyObject *sequence, *local_pair, *signature_pair;
    Shape local, signature;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOO:look_up", &sequence, &local_pair, &signature_pair)
        || shape_of(local_pair, 5, &local) < 0 || shape_of(signature_pair, 4, &signature) < 0) {
        return NULL;
    }
    return looked_up(sequence, &local, &signature, 0, NULL);
}

PyDoc_STRVAR(read_files_doc,
"read_files(files, local, signature, before, buffer)\n--\n\n"
"`look_up`, and read the files into a buffer, one after another. One that is not what it was when it was added, that\n"
"changed after `before` (ns) or during the call, or that cannot be read, has no mark; its place in the buffer means\n"
"nothing then. ValueError if the buffer is too small for all of them.");

static PyObject *
read_files(PyObject *module, PyObject *args)
{
    PyObject *sequence, *local_pair, *signature_pair, *result = NULL;
    Shape local, signature;
    long long before;
    Py_buffer buffer;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOLw*:read_files", &sequence, &local_pair, &signature_pair, &before, &buffer)) {
        return NULL;
    }
    if (shape_of(local_pair, 5, &local) == 0 && shape_of(signature_pair, 4, &signature) == 0) {
        result = looked_up(sequence, &local, &signature, before, &buffer);
    }
    PyBuffer_Release(&buffer);
    return result;
}

#define SEAL 8
#define HEAD 23 /* day, mark, width, count */
#define LENGTH 4
#define TREE 0xFFFF

/* Makes room for so many bytes; 0, or -1 with an exception set. */
static int
grown(uint8_t **room, size_t *had, size_t size)
{
    if (size > *had) {
        uint8_t *more = realloc(*room, size * 2);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        *room = more;
        *had = size * 2;
    }
    return 0;
}

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
    size_t width, count;
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
    if (grown(room, had, (size_t)length + (size_t)size + 1) < 0) {
        return NULL;
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

static void
write32(uint8_t *at, uint64_t value)
{
    for (int i = 0; i < 4; i++) {
        at[i] = (uint8_t)(value >> 8 * i);
    }
}

/* What is in a row behind the day, to `at`, or nothing if that is NULL; how many bytes, -1 with an exception set. */
static Py_ssize_t
put_content(PyObject *mark, PyObject *chunks, PyObject *tree, uint8_t *at)
{
    Py_ssize_t count, width = 0, marked;
    char *bytes;
    size_t size = HEAD - 4;

    if (!PyTuple_Check(chunks)) {
        PyErr_SetString(PyExc_TypeError, "chunks are a tuple");
        return -1;
    }
    count = PyTuple_Size(chunks);
    if (PyBytes_AsStringAndSize(mark, &bytes, &marked) < 0) {
        return -1;
    }
    if (marked != MARK || count >= TREE) {
        PyErr_SetString(PyExc_ValueError, "a mark, or the number of chunks, is out of range");
        return -1;
    }
    if (at != NULL) {
        memcpy(at, bytes, MARK);
    }
    if (tree != Py_None) {
        if (PyBytes_AsStringAndSize(tree, &bytes, &width) < 0) {
            return -1;
        }
        if (at != NULL && width <= 255) {
            memcpy(at + size, bytes, (size_t)width);
        }
        size += (size_t)width;
        count = TREE;
    }
    for (Py_ssize_t i = 0; tree == Py_None && i < count; i++) {
        PyObject *chunk = PyTuple_GetItem(chunks, i);
        Py_ssize_t length;
        unsigned long long number;

        if (!PyTuple_Check(chunk) || PyTuple_Size(chunk) != 2) {
            PyErr_SetString(PyExc_TypeError, "a chunk is (digest, length)");
            return -1;
        }
        number = PyLong_AsUnsignedLongLong(PyTuple_GetItem(chunk, 1));
        if (PyErr_Occurred() || PyBytes_AsStringAndSize(PyTuple_GetItem(chunk, 0), &bytes, &length) < 0) {
            return -1;
        }
        width = i == 0 ? length : width;
        if (length != width || width > 255 || number > 0xFFFFFFFF) {
            PyErr_SetString(PyExc_ValueError, "a digest or a length is out of range");
            return -1;
        }
        if (at != NULL) {
            memcpy(at + size, bytes, (size_t)width);
            write32(at + size + width, number);
        }
        size += (size_t)width + LENGTH;
    }
    if (width > 255) {
        PyErr_SetString(PyExc_ValueError, "a digest is out of range");
        return -1;
    }
    if (at != NULL) {
        at[MARK] = (uint8_t)width;
        at[MARK + 1] = (uint8_t)(count & 0xFF);
        at[MARK + 2] = (uint8_t)(count >> 8);
    }
    return (Py_ssize_t)size;
}

/* The row of a path, or None if `old` says the same and is of a day after `stale`. */
static PyObject *
row_for(PyObject *path, PyObject *row, uint64_t day, PyObject *old, int64_t stale, uint8_t **room, size_t *had)
{
    char *name, *before = NULL;
    Py_ssize_t length, size, had_before = 0;
    uint8_t *body, seal[SEAL];
    PyObject *result;

    if (!PyTuple_Check(row) || PyTuple_Size(row) != 4) {
        PyErr_SetString(PyExc_TypeError, "a row is a FileRow");
        return NULL;
    }
    if (PyBytes_AsStringAndSize(path, &name, &length) < 0
        || (old != Py_None && PyBytes_AsStringAndSize(old, &before, &had_before) < 0)) {
        return NULL;
    }
    size = put_content(PyTuple_GetItem(row, 0), PyTuple_GetItem(row, 2), PyTuple_GetItem(row, 3), NULL);
    if (size < 0 || grown(room, had, (size_t)length + 1 + SEAL + 4 + (size_t)size) < 0) {
        return NULL;
    }
    /* Path and NUL, day, content: what the seal is of. A row is the seal, day, content. */
    body = *room + length + 1;
    memcpy(*room, name, (size_t)length);
    (*room)[length] = 0;
    if (put_content(PyTuple_GetItem(row, 0), PyTuple_GetItem(row, 2), PyTuple_GetItem(row, 3), body + 4) != size) {
        return NULL;
    }
    if (before != NULL && had_before == SEAL + 4 + size && memcmp(before + SEAL + 4, body + 4, (size_t)size) == 0) {
        uint64_t then = read32((const uint8_t *)before + SEAL);

        write32(body, then);
        if ((int64_t)then > stale && then <= day
            && hash64(*room, (size_t)(length + 5 + size)) == read64((const uint8_t *)before)) {
            Py_RETURN_NONE;
        }
    }
    write32(body, day);
    write64(seal, hash64(*room, (size_t)(length + 5 + size)));
    memmove(body + SEAL, body, (size_t)size + 4);
    memcpy(body, seal, SEAL);
    result = PyBytes_FromStringAndSize((const char *)body, SEAL + 4 + size);
    return result;
}

PyDoc_STRVAR(encode_rows_doc,
"encode_rows(paths, rows, day, old, stale)\n--\n\n"
"`encode_file` of many FileRows, with this day; None where what is there (`old`: bytes or None) is the same but for the\n"
"day, which is after `stale` and not after this one. All are lists.");

static PyObject *
encode_rows(PyObject *module, PyObject *args)
{
    PyObject *paths, *rows, *old, *result;
    Py_ssize_t count;
    long long day, stale;
    uint8_t *room = NULL;
    size_t had = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!LO!L:encode_rows", &PyList_Type, &paths, &PyList_Type, &rows, &day, &PyList_Type,
                          &old, &stale)) {
        return NULL;
    }
    count = PyList_Size(paths);
    if (PyList_Size(rows) != count || PyList_Size(old) != count) {
        PyErr_SetString(PyExc_TypeError, "lists of one length");
        return NULL;
    }
    if (day < 0 || day > 0xFFFFFFFF) {
        PyErr_SetString(PyExc_ValueError, "a day is out of range");
        return NULL;
    }
    result = PyList_New(count);
    for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
        PyObject *row = row_for(PyList_GetItem(paths, i), PyList_GetItem(rows, i), (uint64_t)day, PyList_GetItem(old, i),
                                stale, &room, &had);
        if (row == NULL || PyList_SetItem(result, i, row) < 0) {
            Py_CLEAR(result);
        }
    }
    free(room);
    return result;
}

/* (digest, length) of so many pieces from the first on. */
static PyObject *
pieces_of(PyObject *digests, PyObject *starts, PyObject *ends, Py_ssize_t first, Py_ssize_t count)
{
    PyObject *chunks = PyTuple_New(count);

    for (Py_ssize_t i = 0; chunks != NULL && i < count; i++) {
        Py_ssize_t start = PyLong_AsSsize_t(PyList_GetItem(starts, first + i));
        Py_ssize_t end = PyLong_AsSsize_t(PyList_GetItem(ends, first + i));
        PyObject *length = PyErr_Occurred() ? NULL : PyLong_FromSsize_t(end - start), *chunk = NULL;

        if (length != NULL) {
            chunk = PyTuple_Pack(2, PyList_GetItem(digests, first + i), length);
            Py_DECREF(length);
        }
        if (chunk == NULL || PyTuple_SetItem(chunks, i, chunk) < 0) {
            Py_CLEAR(chunks);
        }
    }
    return chunks;
}

PyDoc_STRVAR(file_rows_doc,
"file_rows(kind, marks, digests, starts, ends, counts)\n--\n\n"
"FileRows, of the class `kind`, of files that consist of so many pieces each, one after another. All are lists.");

static PyObject *
file_rows(PyObject *module, PyObject *args)
{
    PyObject *kind, *marks, *digests, *starts, *ends, *counts, *result;
    Py_ssize_t count, pieces, first = 0;
    newfunc make = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);

    (void)module;
    if (!PyArg_ParseTuple(args, "OO!O!O!O!O!:file_rows", &kind, &PyList_Type, &marks, &PyList_Type, &digests, &PyList_Type,
                          &starts, &PyList_Type, &ends, &PyList_Type, &counts)) {
        return NULL;
    }
    count = PyList_Size(marks);
    pieces = PyList_Size(digests);
    if (PyList_Size(counts) != count || PyList_Size(starts) != pieces || PyList_Size(ends) != pieces
        || !PyType_Check(kind) || !PyType_IsSubtype((PyTypeObject *)kind, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "lists of matching lengths, and a class of tuples");
        return NULL;
    }
    result = PyList_New(count);
    for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
        Py_ssize_t some = PyLong_AsSsize_t(PyList_GetItem(counts, i));
        PyObject *chunks = NULL, *arguments = NULL, *row = NULL;

        if (!PyErr_Occurred()) {
            if (some < 0 || some > pieces - first) {
                PyErr_SetString(PyExc_ValueError, "there are not so many pieces");
            }
            else {
                chunks = pieces_of(digests, starts, ends, first, some);
                first += some;
            }
        }
        if (chunks != NULL) {
            arguments = Py_BuildValue("((OiOO))", PyList_GetItem(marks, i), 0, chunks, Py_None);
            Py_DECREF(chunks);
        }
        if (arguments != NULL) {
            row = make((PyTypeObject *)kind, arguments, NULL);
            Py_DECREF(arguments);
        }
        if (row == NULL || PyList_SetItem(result, i, row) < 0) {
            Py_CLEAR(result);
        }
    }
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
    {"read_files", read_files, METH_VARARGS, read_files_doc},
    {"encode_rows", encode_rows, METH_VARARGS, encode_rows_doc},
    {"file_rows", file_rows, METH_VARARGS, file_rows_doc},
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
