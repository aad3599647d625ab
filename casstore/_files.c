/* Writes many small files in one call, without the GIL: open, write, close, rename for each.
 *
 * casstore/filebatch.py is the only caller and says what it is for. A file that cannot be written is only reported as
 * such: the caller takes it again in Python, where every error has its words.
 *
 * Limited API of CPython 3.11; POSIX.
 */
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030B0000
#endif
#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_DEPTH 48
#define MAX_NAME 255

typedef struct {
    const char *path; /* below the root, in UTF-8 */
    size_t length;
    int mode; /* -1: what the umask leaves */
    Py_ssize_t first, parts; /* of the buffers */
} Output;

/* The directories on the way from the root to the one written to, all open. */
typedef struct {
    const char *path;
    int depth;
    size_t ends[MAX_DEPTH]; /* where each ends in the path */
    int fds[MAX_DEPTH];
} Way;

/* One part of a path as a string of its own; 0, or an errno. */
static int
part_of(const char *start, size_t length, char *name)
{
    if (length == 0 || length > MAX_NAME) {
        return length ? ENAMETOOLONG : EINVAL;
    }
    memcpy(name, start, length);
    name[length] = 0;
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0 ? EINVAL : 0;
}

static void
go_up(Way *way, int depth)
{
    while (way->depth > depth) {
        close(way->fds[--way->depth]);
    }
}

/* Goes to the directory of a path, which is made if need be; follows no link. 0, or an errno. */
static int
go_to(Way *way, int top, const char *path, size_t length)
{
    int kept = 0;
    size_t at;

    if (length > 0 && path[length - 1] == '/') {
        return EINVAL;
    }
    while (kept < way->depth && way->ends[kept] <= length && memcmp(way->path, path, way->ends[kept]) == 0
           && (way->ends[kept] == length || path[way->ends[kept]] == '/')) {
        kept++;
    }
    go_up(way, kept);
    way->path = path;
    at = kept ? way->ends[kept - 1] + 1 : 0;
    while (at < length) {
        const char *slash = memchr(path + at, '/', length - at);
        size_t end = slash == NULL ? length : (size_t)(slash - path);
        int above = way->depth ? way->fds[way->depth - 1] : top, problem, fd;
        char name[MAX_NAME + 1];

        if (way->depth == MAX_DEPTH) {
            return EMFILE;
        }
        if ((problem = part_of(path + at, end - at, name)) != 0) {
            return problem;
        }
        /* If something is there already, opening it tells whether it is a directory. */
        if (mkdirat(above, name, 0777) < 0 && errno != EEXIST) {
            return errno;
        }
        fd = openat(above, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) {
            return errno;
        }
        way->ends[way->depth] = end;
        way->fds[way->depth++] = fd;
        at = end + 1;
    }
    return 0;
}

/* Every byte of some buffers. 0, or an errno. */
static int
put_all(int fd, const Py_buffer *buffers, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *data = buffers[i].buf;
        Py_ssize_t left = buffers[i].len;

        while (left > 0) {
            ssize_t done = write(fd, data, (size_t)left);
            if (done < 0 && errno == EINTR) {
                continue;
            }
            if (done <= 0) {
                return done < 0 ? errno : EIO;
            }
            data += done;
            left -= done;
        }
    }
    return 0;
}

/* One file in an open directory: all of it under a temporary name, then the one it is to have. 0, or an errno. */
static int
write_one(int directory, const char *temporary, const char *name, int mode, const Py_buffer *buffers, Py_ssize_t parts)
{
    int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666), problem;

    if (fd < 0) {
        return errno; /* what has the name is not ours */
    }
    problem = put_all(fd, buffers, parts);
    if (problem == 0 && mode >= 0 && fchmod(fd, (mode_t)mode) < 0) {
        problem = errno;
    }
    if (close(fd) < 0 && problem == 0) {
        problem = errno;
    }
    if (problem == 0 && renameat(directory, temporary, directory, name) < 0) {
        problem = errno;
    }
    if (problem != 0) {
        unlinkat(directory, temporary, 0);
    }
    return problem;
}

