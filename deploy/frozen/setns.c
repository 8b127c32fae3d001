/* Work in a container's network namespace, for cni_common/kernel/netns.py.
 *
 * os.setns is new in Python 3.12, ctypes takes milliseconds to load, and a thread for each visit
 * takes ten times as long as the visit.
 *
 * `open_files` and `open_socket` go into a namespace, open, and are back before they return. They
 * hold the GIL, so no handler of a signal, no other code of Python's runs in between. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define OWN "/proc/thread-self/ns/net"
#define RETURN_TRIES 3 /* the kernel allocates a few bytes for it */
#define FILES_MAX 16   /* of one visit */

/* Return a descriptor of the namespace that `leave` goes back to, -1 with an exception set. */
static int enter(int netns)
{
    int home = open(OWN, O_RDONLY | O_CLOEXEC);
    if (home < 0) {
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, OWN);
        return -1;
    }
    /* A process in a user namespace that may not enter its own namespace could not return. */
    if (setns(home, CLONE_NEWNET) == 0 && setns(netns, CLONE_NEWNET) == 0)
        return home;

    int code = errno;
    close(home);
    PyObject *text = PyUnicode_FromFormat("cannot enter the network namespace: %s", strerror(code));
    PyObject *arguments = text ? Py_BuildValue("(iN)", code, text) : NULL;
    if (arguments) {
        PyErr_SetObject(PyExc_OSError, arguments);
        Py_DECREF(arguments);
    }
    return -1;
}

/* Go back, or end the process: all that it did next would be done to the container. */
static void leave(int home)
{
    static const char words[] = "pycni: cannot return from a network namespace\n";

    for (int i = 0; i < RETURN_TRIES; i++)
        if (setns(home, CLONE_NEWNET) == 0) {
            close(home);
            return;
        }
    if (write(STDERR_FILENO, words, sizeof words - 1) < 0)
        abort();
    abort();
}

/* Return a list of so many numbers, which are closed as descriptors if there is no memory for it. */
static PyObject *list_of(const long *numbers, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);

    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLong(numbers[i]);
        if (number == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, number);
    }
    for (Py_ssize_t i = 0; list == NULL && i < count; i++)
        if (numbers[i] >= 0)
            close((int)numbers[i]);
    return list;
}

/* Open files by one visit. Returns a descriptor for each path, or an errno below zero. */
static PyObject *open_files(PyObject *module, PyObject *arguments)
{
    int netns, flags;
    PyObject *paths;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iO!i", &netns, &PyList_Type, &paths, &flags))
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(paths);
    if (count > FILES_MAX)
        return PyErr_Format(PyExc_ValueError, "more than %d files", FILES_MAX);
    PyObject *names[FILES_MAX] = {NULL}, *found = NULL;
    long opened[FILES_MAX];
    Py_ssize_t known = 0;
    while (known < count && PyUnicode_FSConverter(PyList_GET_ITEM(paths, known), &names[known]))
        known++;
    int home = known == count ? enter(netns) : -1;
    if (home >= 0) {
        for (Py_ssize_t i = 0; i < count; i++) {
            opened[i] = open(PyBytes_AS_STRING(names[i]), flags | O_CLOEXEC);
            if (opened[i] < 0)
                opened[i] = -errno;
        }
        leave(home);
        found = list_of(opened, count);
    }
    while (known-- > 0)
        Py_DECREF(names[known]);
    return found;
}

static PyObject *open_socket(PyObject *module, PyObject *arguments)
{
    int netns, family, type, protocol;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iiii", &netns, &family, &type, &protocol))
        return NULL;
    int home = enter(netns);
    if (home < 0)
        return NULL;
    int fd = socket(family, type | SOCK_CLOEXEC, protocol);
    int code = errno;
    leave(home);
    errno = code;
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static PyObject *enter_namespace(PyObject *module, PyObject *arguments)
{
    int fd, kind;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "ii", &fd, &kind))
        return NULL;
    if (setns(fd, kind) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"open_files", open_files, METH_VARARGS, NULL},
    {"open_socket", open_socket, METH_VARARGS, NULL},
    {"setns", enter_namespace, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "_setns", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__setns(void);

PyMODINIT_FUNC PyInit__setns(void)
{
    return PyModule_Create(&module);
}
