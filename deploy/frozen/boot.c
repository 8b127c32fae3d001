/* The frozen program: CPython with the modules of the suite in this executable.
 *
 * It takes everything from its own directory and nothing from the environment: no PYTHON*
 * variable, no site-packages, no current directory. `deploy/freeze.py` writes modules.h.
 */
#define _GNU_SOURCE
#include <Python.h>

#include <limits.h>
#include <sched.h>
#include <unistd.h>

#include "modules.h"

/* os.setns is new in Python 3.12, and ctypes takes a while to load. */
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
    PyModuleDef_HEAD_INIT, .m_name = "_boot", .m_size = -1, .m_methods = functions,
};

static PyObject *make_module(void)
{
    PyObject *made = PyModule_Create(&module);

    if (made
        && (PyModule_AddStringConstant(made, "VERSION", VERSION) < 0
            || PyModule_AddStringConstant(made, "BUILD", BUILD) < 0))
        Py_CLEAR(made);
    return made;
}

/* The runtime must get a CNI error object even if there is no Python to write one. */
static int fail(const char *why)
{
    fprintf(stderr, "pycni: %s\n", why);
    if (getenv("CNI_COMMAND")) {
        printf("{\"cniVersion\":\"1.1.0\",\"code\":999,"
               "\"msg\":\"pycni cannot start, see its stderr; install it again\"}\n");
        fflush(stdout);
    }
    return 1;
}

static PyStatus initialise(int argc, char **argv, const char *program, const char *directory)
{
    PyPreConfig early;
    PyConfig config;
    PyStatus status;
    wchar_t *library;
    char path[PATH_MAX + 8];

    PyPreConfig_InitIsolatedConfig(&early);
    early.utf8_mode = 1; /* file names are bytes, whatever the locale says */
    status = Py_PreInitialize(&early);
    if (PyStatus_Exception(status))
        return status;
    PyConfig_InitIsolatedConfig(&config);
    config.parse_argv = 0; /* they are for the plugin, not for Python */
    config.site_import = 0;
    config.write_bytecode = 0;
    config.optimization_level = 2;
    config.pathconfig_warnings = 0;
    config.install_signal_handlers = 1; /* a reader that went away is an error, not a signal */
    config.module_search_paths_set = 1;
    snprintf(path, sizeof path, "%s/lib", directory);
    library = Py_DecodeLocale(path, NULL);
    status = library ? PyWideStringList_Append(&config.module_search_paths, library)
                     : PyStatus_NoMemory();
    PyMem_RawFree(library);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(&config, &config.home, directory);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesString(&config, &config.executable, program);
    if (!PyStatus_Exception(status))
        status = PyConfig_SetBytesArgv(&config, argc, argv);
    if (!PyStatus_Exception(status))
        status = Py_InitializeFromConfig(&config);
    PyConfig_Clear(&config);
    return status;
}

int main(int argc, char **argv)
{
    char program[PATH_MAX];
    char directory[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    PyStatus status;

    if (length < 0)
        return fail("cannot read /proc/self/exe");
    program[length] = '\0';
    memcpy(directory, program, (size_t)length + 1);
    *strrchr(directory, '/') = '\0';

    PyImport_FrozenModules = modules;
    if (PyImport_AppendInittab("_boot", make_module) < 0)
        return fail("out of memory");
    status = initialise(argc, argv, program, directory);
    if (PyStatus_Exception(status))
        return fail(status.err_msg ? status.err_msg : "Python cannot start");
    if (PyImport_ImportFrozenModule("__main__") <= 0) { /* it ends the process itself, if it can */
        if (!PyErr_Occurred())
            return fail("there is no program in this file");
        PyErr_Print(); /* does not return from SystemExit */
        return fail("ended by an exception");
    }
    return 0;
}