/* How many files from the first on are written: behind one that cannot be nothing is tried. */
static Py_ssize_t
write_all(int top, const char *prefix, const char *suffix, const Output *files, Py_ssize_t count,
          const Py_buffer *buffers)
{
    Way way = {.path = "", .depth = 0};
    Py_ssize_t done = 0;

    for (; done < count; done++) {
        const Output *file = &files[done];
        const char *end = file->path + file->length, *name = end;
        char temporary[MAX_NAME + 1], last[MAX_NAME + 1];
        int length = snprintf(temporary, sizeof(temporary), "%s%llx%s", prefix, (unsigned long long)done, suffix);
        int directory;

        while (name > file->path && name[-1] != '/') {
            name--;
        }
        if (length < 0 || length > MAX_NAME || name - 1 == file->path || part_of(name, (size_t)(end - name), last) != 0
            || go_to(&way, top, file->path, name > file->path ? (size_t)(name - 1 - file->path) : 0) != 0) {
            break;
        }
        directory = way.depth ? way.fds[way.depth - 1] : top;
        if (write_one(directory, temporary, last, file->mode, buffers + file->first, file->parts) != 0) {
            break;
        }
    }
    go_up(&way, 0);
    return done;
}

/* Fills in the outputs from a tuple of (path, mode, buffers), and their buffers; how many, or -1. */
static Py_ssize_t
fill_outputs(Output *files, PyObject *items, Py_ssize_t count, Py_buffer *buffers, Py_ssize_t room)
{
    Py_ssize_t used = 0;

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i), *parts = PyTuple_GetItem(item, 2);
        Py_ssize_t length;
        long mode = PyLong_AsLong(PyTuple_GetItem(item, 1));

        files[i].path = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(item, 0), &length);
        if (files[i].path == NULL || PyErr_Occurred()) {
            goto failed;
        }
        if (mode < -1 || mode > 0777 || strlen(files[i].path) != (size_t)length) {
            PyErr_SetString(PyExc_ValueError, "a mode or path is out of range");
            goto failed;
        }
        files[i].length = (size_t)length;
        files[i].mode = (int)mode;
        files[i].first = used;
        files[i].parts = PyTuple_Size(parts);
        for (Py_ssize_t j = 0; j < files[i].parts && used < room; j++) {
            if (PyObject_GetBuffer(PyTuple_GetItem(parts, j), &buffers[used], PyBUF_SIMPLE) < 0) {
                goto failed;
            }
            used++;
        }
    }
    return used;
failed:
    while (used > 0) {
        PyBuffer_Release(&buffers[--used]);
    }
    return -1;
}

/* How many buffers a tuple of (path, mode, buffers) has; -1 if it is nothing of the kind. */
static Py_ssize_t
count_buffers(PyObject *items, Py_ssize_t count)
{
    Py_ssize_t total = 0;

    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, i);

        if (!PyTuple_Check(item) || PyTuple_Size(item) != 3 || !PyTuple_Check(PyTuple_GetItem(item, 2))) {
            PyErr_SetString(PyExc_TypeError, "a file is (path, mode, (buffer, ...))");
            return -1;
        }
        total += PyTuple_Size(PyTuple_GetItem(item, 2));
    }
    return total;
}

PyDoc_STRVAR(write_files_doc,
"write_files(top, prefix, suffix, files)\n--\n\n"
"Write new files below an open directory, one after another; how many, till the first that cannot be.\n\n"
"A file is (path, mode or -1, tuple of buffers), directories on its way are made. It is written as prefix, a number,\n"
"suffix, which must be names nobody else uses, and renamed when it is whole; it replaces what has its name. No link\n"
"on the way is followed. Of the file that failed nothing is left, of those behind it nothing is tried.");

static PyObject *
write_files(PyObject *module, PyObject *args)
{
    const char *prefix, *suffix;
    PyObject *sequence, *items, *result = NULL;
    Py_buffer *buffers = NULL;
    Output *files = NULL;
    Py_ssize_t count, room, used, done;
    int top;

    (void)module;
    if (!PyArg_ParseTuple(args, "issO:write_files", &top, &prefix, &suffix, &sequence)) {
        return NULL;
    }
    items = PySequence_Tuple(sequence); /* holds paths and buffers while the GIL is gone */
    if (items == NULL) {
        return NULL;
    }
    count = PyTuple_Size(items);
    room = count_buffers(items, count);
    if (room < 0) {
        goto end;
    }
    files = calloc((size_t)count + 1, sizeof(Output));
    buffers = calloc((size_t)room + 1, sizeof(Py_buffer));
    if (files == NULL || buffers == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    used = fill_outputs(files, items, count, buffers, room);
    if (used < 0) {
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    done = write_all(top, prefix, suffix, files, count, buffers);
    Py_END_ALLOW_THREADS
    while (used > 0) {
        PyBuffer_Release(&buffers[--used]);
    }
    result = PyLong_FromSsize_t(done);
end:
    free(buffers);
    free(files);
    Py_DECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"write_files", write_files, METH_VARARGS, write_files_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_files",
    .m_doc = "Many small files in one call; see casstore.filebatch.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__files(void)
{
    return PyModuleDef_Init(&definition);
}
