/* os.setns is new in Python 3.12, and ctypes takes milliseconds to load. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sched.h>

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
